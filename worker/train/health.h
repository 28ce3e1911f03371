// SPDX-License-Identifier: Apache-2.0
//
// Health: quantization health of a sampled step, one record per tensor class.
// Thread-safety: free functions; one thread, the backend's caller.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "worker/spec/journal.h"
#include "worker/train/model.h"

namespace nibble {

// Measurements of several tensors as one: shares, mse and cosine are means weighted by elements,
// SNR and the gradient-to-noise ratio come from the summed energies, scales are the extremes.
// Value type.
class HealthSum {
 public:
  void Add(const QuantizationHealth& health);  // nothing when it has no elements
  bool empty() const { return elements_ == 0; }
  // grad_noise_ratio only for gradients. Precondition: !empty().
  HealthRecord Record(int64_t step, std::string tensor_class, bool is_gradient) const;

  // Norm over the norm of the quantization error, at most kMaxGradientToNoise.
  double SignalToNoise() const;

 private:
  double SnrDb() const;

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

// Norm of the sampled blocks' gradients dY over the norm of their quantization error in that pass;
// nothing when no gradient was quantized.
std::optional<double> GradientToNoise(const Model& model);

// Records of the last pass with measure_health: activation, weight and gradient of the attention
// and of the MLP of the first, middle and last block, where they are quantized at all. Classes are
// named "activation_attention_first" and so on, at most kHealthClasses.
std::vector<HealthRecord> CollectHealth(const Model& model, int64_t step);

}  // namespace nibble
