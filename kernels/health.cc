// SPDX-License-Identifier: Apache-2.0
#include "kernels/health.h"

#include <algorithm>
#include <cmath>

namespace nibble {

HealthTotals& HealthTotals::operator+=(const HealthTotals& other) {
  xx += other.xx;
  qq += other.qq;
  xq += other.xq;
  error += other.error;
  underflow += other.underflow;
  saturated += other.saturated;
  return *this;
}

QuantizationHealth HealthFrom(const HealthTotals& totals, const QuantizedTensor& quantized) {
  QuantizationHealth health;
  health.elements = quantized.rows * quantized.cols;
  const double count = std::max(1.0, static_cast<double>(health.elements));
  health.underflow_share = static_cast<double>(totals.underflow) / count;
  health.saturation_share = static_cast<double>(totals.saturated) / count;
  health.mse = totals.error / count;
  health.source_norm = std::sqrt(totals.xx);
  health.noise_norm = std::sqrt(totals.error);
  // No error at all has no finite ratio: the cap stands for it.
  health.snr_db = kMaxSnrDb;
  if (totals.error > 0) {
    const double ratio = totals.xx > 0 ? 10.0 * std::log10(totals.xx / totals.error) : -kMaxSnrDb;
    health.snr_db = std::clamp(ratio, -kMaxSnrDb, kMaxSnrDb);
  }
  const double norms = std::sqrt(totals.xx) * std::sqrt(totals.qq);
  health.cosine = norms > 0 ? totals.xq / norms : (totals.xx == totals.qq ? 1.0 : 0.0);
  health.size_bytes = quantized.size_bytes();
  health.nonfinite_amax = quantized.nonfinite_amax;
  return health;
}

}  // namespace nibble
