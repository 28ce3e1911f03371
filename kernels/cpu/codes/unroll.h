// SPDX-License-Identifier: Apache-2.0
//
// Loops unrolled by the front end, so that arrays of accumulators become registers: GCC keeps an
// indexed array of vectors in memory when a pragma unrolls the loop around it.
//
// Purpose: the inner loops of kernels.h. Internal linkage, as loops.h. Thread-safety: pure.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#define NIBBLE_INLINE_LAMBDA __attribute__((always_inline))

namespace nibble::cpu::codes {
namespace {

template <typename Body, int... I>
[[gnu::always_inline]] inline void UnrollIndices(const Body& body,
                                                 std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

// body(0), body(1), ..., body(count - 1), the index a constant of its own type.
template <int count, typename Body>
[[gnu::always_inline]] inline void Unroll(const Body& body) {
  UnrollIndices(body, std::make_integer_sequence<int, count>{});
}

[[gnu::always_inline]] inline int32_t LoadWord(const uint8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

}  // namespace
}  // namespace nibble::cpu::codes
