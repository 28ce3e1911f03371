// SPDX-License-Identifier: Apache-2.0
//
// Fill, sums, scaling, BF16 rounding, SwiGLU: one thread per element, no shared state.
#include "kernels/checks.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {

Status CudaBackend::Fill(TensorView x, float value) {
  RETURN_IF_ERROR(CheckSameSize("Fill", "x", x, x.size()));
  return ForEach(stream_, "Fill", x.size(), FillOp{x.f32(), value});
}

Status CudaBackend::Add(ConstTensorView a, ConstTensorView b, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("Add", "a", a, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "b", b, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "out", out, out.size()));
  return ForEach(stream_, "Add", out.size(), AddOp{a.f32(), b.f32(), out.f32()});
}

Status CudaBackend::Axpy(float factor, ConstTensorView x, TensorView y) {
  RETURN_IF_ERROR(CheckSameSize("Axpy", "x", x, y.size()));
  RETURN_IF_ERROR(CheckSameSize("Axpy", "y", y, y.size()));
  return ForEach(stream_, "Axpy", y.size(), AxpyOp{factor, x.f32(), y.f32()});
}

Status CudaBackend::Scale(float factor, TensorView x) {
  RETURN_IF_ERROR(CheckSameSize("Scale", "x", x, x.size()));
  return ForEach(stream_, "Scale", x.size(), ScaleOp{factor, x.f32()});
}

Status CudaBackend::RoundToBf16(ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "x", x, out.size()));
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "out", out, out.size(), out.dtype));
  if (out.dtype == DType::kBF16) {
    return ForEach(stream_, "RoundToBf16", out.size(),
                   ToBf16Op{x.f32(), static_cast<uint16_t*>(out.data)});
  }
  return ForEach(stream_, "RoundToBf16", out.size(), RoundOp{x.f32(), out.f32()});
}

Status CudaBackend::SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "gate", gate, out.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "up", up, out.size()));
  const DType type = out.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "out", out, out.size(), type));
  return WithOut(out, [&](auto* to) {
    return ForEach(stream_, "SwiGluForward", out.size(), SwiGluOp{gate.f32(), up.f32(), to});
  });
}

Status CudaBackend::SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                                   TensorView dgate, TensorView dup) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dout", dout, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "gate", gate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "up", up, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dgate", dgate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dup", dup, dgate.size()));
  return ForEach(stream_, "SwiGluBackward", dgate.size(),
                 SwiGluBackwardOp{dout.f32(), gate.f32(), up.f32(), dgate.f32(), dup.f32()});
}

}  // namespace nibble::cuda
