// SPDX-License-Identifier: Apache-2.0
//
// Arena: ranges of one block of device memory, handed out and taken back on the host.
//
// Purpose: a run takes its memory once, before its first step; what it allocates and frees later
// costs no call of the driver and does not wait for the device. Ranges returned may be handed out
// at once: the backend's operations are ordered on one stream. Thread-safety: thread-compatible.
// Ownership: knows offsets only, the memory is the caller's.
#pragma once

#include <cstdint>
#include <map>

namespace nibble::cuda {

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;

  explicit Arena(int64_t capacity_bytes)
      : capacity_bytes_(capacity_bytes / kAlignment * kAlignment) {
    if (capacity_bytes_ > 0) free_[0] = capacity_bytes_;
  }

  // The smallest free range that fits, the lowest of equal ones; -1 when there is none. A range of
  // 0 bytes takes one alignment unit, so that its address is its own.
  int64_t Take(int64_t size_bytes);
  // A range that Take gave; joins its free neighbours.
  void Return(int64_t offset);

  int64_t capacity_bytes() const { return capacity_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }
  int64_t largest_free_bytes() const;

 private:
  int64_t capacity_bytes_;
  int64_t used_bytes_ = 0;
  std::map<int64_t, int64_t> free_;   // offset to size; no two touch
  std::map<int64_t, int64_t> taken_;  // offset to size
};

}  // namespace nibble::cuda
