// SPDX-License-Identifier: Apache-2.0
#include "worker/train/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/formats/philox.h"

namespace nibble {

int32_t Sampler::Next(std::span<const float> logits) {
  if (options_.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < order.size()) {
    order.resize(static_cast<size_t>(options_.top_k));
  }
  const double largest = logits[static_cast<size_t>(order.front())];
  std::vector<double> cumulative;
  double total = 0;
  for (const int32_t id : order) {
    total += std::exp((logits[static_cast<size_t>(id)] - largest) / options_.temperature);
    cumulative.push_back(total);
  }
  const uint32_t word = formats::RandomWord(options_.seed, 0, 0, draws_++);
  const double target = (word + 0.5) * 0x1p-32 * total;
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end(), target);
  const auto index = static_cast<size_t>(chosen - cumulative.begin());
  return order[std::min(index, order.size() - 1)];
}

}  // namespace nibble
