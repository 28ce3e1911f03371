// SPDX-License-Identifier: Apache-2.0
//
// Embedding, RMSNorm and rotary position embedding.
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/embedding_kernels.cuh"
#include "kernels/cuda/ids.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm_kernels.cuh"
#include "kernels/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

// Calls `launch` with the packs of a row that a thread keeps, and whether rows are whole packs.
template <typename Launch>
Status WithHeldRow(int64_t width, std::initializer_list<const void*> places, Launch launch) {
  const auto held = [&](auto fours) {
    return InFours(width, places) ? launch(fours, std::true_type())
                                  : launch(fours, std::false_type());
  };
  if (width <= kNormHeld<2>) return held(std::integral_constant<int, 2>());
  if (width <= kNormHeld<4>) return held(std::integral_constant<int, 4>());
  return held(std::integral_constant<int, 8>());
}

// Rows as FP32, or as the BF16 that a quantizer takes.
Status CheckRows(const char* op, const TensorView& out, int64_t rows, int64_t cols) {
  const DType type = out.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  return CheckView(op, "out", out, rows, cols, type);
}

}  // namespace

Status CudaBackend::EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) {
  const int64_t width = table.cols;
  RETURN_IF_ERROR(CheckSameSize("EmbeddingForward", "ids", ids, out.rows, DType::kI32));
  RETURN_IF_ERROR(CheckView("EmbeddingForward", "table", table, table.rows, width));
  RETURN_IF_ERROR(CheckView("EmbeddingForward", "out", out, out.rows, width));
  RETURN_IF_ERROR(CheckIds(IdCheck::kToken, ids, table.rows));
  return ForEach(stream_, "EmbeddingForward", out.size(),
                 GatherOp{table.f32(), ids.i32(), table.rows, width, out.f32()});
}

Status CudaBackend::EmbeddingBackward(ConstTensorView ids, ConstTensorView dout,
                                      TensorView dtable) {
  const int64_t width = dtable.cols;
  RETURN_IF_ERROR(CheckSameSize("EmbeddingBackward", "ids", ids, dout.rows, DType::kI32));
  RETURN_IF_ERROR(CheckView("EmbeddingBackward", "dout", dout, dout.rows, width));
  RETURN_IF_ERROR(CheckView("EmbeddingBackward", "dtable", dtable, dtable.rows, width));
  RETURN_IF_ERROR(CheckIds(IdCheck::kToken, ids, dtable.rows));
  if (width == 0 || dout.rows == 0) return OkStatus();
  const int64_t tokens = dout.rows;
  RETURN_IF_ERROR(token_order_.Reserve(*this, 2 * tokens * 4));
  auto* const place = static_cast<int32_t*>(token_order_.data());
  int32_t* const order = place + tokens;
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(place, 0, static_cast<size_t>(tokens) * 4, stream_),
                             "EmbeddingBackward"));
  constexpr unsigned kShares = 16;  // blocks that compare the same tokens with others
  const unsigned runs = GridFor(tokens);
  RankTokensKernel<<<dim3(runs, std::min(runs, kShares)), kThreads, 0, stream_>>>(ids.i32(), tokens,
                                                                                  place);
  RETURN_IF_ERROR(LaunchStatus("EmbeddingBackward"));
  RETURN_IF_ERROR(ForEach(stream_, "EmbeddingBackward", tokens, OrderTokensOp{place, order}));
  const EmbeddingTask task{ids.i32(), order, dout.f32(), tokens, dtable.rows, width, dtable.f32()};
  const dim3 grid(GridFor((width + 3) / 4), GridForRows(tokens));
  const auto kernel = InFours(width, {dout.data, dtable.data}) ? EmbeddingBackwardKernel<true>
                                                               : EmbeddingBackwardKernel<false>;
  kernel<<<grid, kThreads, 0, stream_>>>(task);
  return LaunchStatus("EmbeddingBackward");
}

Status CudaBackend::Norm(const char* op, ConstTensorView x, ConstTensorView b,
                         ConstTensorView weight, float epsilon, TensorView sum, TensorView out,
                         TensorView rstd) {
  return WithOut(out, [&](auto* to) {
    using Out = std::remove_pointer_t<decltype(to)>;
    const NormTask<Out> task{x.f32(), b.f32(),   weight.f32(), epsilon,   x.rows,
                             x.cols,  sum.f32(), to,           rstd.f32()};
    return WithHeldRow(x.cols, {x.data, b.data, weight.data, sum.data, out.data},
                       [&](auto fours, auto whole) {
                         RmsNormKernel<decltype(fours)::value, decltype(whole)::value, Out>
                             <<<GridForRows(x.rows), kThreads, 0, stream_>>>(task);
                         return LaunchStatus(op);
                       });
  });
}

Status CudaBackend::RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon,
                                   TensorView out, TensorView rstd) {
  RETURN_IF_ERROR(CheckView("RmsNormForward", "x", x, x.rows, x.cols));
  RETURN_IF_ERROR(CheckRows("RmsNormForward", out, x.rows, x.cols));
  RETURN_IF_ERROR(CheckSameSize("RmsNormForward", "weight", weight, x.cols));
  RETURN_IF_ERROR(CheckSameSize("RmsNormForward", "rstd", rstd, x.rows));
  if (x.size() == 0) return OkStatus();
  return Norm("RmsNormForward", x, {}, weight, epsilon, {}, out, rstd);
}

