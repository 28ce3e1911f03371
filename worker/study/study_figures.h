// SPDX-License-Identifier: Apache-2.0
//
// The two figures of a study as SVG documents. Thread-safety: pure functions.
#pragma once

#include <string>

#include "worker/study/study_summary.h"

namespace nibble {

inline constexpr int kMaxCurves = 8;  // the baseline and the best others

// Validation loss against tokens: mean over the seeds, band from the smallest to the largest. Cut
// above what the curves reach after a fifth of the run, so that the end is readable.
std::string CurvesFigure(const std::string& title, const StudySummary& summary);

// Relative gap of each arm to the baseline with its 95 % interval, best first; arms without a gap
// say why.
std::string GapFigure(const std::string& title, const StudySummary& summary);

}  // namespace nibble
