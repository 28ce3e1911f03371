// SPDX-License-Identifier: Apache-2.0
//
// OrderedCommunicator: a Communicator whose sums are taken in rank order, ((r0 + r1) + r2) + ...,
// element by element. They do not depend on the transport, the machine or the size of pieces.
//
// A sum sends as much as a ring does: every rank gets all ranks' values of its share, adds them,
// and hands the sums round. It works in pieces of at most kPieceElements, so that the staging
// memory stays small beside the gradients. Thread-safety and ownership: as Communicator; borrows
// the backend, owns the transport.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "worker/train/communicator.h"
#include "worker/train/rank_transport.h"

namespace nibble {

class OrderedCommunicator final : public Communicator {
 public:
  static constexpr int64_t kPieceElements = int64_t{1} << 22;

  OrderedCommunicator(Backend* backend, std::unique_ptr<RankTransport> transport,
                      int64_t piece_elements = kPieceElements)
      : backend_(*backend), transport_(std::move(transport)), piece_elements_(piece_elements) {}

  int rank() const override { return transport_->rank(); }
  int world_size() const override { return transport_->world_size(); }
  Status AllReduceSum(TensorView x) override;
  Status ReduceScatterSum(ConstTensorView x, TensorView out) override;
  Status AllGather(ConstTensorView x, TensorView out) override;
  Status Broadcast(TensorView x, int root) override;
  Status Barrier() override;
  Result<double> AllReduceSum(double value) override;
  Result<float> AllReduceMax(float value) override;

 private:
  Status Check(ConstTensorView x, int64_t size, int64_t expected) const;
  // Elements of one rank's share of a piece that covers `left` elements of every rank's, or of all
  // ranks together: a multiple of the alignment.
  int64_t ShareOf(int64_t left) const;
  // received_ part 0 = the sum of what all ranks sent this one. parts: world_size * count elements.
  Status ExchangeAndAdd(const float* parts, int64_t count);
  float* parts() const { return static_cast<float*>(parts_.data()); }
  float* received() const { return static_cast<float*>(received_.data()); }

  Backend& backend_;
  std::unique_ptr<RankTransport> transport_;
  int64_t piece_elements_;
  Buffer parts_, received_;
};

}  // namespace nibble
