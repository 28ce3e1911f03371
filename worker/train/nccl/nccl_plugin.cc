// SPDX-License-Identifier: Apache-2.0
#include "worker/train/nccl/nccl_plugin.h"

#include "base/strings.h"
#include "kernels/plugin.h"

namespace nibble {

Result<std::unique_ptr<Communicator>> MakeNcclCommunicator(Backend* backend, int rank,
                                                           int world_size) {
  if (world_size != 1 || rank != 0) {
    return UnimplementedError(
        StrFormat("communicator nccl: rank %d of %d ranks: this build brings no unique id from "
                  "rank to rank. Ask for 1 rank",
                  rank, world_size));
  }
  ASSIGN_OR_RETURN(
      void* const symbol,
      OpenPlugin({"communicator nccl", "NIBBLE_NCCL_PLUGIN", kNcclPluginFile,
                  kMakeNcclCommunicatorSymbol, "NCCL 2 (libnccl.so.2)", "communicator single"}));
  const auto make = reinterpret_cast<MakeNcclCommunicatorFn>(symbol);
  std::unique_ptr<Communicator> communicator;
  RETURN_IF_ERROR(make(kNcclPluginVersion, backend, rank, world_size, &communicator));
  return communicator;
}

}  // namespace nibble
