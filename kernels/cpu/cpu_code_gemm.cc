// SPDX-License-Identifier: Apache-2.0
//
// GEMM on integer codes.
#include "kernels/cpu/cpu_backend.h"

namespace nibble::cpu {

Status CpuBackend::QuantizedGemm(const QuantizedGemmParams&, const QuantizedTensor&,
                                 const QuantizedTensor&, TensorView) {
  return UnimplementedError("QuantizedGemm: the CPU backend multiplies decoded operands only");
}

}  // namespace nibble::cpu
