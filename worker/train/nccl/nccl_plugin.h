// SPDX-License-Identifier: Apache-2.0
//
// The NCCL communicator as a plug-in: libnibble_nccl.so, opened only when somebody asks for it.
//
// A plug-in of its own: a GPU machine without NCCL keeps the CUDA backend, a machine without a GPU
// loads neither. Thread-safety: thread-safe. Ownership: as kernels/plugin.h.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/train/communicator.h"

namespace nibble {

// Changes with every change of Communicator's or Backend's functions.
inline constexpr uint32_t kNcclPluginVersion = 1;
inline constexpr char kNcclPluginFile[] = "libnibble_nccl.so";
// The plug-in's only exported symbol: fills *communicator and returns OK. UNAVAILABLE when no
// device can be used, FAILED_PRECONDITION for another version, INVALID_ARGUMENT for a backend whose
// memory NCCL cannot reach. `backend` is borrowed by the communicator.
using MakeNcclCommunicatorFn = Status (*)(uint32_t version, Backend* backend, int rank,
                                          int world_size,
                                          std::unique_ptr<Communicator>* communicator);
inline constexpr char kMakeNcclCommunicatorSymbol[] = "nibble_make_nccl_communicator";

// NOT_FOUND and UNAVAILABLE name the fix. UNIMPLEMENTED for more than one rank: ranks need the
// unique id that one of them makes, and nothing brings it to them yet.
Result<std::unique_ptr<Communicator>> MakeNcclCommunicator(Backend* backend, int rank,
                                                           int world_size);

}  // namespace nibble
