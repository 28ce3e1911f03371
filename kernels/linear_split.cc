// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_split.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kChannelGroup = 128;
constexpr int kPartBlock = 32;  // elements of one E8M0 scale

// FNV-1a over the columns.
uint64_t NumberOf(const std::vector<int64_t>& channels) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int64_t channel : channels) {
    hash = (hash ^ static_cast<uint64_t>(channel)) * 0x100000001B3u;
  }
  return hash == 0 ? 1 : hash;
}

}  // namespace

Result<TensorView> OperandSplit::Ones(Backend& backend, int64_t count) {
  ASSIGN_OR_RETURN(const TensorView ones, ones_.View(backend, 1, count));
  RETURN_IF_ERROR(backend.Fill(ones, 1.0f));
  return ones;
}

Status OperandSplit::TakeMean(Backend& backend, const Quant& quant, ConstTensorView x,
                              TensorView rest) {
  if (quant.split_elem != Elem::kBf16 && quant.split_elem != Elem::kF32) {
    return InvalidArgumentError("split mean: the mean is kept in bf16 or fp32, not " +
                                ElemName(quant.split_elem));
  }
  ASSIGN_OR_RETURN(const TensorView mean, mean_.View(backend, 1, x.cols));
  ASSIGN_OR_RETURN(const TensorView ones, Ones(backend, x.rows));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, ones, Transpose::kNo, x, Transpose::kNo, false, mean));
  RETURN_IF_ERROR(backend.Scale(1.0f / static_cast<float>(x.rows), mean));
  if (quant.split_elem == Elem::kBf16) RETURN_IF_ERROR(backend.RoundToBf16(mean, mean));
  RETURN_IF_ERROR(backend.Copy(rest.data, x.data, x.size_bytes()));
  RETURN_IF_ERROR(backend.Scale(-1.0f, mean));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, ones, Transpose::kYes, mean, Transpose::kNo, true, rest));
  return backend.Scale(-1.0f, mean);
}

Status OperandSplit::ChooseChannels(Backend& backend, float share, ConstTensorView x) {
  host_.resize(static_cast<size_t>(x.size()));
  RETURN_IF_ERROR(backend.CopyOut(host_.data(), x.data, x.size_bytes()));
  std::vector<double> squares(static_cast<size_t>(x.cols), 0.0);
  for (int64_t i = 0; i < x.size(); ++i) {
    const double value = static_cast<double>(host_[static_cast<size_t>(i)]);
    squares[static_cast<size_t>(i % x.cols)] += value * value;
  }
  const double wanted = static_cast<double>(share) * static_cast<double>(x.cols);
  const int64_t groups = static_cast<int64_t>(std::ceil(wanted / kChannelGroup));
  const int64_t count = std::min(x.cols, groups * kChannelGroup);
  channels_.resize(static_cast<size_t>(x.cols));
  std::iota(channels_.begin(), channels_.end(), int64_t{0});
  // NaN norms count as largest; ties go to the lower column.
  std::stable_sort(channels_.begin(), channels_.end(), [&](int64_t a, int64_t b) {
    const double left = squares[static_cast<size_t>(a)], right = squares[static_cast<size_t>(b)];
    if (std::isnan(left) || std::isnan(right)) return std::isnan(left) && !std::isnan(right);
    return left > right;
  });
  channels_.resize(static_cast<size_t>(count));
  std::sort(channels_.begin(), channels_.end());
  return OkStatus();
}

Status OperandSplit::TakeChannels(Backend& backend, const Quant& quant,
                                  const QuantizeContext& context, ConstTensorView x,
                                  const OperandSplit* set_of, TensorView rest) {
  if (set_of != nullptr) {
    channels_ = set_of->channels_;
  } else {
    RETURN_IF_ERROR(ChooseChannels(backend, quant.split_share, x));
  }
  const uint64_t number = NumberOf(channels_);
  const int64_t count = static_cast<int64_t>(channels_.size());
  if (count == 0 || channels_.back() >= x.cols) {
    return InvalidArgumentError(StrFormat("split channels: %lld columns of %lld",
                                          static_cast<long long>(count),
                                          static_cast<long long>(x.cols)));
  }
  ASSIGN_OR_RETURN(const TensorView choice, choice_.View(backend, x.cols, count));
  if (number != set_number_) {
    host_.assign(static_cast<size_t>(x.cols * count), 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      host_[static_cast<size_t>(channels_[static_cast<size_t>(i)] * count + i)] = 1.0f;
    }
    RETURN_IF_ERROR(backend.CopyIn(choice.data, host_.data(), choice.size_bytes()));
    set_number_ = number;
  }
  ASSIGN_OR_RETURN(const TensorView part, part_.View(backend, x.rows, count));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, x, Transpose::kNo, choice, Transpose::kNo, false, part));
  RETURN_IF_ERROR(backend.Copy(rest.data, x.data, x.size_bytes()));
  RETURN_IF_ERROR(backend.Scale(-1.0f, part));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, part, Transpose::kNo, choice, Transpose::kYes, true, rest));
  RETURN_IF_ERROR(backend.Scale(-1.0f, part));
  Quant format;
  format.elem = quant.split_elem;
  format.block = Block::kGroup;
  format.group = kPartBlock;
  format.scale = ScaleRule::kE8Up;
  format.scale_max = ElemMax(quant.split_elem);
  return backend.Quantize(format, context, part, &codes_, {});
}

Status OperandSplit::Take(Backend& backend, const Quant& quant, const QuantizeContext& context,
                          ConstTensorView x, const OperandSplit* set_of, TensorView rest) {
  split_ = quant.split;
  rows_ = x.rows;
  cols_ = x.cols;
  if (split_ == Split::kMean) return TakeMean(backend, quant, x, rest);
  return TakeChannels(backend, quant, context, x, set_of, rest);
}

Status OperandSplit::AddTo(Backend& backend, TensorView decoded) {
  if (split_ == Split::kMean) {
    ASSIGN_OR_RETURN(const TensorView mean, mean_.View(backend, 1, cols_));
    ASSIGN_OR_RETURN(const TensorView ones, Ones(backend, rows_));
    return backend.Gemm(GemmMode::kF32, ones, Transpose::kYes, mean, Transpose::kNo, true, decoded);
  }
  const int64_t count = static_cast<int64_t>(channels_.size());
  ASSIGN_OR_RETURN(const TensorView choice, choice_.View(backend, cols_, count));
  ASSIGN_OR_RETURN(const TensorView part, part_.View(backend, rows_, count));
  RETURN_IF_ERROR(backend.Dequantize(codes_, part));
  return backend.Gemm(GemmMode::kF32, part, Transpose::kNo, choice, Transpose::kYes, true, decoded);
}

}  // namespace nibble
