// SPDX-License-Identifier: Apache-2.0
//
// Communicator: what the ranks of one run say to each other.
//
// Purpose: the training step calls these at the places where ranks have to agree: weights after
// initialisation (Broadcast), gradients and the loss of a step (AllReduceSum), sharded optimizer
// states (ReduceScatterSum, AllGather), after a checkpoint (Barrier).
// Thread-safety: one thread, the backend's caller. Ownership: borrows every view for the call.
// Invariant: every rank calls the same operations in the same order with the same shapes. Sums have
// a fixed order, so a result does not depend on who arrives first.
// Errors: INVALID_ARGUMENT for shapes that do not fit; UNAVAILABLE when a peer is lost.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace nibble {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // x = sum over ranks of x, on every rank. f32.
  virtual Status AllReduceSum(TensorView x) = 0;
  // out = this rank's part of the sum over ranks of x. x.size() = world_size * out.size(). f32.
  virtual Status ReduceScatterSum(ConstTensorView x, TensorView out) = 0;
  // out = the parts x of all ranks in rank order. out.size() = world_size * x.size(). f32.
  virtual Status AllGather(ConstTensorView x, TensorView out) = 0;
  // x = x of rank `root`, on every rank. INVALID_ARGUMENT for a root outside the world.
  virtual Status Broadcast(TensorView x, int root) = 0;
  // Returns when every rank has called it.
  virtual Status Barrier() = 0;

  // The sum of one number of the host, in FP64.
  virtual Result<double> AllReduceSum(double value) = 0;
  // The largest of the ranks' numbers; NaN when one is.
  virtual Result<float> AllReduceMax(float value) = 0;
};

// "single": a world of one rank. "nccl": between GPUs, through its plug-in (NOT_FOUND without one,
// UNAVAILABLE without a usable device or when a rank does not come, INVALID_ARGUMENT for a backend
// other than cuda). UNIMPLEMENTED for several ranks of "single" or another name, saying what this
// build has. `meeting_folder`: where the ranks of one attempt find each other; every rank sees it.
Result<std::unique_ptr<Communicator>> MakeCommunicator(std::string_view name, Backend* backend,
                                                       int rank, int world_size,
                                                       const std::string& meeting_folder = "");

}  // namespace nibble
