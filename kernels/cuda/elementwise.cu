// SPDX-License-Identifier: Apache-2.0
//
// Fill, sums, scaling, BF16 rounding, SwiGLU: no shared state.
#include <algorithm>
#include <initializer_list>

#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/formats/bits.h"

namespace nibble::cuda {
namespace {

// op.At of n elements, by fours where all `places` let it.
template <typename Op>
Status ForEachPack(cudaStream_t stream, const char* what, int64_t n,
                   std::initializer_list<const void*> places, Op op) {
  if (n == 0) return OkStatus();
  const int64_t packs = InFours(0, places) ? n / 4 : 0;
  ForEachPackKernel<<<GridFor(std::max(packs, n - 4 * packs)), kThreads, 0, stream>>>(n, packs, op);
  return LaunchStatus(what);
}

}  // namespace

Status CudaBackend::Fill(TensorView x, float value) {
  RETURN_IF_ERROR(CheckSameSize("Fill", "x", x, x.size()));
  if (formats::FloatBits(value) == 0) {
    return CudaStatus(cudaMemsetAsync(x.data, 0, static_cast<size_t>(x.size_bytes()), stream_),
                      "Fill");
  }
  return ForEach(stream_, "Fill", x.size(), FillOp{x.f32(), value});
}

Status CudaBackend::Add(ConstTensorView a, ConstTensorView b, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("Add", "a", a, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "b", b, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "out", out, out.size()));
  return ForEachPack(stream_, "Add", out.size(), {a.data, b.data, out.data},
                     AddOp{a.f32(), b.f32(), out.f32()});
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
      return ForEachPack(stream_, "RoundToBf16", out.size(), {x.data, out.data}, RoundOp{from, to});
    });
  });
}

Status CudaBackend::SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "gate", gate, out.size(), FloatType(gate)));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "up", up, out.size(), FloatType(gate)));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "out", out, out.size(), FloatType(out)));
  return WithIn(gate, [&](auto* from) {
    return WithOut(out, [&](auto* to) {
      return ForEachPack(stream_, "SwiGluForward", out.size(), {gate.data, up.data, out.data},
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
    return ForEachPack(stream_, "SwiGluBackward", dgate.size(),
                       {dout.data, gate.data, up.data, dgate.data, dup.data},
                       SwiGluBackwardOp{dout.f32(), from, static_cast<decltype(from)>(up.data),
                                        dgate.f32(), dup.f32()});
  });
}

}  // namespace nibble::cuda
