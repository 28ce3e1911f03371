// SPDX-License-Identifier: Apache-2.0
//
// Token ids on the device: noting those that are none, and the embedding.
//
// Purpose: nothing waits for a check; kernels leave ids that are none alone, and the next wait of
// the backend reports the first of them. Thread-safety: device functions.
#pragma once

#include <cstdint>

namespace nibble::cuda {

// Keeps the smallest of position << 32 | id over ids that are neither tokens nor `allowed` (0:
// tokens alone). Integer minimum: the order does not matter.
struct CheckIdsOp {
  const int32_t* ids;
  int64_t limit;
  int32_t allowed;
  unsigned long long* first_bad;
  __device__ void operator()(int64_t i) const {
    const int32_t id = ids[i];
    if (id == allowed || (id >= 0 && id < limit)) return;
    atomicMin(first_bad, static_cast<unsigned long long>(i) << 32 | static_cast<uint32_t>(id));
  }
};

struct GatherOp {
  const float* table;
  const int32_t* ids;
  int64_t vocabulary, width;
  float* out;
  __device__ void operator()(int64_t i) const {
    const int32_t id = ids[i / width];
    out[i] = id >= 0 && id < vocabulary ? table[id * width + i % width] : 0.0f;
  }
};

}  // namespace nibble::cuda
