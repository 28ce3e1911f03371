// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_split.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/strings.h"
#include "kernels/formats/bf16.h"

namespace nibble {
namespace {

constexpr int64_t kChannelGroup = 128;
constexpr int kPartBlock = 32;  // elements of one E8M0 scale

}  // namespace

// FNV-1a over the columns.
uint64_t ChannelSetNumber(const std::vector<int64_t>* channels) {
  if (channels == nullptr || channels->empty()) return 0;
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int64_t channel : *channels) {
    hash = (hash ^ static_cast<uint64_t>(channel)) * 0x100000001B3u;
  }
  return hash == 0 ? 1 : hash;
}

std::vector<int64_t> LargestChannels(const std::vector<float>& norms, float share) {
  const auto columns = static_cast<int64_t>(norms.size());
  const double wanted = static_cast<double>(share) * static_cast<double>(columns);
  const int64_t groups = static_cast<int64_t>(std::ceil(wanted / kChannelGroup));
  std::vector<int64_t> channels(norms.size());
  std::iota(channels.begin(), channels.end(), int64_t{0});
  std::stable_sort(channels.begin(), channels.end(), [&](int64_t a, int64_t b) {
    const float left = norms[static_cast<size_t>(a)], right = norms[static_cast<size_t>(b)];
    if (std::isnan(left) || std::isnan(right)) return std::isnan(left) && !std::isnan(right);
    return left > right;
  });
  channels.resize(static_cast<size_t>(std::min(columns, groups * kChannelGroup)));
  std::sort(channels.begin(), channels.end());
  return channels;
}

Status AddChannelNorms(Backend& backend, ConstTensorView x, std::vector<float>* sums) {
  std::vector<float> host(static_cast<size_t>(x.size()));
  if (x.dtype == DType::kBF16) {
    std::vector<uint16_t> bits(host.size());
    RETURN_IF_ERROR(backend.CopyOut(bits.data(), x.data, x.size_bytes()));
    std::transform(bits.begin(), bits.end(), host.begin(), formats::FromBf16);
  } else {
    RETURN_IF_ERROR(backend.CopyOut(host.data(), x.data, x.size_bytes()));
  }
  std::vector<double> squares(static_cast<size_t>(x.cols), 0.0);
  for (int64_t i = 0; i < x.size(); ++i) {
    const double value = static_cast<double>(host[static_cast<size_t>(i)]);
    squares[static_cast<size_t>(i % x.cols)] += value * value;
  }
  sums->resize(squares.size(), 0.0f);
  for (size_t c = 0; c < squares.size(); ++c) {
    (*sums)[c] += static_cast<float>(std::sqrt(squares[c]));
  }
  return OkStatus();
}

void OperandSplit::Clear() {
  split_ = Split::kNone;
  channels_.clear();
  set_number_ = 0;
  nonfinite_amax_ = 0;
}

Result<TensorView> OperandSplit::Ones(Backend& backend, int64_t count) {
  ASSIGN_OR_RETURN(const TensorView ones, ones_.View(backend, 1, count));
  RETURN_IF_ERROR(backend.Fill(ones, 1.0f));
  return ones;
}

Status OperandSplit::RoundPart(Backend& backend, const Quant& quant, const QuantizeContext& context,
                               TensorView part) {
  nonfinite_amax_ = 0;
  if (quant.split_elem == Elem::kF32) return OkStatus();
  if (quant.split_elem == Elem::kBf16) return backend.RoundToBf16(part, part);
  Quant format;
  format.elem = quant.split_elem;
  format.block = Block::kGroup;
  format.group = kPartBlock;
  format.scale = ScaleRule::kE8Up;
  format.scale_max = ElemMax(quant.split_elem);
  QuantizeContext plain = context;
  plain.keep_codes = false;
  plain.history = nullptr;
  RETURN_IF_ERROR(backend.Quantize(format, plain, part, &codes_, part));
  nonfinite_amax_ = codes_.nonfinite_amax;
  return OkStatus();
}

