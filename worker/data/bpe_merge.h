// SPDX-License-Identifier: Apache-2.0
//
// MergeBpe: greedy byte-pair merging of a symbol sequence, in O(n log n). Thread-safe, no state.
//
// As long as some neighbouring pair may be merged, the pair with the lowest cost is, the leftmost
// among equals: the rule of GPT-2 (cost = rank in the merge list) and of SentencePiece BPE and
// llama2.c (cost = minus the score of the merged piece).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

namespace nibble {

struct BpeMerge {
  double cost = 0;
  int32_t id = 0;  // of the merged symbol
};

// `rule(left_id, right_id)` returns std::optional<BpeMerge>; nullopt when the two do not merge.
template <typename Rule>
std::vector<int32_t> MergeBpe(std::vector<int32_t> ids, const Rule& rule) {
  constexpr size_t kEnd = static_cast<size_t>(-1);
  struct Candidate {
    double cost;
    size_t left;
    size_t right;
    int32_t left_id;  // the pair as it was; stale when the ids have changed since
    int32_t right_id;
    int32_t merged_id;
    bool operator>(const Candidate& other) const {
      return std::tie(cost, left) > std::tie(other.cost, other.left);
    }
  };
  constexpr int32_t kGone = -1;
  std::vector<size_t> next(ids.size());
  std::vector<size_t> previous(ids.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](size_t left, size_t right) {
    if (left == kEnd || right == kEnd) return;
    const std::optional<BpeMerge> merge = rule(ids[left], ids[right]);
    if (merge) queue.push({merge->cost, left, right, ids[left], ids[right], merge->id});
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    previous[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == ids.size() ? kEnd : i + 1;
    offer(i, next[i]);
  }
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const bool stale = ids[best.left] != best.left_id || ids[best.right] != best.right_id ||
                       next[best.left] != best.right;
    if (stale) continue;
    ids[best.left] = best.merged_id;
    ids[best.right] = kGone;
    next[best.left] = next[best.right];
    if (next[best.left] != kEnd) previous[next[best.left]] = best.left;
    offer(previous[best.left], best.left);
    offer(best.left, next[best.left]);
  }
  std::erase(ids, kGone);
  return ids;
}

}  // namespace nibble