Status CudaBackend::AddRmsNormForward(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                                      float epsilon, TensorView sum, TensorView out,
                                      TensorView rstd) {
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "a", a, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "b", b, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "sum", sum, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckRows("AddRmsNormForward", out, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckSameSize("AddRmsNormForward", "weight", weight, sum.cols));
  RETURN_IF_ERROR(CheckSameSize("AddRmsNormForward", "rstd", rstd, sum.rows));
  if (sum.size() == 0) return OkStatus();
  return Norm("AddRmsNormForward", a, b, weight, epsilon, sum, out, rstd);
}

Status CudaBackend::RmsNormBackward(ConstTensorView dout, ConstTensorView x, ConstTensorView weight,
                                    ConstTensorView rstd, TensorView dx, bool accumulate_dx,
                                    TensorView dweight) {
  const int64_t rows = x.rows;
  const int64_t width = x.cols;
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "x", x, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "dout", dout, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "dx", dx, rows, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "weight", weight, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "rstd", rstd, rows));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "dweight", dweight, width));
  if (x.size() == 0) return OkStatus();
  const int64_t chunks = (rows + kNormChunkRows - 1) / kNormChunkRows;
  RETURN_IF_ERROR(norm_partials_.Reserve(*this, chunks * width * 4));
  auto* const partials = static_cast<float*>(norm_partials_.data());
  const NormGradientTask task{dout.f32(), x.f32(),       weight.f32(), rstd.f32(), rows,
                              width,      accumulate_dx, dx.f32(),     partials};
  RETURN_IF_ERROR(
      WithHeldRow(width, {dout.data, x.data, weight.data, dx.data}, [&](auto fours, auto whole) {
        RmsNormBackwardKernel<decltype(fours)::value, decltype(whole)::value>
            <<<static_cast<unsigned>(chunks), kThreads, 0, stream_>>>(task);
        return LaunchStatus("RmsNormBackward");
      }));
  FoldPartialsKernel<<<static_cast<unsigned>((width + kFoldColumns - 1) / kFoldColumns), kThreads,
                       0, stream_>>>(partials, chunks, width, dweight.f32());
  return LaunchStatus("RmsNormBackward");
}

Status CudaBackend::Rope(const RopeParams& params, ConstTensorView x, TensorView out, float sign) {
  if (params.head_dim <= 0 || params.head_dim % 2 != 0 || params.position_offset < 0 ||
      !(params.theta > 0)) {
    return InvalidArgumentError(StrFormat(
        "Rope: head_dim %lld, position_offset %lld, theta %g; head_dim must be even and positive, "
        "the offset at least 0, theta above 0",
        static_cast<long long>(params.head_dim), static_cast<long long>(params.position_offset),
        params.theta));
  }
  RETURN_IF_ERROR(
      CheckView("Rope", "x", x, params.batch * params.seq, params.heads * params.head_dim));
  RETURN_IF_ERROR(CheckRows("Rope", out, x.rows, x.cols));
  if (x.size() == 0) return OkStatus();
  RETURN_IF_ERROR(MakeRopeTable(params, params.position_offset + params.seq));
  return WithOut(out, [&](auto* to) {
    using Out = std::remove_pointer_t<decltype(to)>;
    const RopeTask<Out> task{x.f32(),
                             to,
                             static_cast<const float*>(rope_table_.data()),
                             x.rows,
                             params.seq,
                             params.position_offset,
                             static_cast<int>(params.heads),
                             static_cast<int>(params.head_dim),
                             sign};
    const auto kernel =
        InFours(params.head_dim / 2, {x.data, to}) ? RopeKernel<4, Out> : RopeKernel<1, Out>;
    kernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(task);
    return LaunchStatus("Rope");
  });
}

// Positions [0, positions) in rope_table_; nothing to do where they are there.
Status CudaBackend::MakeRopeTable(const RopeParams& params, int64_t positions) {
  const bool same = rope_head_dim_ == params.head_dim && rope_theta_ == params.theta;
  if (same && positions <= rope_positions_) return OkStatus();
  rope_positions_ = 0;
  RETURN_IF_ERROR(rope_table_.Reserve(*this, positions * params.head_dim * 4));
  RETURN_IF_ERROR(
      ForEach(stream_, "Rope", positions * params.head_dim / 2,
              RopeTableOp{params.theta, params.head_dim, static_cast<float*>(rope_table_.data())}));
  rope_positions_ = positions;
  rope_head_dim_ = params.head_dim;
  rope_theta_ = params.theta;
  return OkStatus();
}

Status CudaBackend::RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) {
  return Rope(params, x, out, 1.0f);
}
Status CudaBackend::RopeBackward(const RopeParams& params, TensorView dx) {
  return Rope(params, dx, dx, -1.0f);
}

}  // namespace nibble::cuda
