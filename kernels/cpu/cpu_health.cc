// SPDX-License-Identifier: Apache-2.0
//
// Quantization health: how far a decoded operand is from its source.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/formats/bf16.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 16384;

struct Sums {
  double xx = 0, qq = 0, xq = 0, error = 0;
  int64_t underflow = 0, saturated = 0;
};

// Rounding of enc may push the amax itself past the largest code by an ulp: no saturation.
constexpr float kUlpSlack = 1.0f + 0x1p-20f;

Sums MeasureRow(const float* x, const float* decoded, float limit, int64_t n) {
  Sums sums;
  for (int64_t i = 0; i < n; ++i) {
    const float value = formats::RoundBf16(x[i]);
    const double a = static_cast<double>(value);
    const double b = static_cast<double>(decoded[i]);
    sums.xx += a * a;
    sums.qq += b * b;
    sums.xq += a * b;
    sums.error += (a - b) * (a - b);
    sums.underflow += value != 0.0f && decoded[i] == 0.0f ? 1 : 0;
    sums.saturated += formats::Magnitude(value) > limit ? 1 : 0;
  }
  return sums;
}

void AddSums(const Sums& from, Sums* to) {
  to->xx += from.xx;
  to->qq += from.qq;
  to->xq += from.xq;
  to->error += from.error;
  to->underflow += from.underflow;
  to->saturated += from.saturated;
}

void FillHealth(const Sums& sums, int64_t elements, QuantizationHealth* health) {
  const double count = std::max(1.0, static_cast<double>(elements));
  health->elements = elements;
  health->underflow_share = static_cast<double>(sums.underflow) / count;
  health->saturation_share = static_cast<double>(sums.saturated) / count;
  health->mse = sums.error / count;
  health->source_norm = std::sqrt(sums.xx);
  health->noise_norm = std::sqrt(sums.error);
  // No error at all has no finite ratio: the cap stands for it.
  health->snr_db = kMaxSnrDb;
  if (sums.error > 0) {
    const double ratio = sums.xx > 0 ? 10.0 * std::log10(sums.xx / sums.error) : -kMaxSnrDb;
    health->snr_db = std::clamp(ratio, -kMaxSnrDb, kMaxSnrDb);
  }
  const double norms = std::sqrt(sums.xx) * std::sqrt(sums.qq);
  health->cosine = norms > 0 ? sums.xq / norms : (sums.xx == sums.qq ? 1.0 : 0.0);
}

}  // namespace

Result<QuantizationHealth> CpuBackend::MeasureHealth(ConstTensorView x,
                                                     const QuantizedTensor& quantized,
                                                     ConstTensorView decoded) {
  const int64_t cols = quantized.cols;
  RETURN_IF_ERROR(CheckView("MeasureHealth", "x", x, quantized.rows, cols));
  RETURN_IF_ERROR(CheckView("MeasureHealth", "decoded", decoded, quantized.rows, cols));
  const float* enc = static_cast<const float*>(quantized.enc.data());
  const int64_t rows_per_chunk =
      std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, cols));
  const int64_t chunks = (quantized.rows + rows_per_chunk - 1) / rows_per_chunk;
  RETURN_IF_ERROR(reduce_partials_.Reserve(*this, chunks * static_cast<int64_t>(sizeof(Sums))));
  Sums* partials = static_cast<Sums*>(reduce_partials_.data());
  // A compensated outlier is not lost, so it does not count as saturated. Scales by column and
  // folded ones come from the amax of the values themselves: nothing lies above them.
  const bool compensated =
      quantized.comp != OccComp::kNone || quantized.per_column() || quantized.folded;
  const float largest = ElemMax(quantized.elem);
  pool_.RunRanges(quantized.rows, rows_per_chunk, [&](int64_t first, int64_t last, int) {
    Sums sums;
    for (int64_t row = first; row < last; ++row) {
      const float scale = enc[quantized.per_row() ? row : 0];
      const float limit = compensated || largest == 0 ? formats::BitsFloat(formats::kInfinityBits)
                                                      : largest / scale * kUlpSlack;
      AddSums(MeasureRow(x.f32() + row * cols, decoded.f32() + row * cols, limit, cols), &sums);
    }
    partials[first / rows_per_chunk] = sums;
  });
  Sums total;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) AddSums(partials[chunk], &total);
  QuantizationHealth health;
  FillHealth(total, quantized.rows * cols, &health);
  if (quantized.scale_count() > 0) {
    const auto [low, high] = std::minmax_element(enc, enc + quantized.scale_count());
    health.scale_min = static_cast<double>(*low);
    health.scale_max = static_cast<double>(*high);
  }
  health.size_bytes = quantized.size_bytes();
  health.nonfinite_amax = quantized.nonfinite_amax;
  return health;
}

}  // namespace nibble::cpu
