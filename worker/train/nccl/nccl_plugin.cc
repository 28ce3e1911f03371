// SPDX-License-Identifier: Apache-2.0
#include "worker/train/nccl/nccl_plugin.h"

#include <utility>

#include "base/strings.h"
#include "kernels/plugin.h"
#include "worker/train/ordered_communicator.h"
#include "worker/train/rendezvous.h"

namespace nibble {

Result<std::unique_ptr<Communicator>> MakeNcclCommunicator(Backend* backend, int rank,
                                                           int world_size,
                                                           const std::string& meeting_folder) {
  if (rank < 0 || rank >= world_size) {
    return InvalidArgumentError(
        StrFormat("communicator nccl: rank %d is not in a world of %d ranks", rank, world_size));
  }
  ASSIGN_OR_RETURN(
      void* const symbol,
      OpenPlugin({"communicator nccl", "NIBBLE_NCCL_PLUGIN", kNcclPluginFile,
                  kMakeNcclTransportSymbol, "NCCL 2 (libnccl.so.2)", "communicator single"}));
  const auto make = reinterpret_cast<MakeNcclTransportFn>(symbol);
  Rendezvous::Options options;
  options.folder = meeting_folder;
  options.rank = rank;
  options.world_size = world_size;
  const auto meeting = std::make_shared<Rendezvous>(options);
  NcclWorld world;
  world.rank = rank;
  world.world_size = world_size;
  world.exchange = [meeting](const auto& make_word) { return meeting->Exchange(make_word); };
  world.late = [meeting](int64_t collective) { return meeting->Late(collective); };
  std::unique_ptr<RankTransport> transport;
  RETURN_IF_ERROR(make(kNcclPluginVersion, backend, world, &transport));
  return std::unique_ptr<Communicator>(
      std::make_unique<OrderedCommunicator>(backend, std::move(transport)));
}

}  // namespace nibble
