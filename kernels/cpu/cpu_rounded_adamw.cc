// SPDX-License-Identifier: Apache-2.0
//
// AdamW with a rounded state, and the E4M3 form of gradients.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/random_words.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/fp16.h"
#include "kernels/formats/fp8.h"
#include "kernels/rounded_state.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kGrain = 16384;
constexpr int64_t kChunk = 256;

// The largest magnitude seen by any thread, as bits: a maximum does not depend on the order.
class SharedMax {
 public:
  void Update(uint32_t bits) {
    uint32_t seen = bits_.load(std::memory_order_relaxed);
    while (bits > seen && !bits_.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
    }
  }
  float value() const { return formats::BitsFloat(bits_.load(std::memory_order_relaxed)); }

 private:
  std::atomic<uint32_t> bits_{0};
};

uint32_t AmaxBits(const float* x, int64_t n) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < n; ++i) {
    bits = std::max(bits, formats::FloatBits(x[i]) & formats::kMagnitudeBits);
  }
  return bits;
}

// out[i] = element first + i of `x`, which holds codes scaled by `scale`.
void Load(StateElem elem, ConstTensorView x, float scale, int64_t first, int64_t n, float* out) {
  const auto* const words = static_cast<const uint16_t*>(x.data) + first;
  const float inverse = 1.0f / scale;  // a power of two
  for (int64_t i = 0; i < n; ++i) {
    switch (elem) {
      case StateElem::kF32:
        out[i] = x.f32()[first + i];
        break;
      case StateElem::kBf16:
      case StateElem::kBf16Sr:
        out[i] = formats::FromBf16(words[i]);
        break;
      case StateElem::kF16:
        out[i] = formats::DecodeF16(words[i]) * inverse;
        break;
      case StateElem::kE4M3:
        out[i] = formats::DecodeE4M3(x.u8()[first + i]) * inverse;
        break;
    }
  }
}

// Random words of a tensor's elements for stochastic rounding.
struct Draws {
  RandomStream stream;
  uint32_t room[kChunk + 6];
  const uint32_t* At(int64_t first, int64_t n) {
    return RandomRun(stream, static_cast<uint64_t>(first), n, room);
  }
};

void Store(StateElem elem, const float* x, float scale, int64_t first, int64_t n,
           const RandomStream& stream, TensorView out) {
  Draws draws{stream, {}};
  const uint32_t* const random = elem == StateElem::kBf16Sr ? draws.At(first, n) : nullptr;
  auto* const words = static_cast<uint16_t*>(out.data) + first;
  for (int64_t i = 0; i < n; ++i) {
    switch (elem) {
      case StateElem::kF32:
        out.f32()[first + i] = x[i];
        break;
      case StateElem::kBf16:
        words[i] = formats::ToBf16(x[i]);
        break;
      case StateElem::kBf16Sr:
        words[i] = formats::StochasticBf16(x[i], random[i]);
        break;
      case StateElem::kF16:
        words[i] = formats::EncodeF16(x[i] * scale);
        break;
      case StateElem::kE4M3:
        out.u8()[first + i] = formats::EncodeE4M3(x[i] * scale);
        break;
    }
  }
}

// The new moments of a chunk from the stored ones.
struct Moments {
  const AdamWParams& params;
  const StatePrecision& precision;
  ConstTensorView gradient, m, v;
  StateScales scales;

  void Next(int64_t first, int64_t n, float* next_m, float* next_v) const {
    const float rest1 = static_cast<float>(1.0 - static_cast<double>(params.beta1));
    const float rest2 = static_cast<float>(1.0 - static_cast<double>(params.beta2));
    Load(precision.m, m, scales.m, first, n, next_m);
    Load(precision.v, v, scales.v, first, n, next_v);
    for (int64_t i = 0; i < n; ++i) {
      const float g = gradient.f32()[first + i] * params.gradient_scale;
      next_m[i] = params.beta1 * next_m[i] + rest1 * g;
      next_v[i] = params.beta2 * next_v[i] + rest2 * (g * g);
    }
  }
};

template <typename Body>
void ForChunks(int64_t first, int64_t last, const Body& body) {
  for (int64_t at = first; at < last; at += kChunk) body(at, std::min(kChunk, last - at));
}

}  // namespace

