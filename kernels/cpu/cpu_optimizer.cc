// SPDX-License-Identifier: Apache-2.0
//
// AdamW and the reductions that reach the host.
#include <cmath>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_math.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kGrain = 16384;

struct AdamWFactors {
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float inverse_correction1, inverse_correction2, epsilon, learning_rate, decay;
};

NIBBLE_LOOP void AdamWRange(const AdamWFactors& f, const float* gradient, float* m, float* v,
                            float* parameter, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    const float first = f.beta1 * m[i] + f.one_minus_beta1 * g;
    const float second = f.beta2 * v[i] + f.one_minus_beta2 * (g * g);
    m[i] = first;
    v[i] = second;
    const float root = std::sqrt(second * f.inverse_correction2) + f.epsilon;
    const float decayed = parameter[i] - f.decay * parameter[i];
    parameter[i] = decayed - f.learning_rate * ((first * f.inverse_correction1) / root);
  }
}

NIBBLE_LOOP double SumRange(const float* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(x[i + l]);
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += static_cast<double>(x[i]);
  return FoldLanes(lanes);
}

NIBBLE_LOOP double SumSquaresRange(const float* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const double value = static_cast<double>(x[i + l]);
      lanes[l] += value * value;
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    lanes[l] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return FoldLanes(lanes);
}

}  // namespace

Status CpuBackend::AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                         TensorView v, TensorView parameter) {
  const int64_t size = parameter.size();
  RETURN_IF_ERROR(CheckSameSize("AdamW", "gradient", gradient, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "m", m, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "v", v, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "parameter", parameter, size));
  if (params.step < 1) {
    return InvalidArgumentError(StrFormat("AdamW: step %lld; the first update is step 1",
                                          static_cast<long long>(params.step)));
  }
  const double step = static_cast<double>(params.step);
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  AdamWFactors f;
  f.gradient_scale = params.gradient_scale;
  f.beta1 = params.beta1;
  f.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  f.beta2 = params.beta2;
  f.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  f.inverse_correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step)));
  f.inverse_correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step)));
  f.epsilon = params.epsilon;
  f.learning_rate = params.learning_rate;
  f.decay = params.learning_rate * params.weight_decay;
  pool_.RunRanges(size, kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<AdamWRange>(f, gradient.f32() + first, m.f32() + first, v.f32() + first,
                       parameter.f32() + first, last - first);
  });
  return OkStatus();
}

Result<double> CpuBackend::Reduce(ConstTensorView x, bool squared) {
  RETURN_IF_ERROR(CheckSameSize(squared ? "SumOfSquares" : "Sum", "x", x, x.size()));
  const int64_t chunks = (x.size() + kGrain - 1) / kGrain;
  RETURN_IF_ERROR(reduce_partials_.Reserve(*this, chunks * static_cast<int64_t>(sizeof(double))));
  double* partials = static_cast<double*>(reduce_partials_.data());
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    const float* begin = x.f32() + first;
    partials[first / kGrain] = squared ? Cloned<SumSquaresRange>(begin, last - first)
                                       : Cloned<SumRange>(begin, last - first);
  });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk];
  return total;
}

Result<double> CpuBackend::Sum(ConstTensorView x) { return Reduce(x, false); }
Result<double> CpuBackend::SumOfSquares(ConstTensorView x) { return Reduce(x, true); }

}  // namespace nibble::cpu
