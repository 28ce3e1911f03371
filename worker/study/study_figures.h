// SPDX-License-Identifier: Apache-2.0
//
// The two figures of a study as SVG documents. Thread-safety: pure functions.
#pragma once

#include <string>

#include "worker/study/study_summary.h"

namespace nibble {

inline constexpr int kMaxCurves = 8;  // the baseline and the best others

// Two panels over tokens: validation loss, and its paired gap to the baseline in percent. Lines are
// means over the seeds, bands go from the smallest to the largest. Both are cut to what the curves
// do after a fifth of the run, so that the end is readable.
std::string CurvesFigure(const std::string& title, const StudySummary& summary);

// Relative gap of each arm to the baseline with its 95 % interval, best first; arms without a gap
// say why.
std::string GapFigure(const std::string& title, const StudySummary& summary);

}  // namespace nibble
