// SPDX-License-Identifier: Apache-2.0
//
// Hadamard rotations along either axis.
#include "kernels/cpu/cpu_backend.h"

namespace nibble::cpu {

Status CpuBackend::Rotate(const Rotation&, const QuantizeContext&, bool, ConstTensorView,
                          TensorView) {
  return UnimplementedError("Rotate: the CPU backend has no rotations yet");
}

}  // namespace nibble::cpu
