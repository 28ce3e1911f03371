// SPDX-License-Identifier: Apache-2.0
//
// Quantization health: how far a decoded operand is from its source.
#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"
#include "kernels/health.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 16384;
constexpr int64_t kRun = 256;  // elements whose limits are laid out at once
constexpr int kLanes = 8;      // partial sums, so that loops are vectors in any instruction set

// The largest magnitude that the scale of each element still reaches.
class Limits {
 public:
  explicit Limits(const QuantizedTensor& x) : x_(x), enc_(static_cast<const float*>(x.enc.data())) {
    // A recast leaves E4M3 codes of E2M1 values, whose scales these are. A compensated outlier is
    // not lost, so it does not count as saturated. Folded values have scales of their own amax.
    largest_ = ElemMax(x.recast_enc != 0 ? Elem::kE2M1 : x.elem);
    unlimited_ = x.comp != OccComp::kNone || x.folded || largest_ == 0;
  }

  // Elements [first, first + n) of a stored row.
  void Fill(int64_t row, int64_t first, int64_t n, float* limits) const {
    if (unlimited_ || (x_.block != Block::kGroup && x_.block != Block::kTile && !x_.per_column())) {
      const float limit =
          unlimited_ ? formats::BitsFloat(formats::kInfinityBits) : LimitOf(x_.per_row() ? row : 0);
      std::fill_n(limits, n, limit);
      return;
    }
    if (x_.per_column()) {
      for (int64_t i = 0; i < n; ++i) limits[i] = LimitOf(first + i);
      return;
    }
    const auto groups = [&](int64_t extent) { return (extent + x_.group - 1) / x_.group; };
    const bool by_column = x_.block == Block::kGroup && x_.contraction == Axis::kRows;
    const int64_t line = x_.block == Block::kTile ? row / x_.group : row;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t col = first + i;
      limits[i] = LimitOf(by_column ? col * groups(x_.rows) + row / x_.group
                                    : line * groups(x_.cols) + col / x_.group);
    }
  }

  // What an element is multiplied by before rounding.
  float Multiplier(int64_t group) const {
    return x_.scale == ScaleRule::kQuest ? 1.0f / enc_[group] : enc_[group];
  }

 private:
  float LimitOf(int64_t group) const { return largest_ / Multiplier(group) * kSaturationSlack; }

  const QuantizedTensor& x_;
  const float* enc_;
  float largest_;
  bool unlimited_;
};

// Partial sums of one row.
struct LaneSums {
  double xx[kLanes] = {}, qq[kLanes] = {}, xq[kLanes] = {}, error[kLanes] = {};
  int32_t underflow[kLanes] = {}, saturated[kLanes] = {};
};

inline void MeasureElement(float source, float decoded, float limit, int lane, LaneSums* sums) {
  const float value = formats::RoundBf16(source);
  const double a = static_cast<double>(value);
  const double b = static_cast<double>(decoded);
  sums->xx[lane] += a * a;
  sums->qq[lane] += b * b;
  sums->xq[lane] += a * b;
  sums->error[lane] += (a - b) * (a - b);
  sums->underflow[lane] += value != 0.0f && decoded == 0.0f ? 1 : 0;
  sums->saturated[lane] += formats::Magnitude(value) > limit ? 1 : 0;
}

NIBBLE_LOOP void MeasureRun(const float* x, const float* decoded, const float* limits, int64_t n,
                            LaneSums* sums) {
  LaneSums local = *sums;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      MeasureElement(x[i + lane], decoded[i + lane], limits[i + lane], lane, &local);
    }
  }
  for (; i < n; ++i)
    MeasureElement(x[i], decoded[i], limits[i], static_cast<int>(i % kLanes), &local);
  *sums = local;
}

HealthTotals MeasureRow(const Limits& limits, int64_t row, const float* x, const float* decoded,
                        int64_t n) {
  LaneSums lanes;
  float run_limits[kRun];
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t count = std::min(kRun, n - first);
    limits.Fill(row, first, count, run_limits);
    Cloned<MeasureRun>(x + first, decoded + first, run_limits, count, &lanes);
  }
  HealthTotals sums;
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.xx += lanes.xx[lane];
    sums.qq += lanes.qq[lane];
    sums.xq += lanes.xq[lane];
    sums.error += lanes.error[lane];
    sums.underflow += lanes.underflow[lane];
    sums.saturated += lanes.saturated[lane];
  }
  return sums;
}

}  // namespace

Result<QuantizationHealth> CpuBackend::MeasureHealth(ConstTensorView x,
                                                     const QuantizedTensor& quantized,
                                                     ConstTensorView decoded) {
  const int64_t cols = quantized.cols;
  RETURN_IF_ERROR(CheckView("MeasureHealth", "x", x, quantized.rows, cols));
  RETURN_IF_ERROR(CheckView("MeasureHealth", "decoded", decoded, quantized.rows, cols));
  const int64_t rows_per_chunk =
      std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, cols));
  const int64_t chunks = (quantized.rows + rows_per_chunk - 1) / rows_per_chunk;
  RETURN_IF_ERROR(
      reduce_partials_.Reserve(*this, chunks * static_cast<int64_t>(sizeof(HealthTotals))));
  HealthTotals* partials = static_cast<HealthTotals*>(reduce_partials_.data());
  const Limits limits(quantized);
  pool_.RunRanges(quantized.rows, rows_per_chunk, [&](int64_t first, int64_t last, int) {
    HealthTotals sums;
    for (int64_t row = first; row < last; ++row) {
      const int64_t start = row * cols;
      sums += MeasureRow(limits, row, x.f32() + start, decoded.f32() + start, cols);
    }
    partials[first / rows_per_chunk] = sums;
  });
  HealthTotals total;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk];
  QuantizationHealth health = HealthFrom(total, quantized);
  const int64_t groups = quantized.scale_count();
  for (int64_t group = 0; group < groups; ++group) {
    const auto multiplier = static_cast<double>(limits.Multiplier(group));
    health.scale_min = group == 0 ? multiplier : std::min(health.scale_min, multiplier);
    health.scale_max = group == 0 ? multiplier : std::max(health.scale_max, multiplier);
  }
  return health;
}

}  // namespace nibble::cpu
