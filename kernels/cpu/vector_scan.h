// SPDX-License-Identifier: Apache-2.0
//
// Scans for the few values that matter, by vectors and with a branch.
//
// Purpose: outliers of a segment, and column maxima of quotients without a division for each value.
// Same results on every instruction set. Thread-safety: pure functions on the caller's memory.
#pragma once

#include <cstdint>

namespace nibble::cpu {

// Ascending positions of the values not in [low, high], NaN among them; n <= kSegment. Returns how
// many. `positions` has room for n + 16.
int64_t PositionsOutside(const float* x, int64_t n, float low, float high, uint16_t* positions);

// amax[i] = max(amax[i], bf16(x[i]) / fold) as magnitude bits, as FoldedColumnAmax; `reciprocal` =
// fl(1 / fold), of ordinary size or 0, tells which quotients cannot be the largest.
void FoldedColumnAmaxFast(const float* x, float fold, float reciprocal, uint32_t* amax, int64_t n);

}  // namespace nibble::cpu
