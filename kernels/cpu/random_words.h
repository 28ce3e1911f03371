// SPDX-License-Identifier: Apache-2.0
//
// Many words of the counter-based generator at once.
//
// Purpose: formats::RandomGroup for runs of counters, 4 or 8 of them per vector. Same words on
// every instruction set. Thread-safety: pure functions.
#pragma once

#include <cstdint>

namespace nibble::cpu {

// Which random stream a tensor's elements draw from.
struct RandomStream {
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t stream = 0;
};

// words[4 * i + l] = lane l of counter first + i * stride, i in [0, groups).
void RandomGroups(const RandomStream& stream, uint64_t first, uint64_t stride, int64_t groups,
                  uint32_t* words);

// words[i] = word of element first + i, i in [0, n). `words` has room for n + 6 values; returns
// where the first element's word is.
const uint32_t* RandomRun(const RandomStream& stream, uint64_t first, int64_t n, uint32_t* words);

}  // namespace nibble::cpu
