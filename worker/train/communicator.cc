// SPDX-License-Identifier: Apache-2.0
#include "worker/train/communicator.h"

#include "base/strings.h"
#include "worker/spec/run_config.h"
#include "worker/train/nccl/nccl_plugin.h"

namespace nibble {
namespace {

// A world of one: sums and copies are the identity.
class SingleCommunicator : public Communicator {
 public:
  explicit SingleCommunicator(Backend* backend) : backend_(*backend) {}

  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  Status AllReduceSum(TensorView x) override { return CheckFloat(x); }
  Status ReduceScatterSum(ConstTensorView x, TensorView out) override { return CopyTo(x, out); }
  Status AllGather(ConstTensorView x, TensorView out) override { return CopyTo(x, out); }
  Status Broadcast(TensorView x, int root) override {
    if (root != 0) {
      return InvalidArgumentError(
          StrFormat("broadcast: root %d is not in a world of 1 rank", root));
    }
    return CheckFloat(x);
  }
  Status Barrier() override { return backend_.Synchronize(); }
  Result<double> AllReduceSum(double value) override { return value; }
  Result<float> AllReduceMax(float value) override { return value; }

 private:
  static Status CheckFloat(ConstTensorView x) {
    if (x.dtype == DType::kF32) return OkStatus();
    return InvalidArgumentError(
        StrFormat("communicator: tensors must be f32, got %s", DTypeName(x.dtype)));
  }
  Status CopyTo(ConstTensorView x, TensorView out) {
    RETURN_IF_ERROR(CheckFloat(x));
    RETURN_IF_ERROR(CheckFloat(out));
    if (x.size() != out.size()) {
      return InvalidArgumentError(
          StrFormat("communicator: %lld elements do not fit an output of %lld in a world of 1 rank",
                    static_cast<long long>(x.size()), static_cast<long long>(out.size())));
    }
    if (x.data == out.data) return OkStatus();
    return backend_.Copy(out.data, x.data, x.size_bytes());
  }

  Backend& backend_;
};

}  // namespace

Result<std::unique_ptr<Communicator>> MakeCommunicator(std::string_view name, Backend* backend,
                                                       int rank, int world_size,
                                                       const std::string& meeting_folder) {
  if (name == kCommunicatorNccl) {
    return MakeNcclCommunicator(backend, rank, world_size, meeting_folder);
  }
  if (name != kCommunicatorSingle) {
    return UnimplementedError("communicator '" + std::string(name) +
                              "' is not part of this build; it has: single, nccl");
  }
  if (world_size != 1 || rank != 0) {
    return UnimplementedError(StrFormat(
        "rank %d of %d ranks: the communicator 'single' has 1 rank; between GPUs use communicator "
        "nccl, between CPUs this build has none. Ask for 1 rank",
        rank, world_size));
  }
  return std::unique_ptr<Communicator>(new SingleCommunicator(backend));
}

}  // namespace nibble
