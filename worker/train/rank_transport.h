// SPDX-License-Identifier: Apache-2.0
//
// RankTransport: how bytes get from rank to rank. OrderedCommunicator makes sums of it.
// Thread-safety: one thread, the backend's caller. Ownership: borrows every pointer for the call.
// Pointers are memory of the backend, 64-byte aligned, whose earlier work has ended when a call
// begins; when it returns, the result is there. Every rank calls the same in the same order.
// Errors: UNAVAILABLE naming the ranks that did not take part.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace nibble {

class RankTransport {
 public:
  virtual ~RankTransport() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Part r of `parts` goes to rank r; part r of `received` is what rank r sent here. Both have
  // world_size parts of `count` elements.
  virtual Status AllToAll(const float* parts, float* received, int64_t count) = 0;
  // all = the `mine` of every rank, `count` elements each, in rank order. `mine` lies outside it.
  virtual Status AllGather(const float* mine, float* all, int64_t count) = 0;
  virtual Status Broadcast(float* x, int64_t count, int root) = 0;
  // One number of the host from each rank, in rank order.
  virtual Result<std::vector<double>> Gather(double value) = 0;
};

}  // namespace nibble
