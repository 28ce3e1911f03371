// SPDX-License-Identifier: Apache-2.0
#include "worker/train/optimizer.h"

#include <cmath>

namespace nibble {
namespace {

// Random streams of the optimizer, apart from those of the layers: three per parameter.
constexpr uint32_t kFirstStream = 0x40000000u;
constexpr uint32_t kStreamsPerParameter = 4;

// FP32 state: by the layer that keeps codes of the weight, if it takes the update over.
Status Update(Backend& backend, const AdamWParams& params, size_t t,
              const Parameters::Moments& moments, const NextPass& next, Parameters* parameters) {
  if (next.model != nullptr) {
    ASSIGN_OR_RETURN(const bool done, next.model->UpdateWeight(next.step, t, params, moments));
    if (done) return OkStatus();
  }
  return backend.AdamW(params, parameters->gradient(t), moments.first, moments.second,
                       parameters->weight(t));
}

}  // namespace

Result<double> GradientNorm(Backend& backend, const Parameters& parameters,
                            std::span<const PendingFactor> pending) {
  ASSIGN_OR_RETURN(const double sum,
                   backend.ScaledSumOfSquares(pending, parameters.all_gradients()));
  return std::sqrt(sum);
}

double ClipFactor(double gradient_norm, double clip_norm) {
  if (clip_norm <= 0 || gradient_norm <= clip_norm) return 1.0;
  return clip_norm / gradient_norm;
}

Status ApplyAdamW(Backend& backend, const OptimizerConfig& config, int64_t step,
                  double learning_rate, double gradient_scale, Parameters* parameters,
                  uint64_t seed, const NextPass& next) {
  AdamWParams params;
  params.learning_rate = static_cast<float>(learning_rate);
  params.beta1 = static_cast<float>(config.beta1);
  params.beta2 = static_cast<float>(config.beta2);
  params.epsilon = static_cast<float>(config.eps);
  params.step = step;
  params.gradient_scale = static_cast<float>(gradient_scale);
  params.seed = seed;
  for (size_t t = 0; t < parameters->list().size(); ++t) {
    const bool decays = !parameters->list()[t].is_norm;
    params.stream = kFirstStream + static_cast<uint32_t>(t) * kStreamsPerParameter;
    params.weight_decay = decays ? static_cast<float>(config.weight_decay) : 0.0f;
    ASSIGN_OR_RETURN(const Parameters::Moments moments, parameters->FetchMoments(t));
    if (parameters->precision() == StatePrecision{}) {
      RETURN_IF_ERROR(Update(backend, params, t, moments, next, parameters));
    } else {
      // Norm weights lie near 1, where FP16 has no room for an update.
      StatePrecision precision = parameters->precision();
      if (!decays) precision.master = StateElem::kF32;
      RETURN_IF_ERROR(backend.RoundedAdamW(params, precision, parameters->gradient(t),
                                           moments.first, moments.second, parameters->weight(t),
                                           &parameters->scales(t)));
    }
    RETURN_IF_ERROR(parameters->StoreMoments(t, moments));
  }
  return OkStatus();
}

}  // namespace nibble