Status CpuBackend::RoundedAdamW(const AdamWParams& params, const StatePrecision& precision,
                                ConstTensorView gradient, TensorView m, TensorView v,
                                TensorView parameter, StateScales* scales) {
  const int64_t size = parameter.size();
  RETURN_IF_ERROR(CheckSameSize("RoundedAdamW", "gradient", gradient, size));
  RETURN_IF_ERROR(CheckSameSize("RoundedAdamW", "parameter", parameter, size));
  RETURN_IF_ERROR(CheckMoments("RoundedAdamW", m, v, size, params.step));
  const Moments moments{params, precision, gradient, m, v, *scales};
  const double step = static_cast<double>(params.step);
  const auto rate = static_cast<float>(static_cast<double>(params.learning_rate) /
                                       (1.0 - std::pow(static_cast<double>(params.beta1), step)));
  const auto root_scale =
      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(params.beta2), step)));
  const float kept = 1.0f - params.learning_rate * params.weight_decay;
  SharedMax max_m, max_v, max_parameter;
  pool_.RunRanges(size, kGrain, [&](int64_t begin, int64_t end, int) {
    ForChunks(begin, end, [&](int64_t first, int64_t n) {
      float next_m[kChunk], next_v[kChunk];
      moments.Next(first, n, next_m, next_v);
      float* const p = parameter.f32() + first;
      for (int64_t i = 0; i < n; ++i) {
        const float root = std::sqrt(next_v[i]) * root_scale + params.epsilon;
        p[i] = p[i] * kept - rate * (next_m[i] / root);
      }
      max_m.Update(AmaxBits(next_m, n));
      max_v.Update(AmaxBits(next_v, n));
      max_parameter.Update(AmaxBits(p, n));
    });
  });
  scales->m = StoredScale(precision.m, max_m.value(), scales->m);
  scales->v = StoredScale(precision.v, max_v.value(), scales->v);
  scales->master = StoredScale(precision.master, max_parameter.value(), scales->master);
  const auto stream = [&params](uint32_t role) {
    return RandomStream{params.seed, static_cast<uint32_t>(params.step), params.stream + role};
  };
  const bool rounds = std::isfinite(max_parameter.value());  // else the run ends, and says why
  pool_.RunRanges(size, kGrain, [&](int64_t begin, int64_t end, int) {
    ForChunks(begin, end, [&](int64_t first, int64_t n) {
      float next_m[kChunk], next_v[kChunk];
      moments.Next(first, n, next_m, next_v);
      Store(precision.m, next_m, scales->m, first, n, stream(0), m);
      Store(precision.v, next_v, scales->v, first, n, stream(1), v);
      Draws draws{stream(2), {}};
      const bool random = precision.master == StateElem::kBf16Sr;
      const uint32_t* const words = random ? draws.At(first, n) : nullptr;
      float* const p = parameter.f32() + first;
      for (int64_t i = 0; rounds && i < n; ++i) {
        p[i] = RoundedWeight(precision.master, p[i], scales->master, random ? words[i] : 0);
      }
    });
  });
  return OkStatus();
}

Result<float> CpuBackend::AbsMax(ConstTensorView x) {
  RETURN_IF_ERROR(CheckSameSize("AbsMax", "x", x, x.size()));
  SharedMax largest;
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    largest.Update(AmaxBits(x.f32() + first, last - first));
  });
  return largest.value();
}

Status CpuBackend::AddPath(ConstTensorView x, TensorView previous, TensorView path) {
  RETURN_IF_ERROR(CheckSameSize("AddPath", "previous", previous, x.size()));
  RETURN_IF_ERROR(CheckSameSize("AddPath", "path", path, x.size()));
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    const float* const now = x.f32();
    float* const before = previous.f32();
    float* const sum = path.f32();
    for (int64_t i = first; i < last; ++i) {
      sum[i] += std::fabs(now[i] - before[i]);
      before[i] = now[i];
    }
  });
  return OkStatus();
}

Result<int64_t> CpuBackend::ResetOscillating(float ratio, ConstTensorView path,
                                             ConstTensorView quantized_path,
                                             ConstTensorView quantized, TensorView weight) {
  for (const ConstTensorView& other : {path, quantized_path, quantized}) {
    RETURN_IF_ERROR(CheckSameSize("ResetOscillating", "weight", weight, other.size()));
  }
  std::atomic<int64_t> total{0};
  pool_.RunRanges(weight.size(), kGrain, [&](int64_t first, int64_t last, int) {
    int64_t count = 0;
    for (int64_t i = first; i < last; ++i) {
      const float moved = quantized_path.f32()[i];
      if (!(moved > 0 && moved >= ratio * path.f32()[i])) continue;
      weight.f32()[i] = quantized.f32()[i];
      ++count;
    }
    total += count;
  });
  return total.load();
}

Status CpuBackend::RoundToE4M3(float scale, TensorView x) {
  RETURN_IF_ERROR(CheckSameSize("RoundToE4M3", "x", x, x.size()));
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    float* const values = x.f32();
    for (int64_t i = first; i < last; ++i) values[i] = formats::RoundE4M3(values[i] * scale);
  });
  return OkStatus();
}

}  // namespace nibble::cpu
