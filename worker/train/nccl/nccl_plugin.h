// SPDX-License-Identifier: Apache-2.0
//
// The NCCL transport as a plug-in: libnibble_nccl.so, opened only when somebody asks for it.
//
// A plug-in of its own: a GPU machine without NCCL keeps the CUDA backend, a machine without a GPU
// loads neither. Thread-safety: thread-safe. Ownership: as kernels/plugin.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/train/communicator.h"
#include "worker/train/rank_transport.h"

namespace nibble {

// Changes with every change of RankTransport's, NcclWorld's or Backend's functions.
inline constexpr uint32_t kNcclPluginVersion = 3;
inline constexpr char kNcclPluginFile[] = "libnibble_nccl.so";

// What the transport needs to know of the other ranks. The functions are called while it opens and
// whenever it has waited in vain; they must live as long as it.
struct NcclWorld {
  int rank = 0;
  int world_size = 1;
  int64_t timeout_ms = 600'000;  // of one collective
  // The bytes that rank 0 makes, on every rank.
  std::function<Result<std::string>(const std::function<Result<std::string>()>& make)> exchange;
  // The ranks that are behind a collective of this number, by name.
  std::function<std::string(int64_t collective)> late;
};

// The plug-in's only exported symbol: fills *transport and returns OK. UNAVAILABLE when no device
// can be used, FAILED_PRECONDITION for another version, INVALID_ARGUMENT for a backend whose memory
// NCCL cannot reach. `backend` is borrowed.
using MakeNcclTransportFn = Status (*)(uint32_t version, Backend* backend, const NcclWorld& world,
                                       std::unique_ptr<RankTransport>* transport);
inline constexpr char kMakeNcclTransportSymbol[] = "nibble_make_nccl_transport";

// Sums in rank order over NCCL. NOT_FOUND and UNAVAILABLE name the fix, or the ranks that have not
// come to `meeting_folder`.
Result<std::unique_ptr<Communicator>> MakeNcclCommunicator(Backend* backend, int rank,
                                                           int world_size,
                                                           const std::string& meeting_folder);

}  // namespace nibble
