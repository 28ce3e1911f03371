// SPDX-License-Identifier: Apache-2.0
//
// Fill, sums, scaling, BF16 rounding, SwiGLU: one thread per element, no shared state.
#include "kernels/checks.h"
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
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "x", x, out.size(), FloatType(x)));
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "out", out, out.size(), FloatType(out)));
  return WithIn(x, [&](auto* from) {
    return WithOut(out, [&](auto* to) {
      return ForEach(stream_, "RoundToBf16", out.size(), RoundOp{from, to});
    });
  });
}

Status CudaBackend::SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "gate", gate, out.size(), FloatType(gate)));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "up", up, out.size(), FloatType(gate)));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "out", out, out.size(), FloatType(out)));
  return WithIn(gate, [&](auto* from) {
    return WithOut(out, [&](auto* to) {
      return ForEach(stream_, "SwiGluForward", out.size(),
                     SwiGluOp{from, static_cast<decltype(from)>(up.data), to});
    });
  });
}

Status CudaBackend::SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                                   TensorView dgate, TensorView dup) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dout", dout, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "gate", gate, dgate.size(), FloatType(gate)));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "up", up, dgate.size(), FloatType(gate)));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dgate", dgate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dup", dup, dgate.size()));
  return WithIn(gate, [&](auto* from) {
    return ForEach(stream_, "SwiGluBackward", dgate.size(),
                   SwiGluBackwardOp{dout.f32(), from, static_cast<decltype(from)>(up.data),
                                    dgate.f32(), dup.f32()});
  });
}

}  // namespace nibble::cuda
