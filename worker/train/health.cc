// SPDX-License-Identifier: Apache-2.0
#include "worker/train/health.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble {
namespace {

// Layers of a block in forward order: the attention's come first.
constexpr size_t kAttentionLinears = 4;  // query, key, value, output

struct BlockSums {
  HealthSum activation, weight, gradient;
};

// Of the attention, or else of the MLP.
BlockSums SumsOf(const TransformerBlock& block, bool attention) {
  BlockSums sums;
  for (size_t i = 0; i < block.inputs().size(); ++i) {
    if (block.is_attention_input(i) == attention) sums.activation.Add(block.inputs()[i].health());
  }
  for (size_t i = 0; i < block.linears().size(); ++i) {
    if ((i < kAttentionLinears) != attention) continue;
    sums.weight.Add(block.linears()[i].health().weight);
    sums.gradient.Add(block.linears()[i].health().gradient);
    sums.gradient.Add(block.linears()[i].health().gradient_wgrad);
  }
  return sums;
}

}  // namespace

void HealthSum::Add(const QuantizationHealth& h) {
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

HealthRecord HealthSum::Record(int64_t step, std::string tensor_class, bool is_gradient) const {
  HealthRecord r;
  r.step = step;
  r.tensor_class = std::move(tensor_class);
  r.underflow_ratio = underflow_ / elements_;
  r.saturation_ratio = saturation_ / elements_;
  r.mse = squared_error_ / elements_;
  r.cosine = cosine_ / elements_;
  r.snr_db = SnrDb();
  r.scale_min = scale_min_;
  r.scale_max = scale_max_;
  r.nonfinite_amax = nonfinite_amax_;
  if (is_gradient) r.grad_noise_ratio = SignalToNoise();
  return r;
}

double HealthSum::SignalToNoise() const {
  if (noise_energy_ <= 0) return kMaxGradientToNoise;
  return std::min(std::sqrt(source_energy_ / noise_energy_), kMaxGradientToNoise);
}

double HealthSum::SnrDb() const {
  if (noise_energy_ <= 0) return kMaxSnrDb;
  if (source_energy_ <= 0) return 0;
  return std::min(10.0 * std::log10(source_energy_ / noise_energy_), kMaxSnrDb);
}

std::optional<double> GradientToNoise(const Model& model) {
  HealthSum sum;
  for (const int64_t layer : model.SampledBlocks()) {
    for (const QuantizedLinear& linear : model.blocks()[static_cast<size_t>(layer)].linears()) {
      sum.Add(linear.health().gradient);
      sum.Add(linear.health().gradient_wgrad);
    }
  }
  if (sum.empty()) return std::nullopt;
  return sum.SignalToNoise();
}

std::vector<HealthRecord> CollectHealth(const Model& model, int64_t step) {
  std::vector<HealthRecord> records;
  const int64_t layers = model.options().model.layers;
  const auto add = [&](const HealthSum& sum, const std::string& tensor_class, bool is_gradient) {
    if (!sum.empty()) records.push_back(sum.Record(step, tensor_class, is_gradient));
  };
  for (const int64_t layer : model.SampledBlocks()) {
    const TransformerBlock& block = model.blocks()[static_cast<size_t>(layer)];
    for (const bool attention : {true, false}) {
      const BlockSums sums = SumsOf(block, attention);
      const std::string rest =
          std::string(attention ? "_attention_" : "_mlp_") + PlaceOfLayer(layer, layers);
      add(sums.activation, "activation" + rest, false);
      add(sums.weight, "weight" + rest, false);
      add(sums.gradient, "gradient" + rest, true);
    }
  }
  return records;
}

}  // namespace nibble