Status OperandSplit::TakeMean(Backend& backend, const Quant& quant, const QuantizeContext& context,
                              ConstTensorView x, TensorView rest) {
  ASSIGN_OR_RETURN(const TensorView mean, part_.View(backend, 1, x.cols));
  ASSIGN_OR_RETURN(const TensorView ones, Ones(backend, x.rows));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, ones, Transpose::kNo, x, Transpose::kNo, false, mean));
  RETURN_IF_ERROR(backend.Scale(1.0f / static_cast<float>(x.rows), mean));
  // Groups run along the row, whichever way the slot's own run.
  QuantizeContext along = context;
  along.contraction = Axis::kCols;
  RETURN_IF_ERROR(RoundPart(backend, quant, along, mean));
  if (rest.data != x.data) RETURN_IF_ERROR(backend.Copy(rest.data, x.data, x.size_bytes()));
  RETURN_IF_ERROR(backend.Scale(-1.0f, mean));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, ones, Transpose::kYes, mean, Transpose::kNo, true, rest));
  return backend.Scale(-1.0f, mean);
}

Status OperandSplit::TakeChannels(Backend& backend, const Quant& quant,
                                  const QuantizeContext& context, ConstTensorView x,
                                  const std::vector<int64_t>* channels, TensorView rest) {
  if (channels != nullptr) {
    channels_ = *channels;
  } else {
    host_.clear();
    RETURN_IF_ERROR(AddChannelNorms(backend, x, &host_));
    channels_ = LargestChannels(host_, quant.split_share);
  }
  set_number_ = ChannelSetNumber(&channels_);
  const int64_t count = static_cast<int64_t>(channels_.size());
  if (count == 0 || channels_.back() >= x.cols) {
    return InvalidArgumentError(StrFormat("split channels: %lld columns of %lld",
                                          static_cast<long long>(count),
                                          static_cast<long long>(x.cols)));
  }
  ASSIGN_OR_RETURN(const TensorView choice, choice_.View(backend, x.cols, count));
  if (set_number_ != choice_number_) {
    host_.assign(static_cast<size_t>(x.cols * count), 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      host_[static_cast<size_t>(channels_[static_cast<size_t>(i)] * count + i)] = 1.0f;
    }
    RETURN_IF_ERROR(backend.CopyIn(choice.data, host_.data(), choice.size_bytes()));
    choice_number_ = set_number_;
  }
  ASSIGN_OR_RETURN(const TensorView part, part_.View(backend, x.rows, count));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, x, Transpose::kNo, choice, Transpose::kNo, false, part));
  if (rest.data != x.data) RETURN_IF_ERROR(backend.Copy(rest.data, x.data, x.size_bytes()));
  RETURN_IF_ERROR(backend.Scale(-1.0f, part));
  RETURN_IF_ERROR(
      backend.Gemm(GemmMode::kF32, part, Transpose::kNo, choice, Transpose::kYes, true, rest));
  RETURN_IF_ERROR(backend.Scale(-1.0f, part));
  return RoundPart(backend, quant, context, part);
}

Status OperandSplit::Take(Backend& backend, const Quant& quant, const QuantizeContext& context,
                          ConstTensorView x, const std::vector<int64_t>* channels,
                          TensorView rest) {
  split_ = quant.split;
  rows_ = x.rows;
  cols_ = x.cols;
  if (split_ == Split::kMean) return TakeMean(backend, quant, context, x, rest);
  return TakeChannels(backend, quant, context, x, channels, rest);
}

Status OperandSplit::AddTo(Backend& backend, TensorView decoded) {
  if (split_ == Split::kMean) {
    ASSIGN_OR_RETURN(const TensorView mean, part_.View(backend, 1, cols_));
    ASSIGN_OR_RETURN(const TensorView ones, Ones(backend, rows_));
    return backend.Gemm(GemmMode::kF32, ones, Transpose::kYes, mean, Transpose::kNo, true, decoded);
  }
  const int64_t count = static_cast<int64_t>(channels_.size());
  ASSIGN_OR_RETURN(const TensorView choice, choice_.View(backend, cols_, count));
  ASSIGN_OR_RETURN(const TensorView part, part_.View(backend, rows_, count));
  return backend.Gemm(GemmMode::kF32, part, Transpose::kNo, choice, Transpose::kYes, true, decoded);
}

}  // namespace nibble
