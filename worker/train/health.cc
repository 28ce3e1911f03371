// SPDX-License-Identifier: Apache-2.0
#include "worker/train/health.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// Merges the measurements of one class.
class Merge {
 public:
  void Add(const QuantizationHealth& h) {
    if (h.elements == 0) return;
    const auto n = static_cast<double>(h.elements);
    scale_min_ = elements_ == 0 ? h.scale_min : std::min(scale_min_, h.scale_min);
    scale_max_ = elements_ == 0 ? h.scale_max : std::max(scale_max_, h.scale_max);
    elements_ += n;
    underflow_ += n * h.underflow_share;
    saturation_ += n * h.saturation_share;
    squared_error_ += n * h.mse;
    cosine_ += n * h.cosine;
    source_energy_ += h.source_norm * h.source_norm;
    noise_energy_ += h.noise_norm * h.noise_norm;
    nonfinite_amax_ += h.nonfinite_amax;
  }

  bool empty() const { return elements_ == 0; }

  HealthRecord Record(int64_t step, std::string tensor_class, bool is_gradient) const {
    HealthRecord r;
    r.step = step;
    r.tensor_class = std::move(tensor_class);
    r.underflow_ratio = underflow_ / elements_;
    r.saturation_ratio = saturation_ / elements_;
    r.mse = squared_error_ / elements_;
    r.cosine = cosine_ / elements_;
    r.snr_db = Snr();
    r.scale_min = scale_min_;
    r.scale_max = scale_max_;
    r.nonfinite_amax = nonfinite_amax_;
    if (is_gradient) r.grad_noise_ratio = SignalToNoise();
    return r;
  }

 private:
  double SignalToNoise() const {
    if (noise_energy_ <= 0) return kMaxGradientToNoise;
    return std::min(std::sqrt(source_energy_ / noise_energy_), kMaxGradientToNoise);
  }
  double Snr() const {
    if (noise_energy_ <= 0) return kMaxSnrDb;
    if (source_energy_ <= 0) return 0;
    return std::min(10.0 * std::log10(source_energy_ / noise_energy_), kMaxSnrDb);
  }

  double elements_ = 0;
  double underflow_ = 0;
  double saturation_ = 0;
  double squared_error_ = 0;
  double cosine_ = 0;
  double source_energy_ = 0;
  double noise_energy_ = 0;
  double scale_min_ = 0;
  double scale_max_ = 0;
  int64_t nonfinite_amax_ = 0;
};

}  // namespace

std::vector<HealthRecord> CollectHealth(const Model& model, int64_t step) {
  std::vector<HealthRecord> records;
  const int64_t layers = model.options().model.layers;
  for (const int64_t layer : model.SampledBlocks()) {
    const TransformerBlock& block = model.blocks()[static_cast<size_t>(layer)];
    Merge activation, weight, gradient;
    for (const LinearInput& input : block.inputs()) activation.Add(input.health());
    for (const QuantizedLinear& linear : block.linears()) {
      weight.Add(linear.health().weight);
      gradient.Add(linear.health().gradient);
    }
    const std::string place = PlaceOfLayer(layer, layers);
    if (!activation.empty())
      records.push_back(activation.Record(step, "activation_" + place, false));
    if (!weight.empty()) records.push_back(weight.Record(step, "weight_" + place, false));
    if (!gradient.empty()) records.push_back(gradient.Record(step, "gradient_" + place, true));
  }
  return records;
}

}  // namespace nibble
