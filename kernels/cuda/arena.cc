// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/arena.h"

#include <algorithm>
#include <iterator>

namespace nibble::cuda {

int64_t Arena::Take(int64_t size_bytes) {
  const int64_t units = (std::max<int64_t>(size_bytes, 1) + kAlignment - 1) / kAlignment;
  const int64_t size = units * kAlignment;
  auto best = free_.end();
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    if (range->second < size) continue;
    if (best == free_.end() || range->second < best->second) best = range;
  }
  if (best == free_.end()) return -1;
  const auto [offset, length] = *best;
  free_.erase(best);
  if (length > size) free_[offset + size] = length - size;
  taken_[offset] = size;
  used_bytes_ += size;
  return offset;
}

void Arena::Return(int64_t offset) {
  const auto found = taken_.find(offset);
  if (found == taken_.end()) return;
  int64_t size = found->second;
  taken_.erase(found);
  used_bytes_ -= size;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  free_[offset] = size;
}

int64_t Arena::largest_free_bytes() const {
  int64_t largest = 0;
  for (const auto& [offset, size] : free_) largest = std::max(largest, size);
  return largest;
}

}  // namespace nibble::cuda
