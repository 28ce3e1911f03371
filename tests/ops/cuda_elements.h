// SPDX-License-Identifier: Apache-2.0
//
// Elementwise operations of the CUDA backend, run by hand or under the emulator.
//
// Thread-safety: one thread. Include the emulator first.
#pragma once

#include <cstdint>

#include "kernels/cuda/elementwise_ops.cuh"

namespace nibble::cuda {

template <typename Op>
void ForEachElement(int64_t size, const Op& op) {
  for (int64_t i = 0; i < size; ++i) op(i);
}

// Half of the elements by fours, the rest one by one.
template <typename Op>
void ForEachPacked(int64_t size, const Op& op) {
  Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kBackwards,
                         [&] { ForEachPackKernel(size, size / 8, op); });
}

}  // namespace nibble::cuda
