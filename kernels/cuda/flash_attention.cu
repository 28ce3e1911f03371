// SPDX-License-Identifier: Apache-2.0
//
// Launches of the tensor-core attention; kernels: flash_kernels.cuh.
#include <cmath>
#include <type_traits>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/flash_backward_kernels.cuh"
#include "kernels/cuda/flash_kernels.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/values.cuh"

namespace nibble::cuda {
namespace {

FlashProblem FlashProblemOf(const AttentionParams& p) {
  const auto as_int = [](int64_t x) { return static_cast<int>(x); };
  return {as_int(p.batch),
          as_int(p.seq),
          as_int(p.kv_seq),
          as_int(p.heads),
          as_int(p.kv_heads),
          as_int(p.head_dim),
          1.0f / std::sqrt(static_cast<float>(p.head_dim))};
}

unsigned TilesOf(int64_t rows, int tile) { return static_cast<unsigned>((rows + tile - 1) / tile); }

template <typename Kernel>
Status AllowShared(Kernel kernel, int bytes) {
  return CudaStatus(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      "shared memory of attention");
}

// Calls launch with the head size as a template argument.
template <typename Launch>
Status WithHeadDim(int64_t head_dim, Launch launch) {
  return head_dim == 64 ? launch(std::integral_constant<int, 64>())
                        : launch(std::integral_constant<int, 128>());
}

}  // namespace

bool CudaBackend::TakesFlash(const AttentionParams& p) {
  return p.mode == GemmMode::kBf16 && (p.head_dim == 64 || p.head_dim == 128);
}

Status CudaBackend::Bf16Operands(std::initializer_list<ConstTensorView> operands,
                                 const uint16_t** first) {
  int64_t total = 0;
  for (const ConstTensorView& view : operands) {
    if (view.dtype != DType::kBF16) total += view.size();
  }
  if (total > 0) RETURN_IF_ERROR(attention_rounded_.Reserve(*this, total * 2));
  auto* next = static_cast<uint16_t*>(attention_rounded_.data());
  for (const ConstTensorView& view : operands) {
    if (view.dtype == DType::kBF16) {
      *first++ = static_cast<const uint16_t*>(view.data);
      continue;
    }
    *first++ = next;
    RETURN_IF_ERROR(RoundToBf16(view, {next, view.rows, view.cols, DType::kBF16}));
    next += view.size();
  }
  return OkStatus();
}

Status CudaBackend::FlashForward(const AttentionParams& p, ConstTensorView q, ConstTensorView k,
                                 ConstTensorView v, TensorView out, TensorView lse) {
  const uint16_t* rounded[3];
  RETURN_IF_ERROR(Bf16Operands({q, k, v}, rounded));
  return WithHeadDim(p.head_dim, [&](auto dim) -> Status {
    constexpr int kDim = decltype(dim)::value;
    constexpr int kBytes = FlashForwardBytes<kDim>();
    const dim3 grid(TilesOf(p.seq, kFlashQueries), static_cast<unsigned>(p.batch * p.heads));
    return WithOut(out, [&](auto* to) -> Status {
      const auto kernel = FlashForwardKernel<kDim, std::remove_pointer_t<decltype(to)>>;
      RETURN_IF_ERROR(AllowShared(kernel, kBytes));
      kernel<<<grid, kFlashThreads, kBytes, stream_>>>(FlashProblemOf(p), rounded[0], rounded[1],
                                                       rounded[2], to, lse.f32());
      return LaunchStatus("AttentionForward");
    });
  });
}

Status CudaBackend::FlashBackward(const AttentionParams& p, ConstTensorView dout, ConstTensorView q,
                                  ConstTensorView k, ConstTensorView v, ConstTensorView lse,
                                  const float* delta, TensorView dq, TensorView dk, TensorView dv) {
  const uint16_t* rounded[4];
  RETURN_IF_ERROR(Bf16Operands({dout, q, k, v}, rounded));
  return WithHeadDim(p.head_dim, [&](auto dim) -> Status {
    constexpr int kDim = decltype(dim)::value;
    constexpr int kKeyBytes = FlashKeyGradientBytes<kDim>();
    constexpr int kQueryBytes = FlashQueryGradientBytes<kDim>();
    RETURN_IF_ERROR(AllowShared(FlashKeyGradientKernel<kDim>, kKeyBytes));
    RETURN_IF_ERROR(AllowShared(FlashQueryGradientKernel<kDim>, kQueryBytes));
    const FlashProblem problem = FlashProblemOf(p);
    const dim3 by_key(TilesOf(p.seq, kGradientKeys), static_cast<unsigned>(p.batch * p.kv_heads));
    FlashKeyGradientKernel<kDim><<<by_key, kFlashThreads, kKeyBytes, stream_>>>(
        problem, rounded[0], rounded[1], rounded[2], rounded[3], lse.f32(), delta, dk.f32(),
        dv.f32());
    RETURN_IF_ERROR(LaunchStatus("AttentionBackward"));
    const dim3 by_query(TilesOf(p.seq, kQueryGradientQueries),
                        static_cast<unsigned>(p.batch * p.heads));
    FlashQueryGradientKernel<kDim><<<by_query, kFlashThreads, kQueryBytes, stream_>>>(
        problem, rounded[0], rounded[1], rounded[2], rounded[3], lse.f32(), delta, dq.f32());
    return LaunchStatus("AttentionBackward");
  });
}

}  // namespace nibble::cuda
