// SPDX-License-Identifier: Apache-2.0
#include "worker/train/optimizer.h"

#include <cmath>

namespace nibble {

Result<double> GradientNorm(Backend& backend, const Parameters& parameters) {
  ASSIGN_OR_RETURN(const double sum, backend.SumOfSquares(parameters.all_gradients()));
  return std::sqrt(sum);
}

double ClipFactor(double gradient_norm, double clip_norm) {
  if (clip_norm <= 0 || gradient_norm <= clip_norm) return 1.0;
  return clip_norm / gradient_norm;
}

Status ApplyAdamW(Backend& backend, const OptimizerConfig& config, int64_t step,
                  double learning_rate, double gradient_scale, Parameters* parameters) {
  AdamWParams params;
  params.learning_rate = static_cast<float>(learning_rate);
  params.beta1 = static_cast<float>(config.beta1);
  params.beta2 = static_cast<float>(config.beta2);
  params.epsilon = static_cast<float>(config.eps);
  params.step = step;
  params.gradient_scale = static_cast<float>(gradient_scale);
  for (size_t t = 0; t < parameters->list().size(); ++t) {
    const bool decays = !parameters->list()[t].is_norm;
    params.weight_decay = decays ? static_cast<float>(config.weight_decay) : 0.0f;
    if (!(parameters->precision() == StatePrecision{})) {
      // Norm weights lie near 1, where FP16 has no room for an update.
      StatePrecision precision = parameters->precision();
      if (!decays) precision.master = StateElem::kF32;
      RETURN_IF_ERROR(backend.RoundedAdamW(
          params, precision, parameters->gradient(t), parameters->first_moment(t),
          parameters->second_moment(t), parameters->weight(t), &parameters->scales(t)));
      continue;
    }
    RETURN_IF_ERROR(backend.AdamW(params, parameters->gradient(t), parameters->first_moment(t),
                                  parameters->second_moment(t), parameters->weight(t)));
  }
  return OkStatus();
}

}  // namespace nibble
