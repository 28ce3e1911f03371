// SPDX-License-Identifier: Apache-2.0
//
// Sampler: picks the next token from logits. Draw i of a seed is a pure function of (seed, i).
// Thread-safety: one thread.
#pragma once

#include <cstdint>
#include <span>

namespace nibble {

struct SamplerOptions {
  double temperature = 0.8;  // 0: always the most likely token (the lowest id of equals)
  int64_t top_k = 0;         // only the k most likely tokens; 0 = all
  uint64_t seed = 1234;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options) {}

  // Precondition: logits is not empty and finite.
  int32_t Next(std::span<const float> logits);

 private:
  SamplerOptions options_;
  uint64_t draws_ = 0;
};

}  // namespace nibble
