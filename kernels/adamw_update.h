// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of one AdamW update with an FP32 state (arXiv 1711.05101, algorithm 2): one
// definition for every backend, host and device, so that their bits are the same.
//
// Thread-safety: pure functions.
#pragma once

#include <cmath>

#include "kernels/backend.h"
#include "kernels/formats/bits.h"

namespace nibble {

struct AdamWUpdate {
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float inverse_correction1, inverse_correction2, epsilon, learning_rate, decay;

  // The new parameter; the moments are replaced.
  NIBBLE_HD float Apply(float gradient, float* first, float* second, float old) const {
    const float g = gradient * gradient_scale;
    *first = beta1 * *first + one_minus_beta1 * g;
    *second = beta2 * *second + one_minus_beta2 * (g * g);
    const float root = sqrtf(*second * inverse_correction2) + epsilon;
    const float decayed = old - decay * old;
    return decayed - learning_rate * ((*first * inverse_correction1) / root);
  }
};

// The factors, bias corrections in FP64. Precondition: params.step >= 1.
inline AdamWUpdate AdamWUpdateOf(const AdamWParams& params) {
  const double step = static_cast<double>(params.step);
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  AdamWUpdate update{};
  update.gradient_scale = params.gradient_scale;
  update.beta1 = params.beta1;
  update.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  update.beta2 = params.beta2;
  update.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  update.inverse_correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step)));
  update.inverse_correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step)));
  update.epsilon = params.epsilon;
  update.learning_rate = params.learning_rate;
  update.decay = params.learning_rate * params.weight_decay;
  return update;
}

}  // namespace nibble
