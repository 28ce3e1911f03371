// SPDX-License-Identifier: Apache-2.0
//
// Communicator over NCCL, and the plug-in's entry point.
//
// Collectives run on a stream of their own, after what the backend has been given and before
// control returns. Tensor sums are NCCL's: their order is fixed for a world and a machine, though
// it is not rank order. Sums and maxima of host numbers are taken in rank order.
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/strings.h"
#include "worker/train/nccl/nccl_plugin.h"

namespace nibble {
namespace {

constexpr char kFix[] = "; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use communicator single";

Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  return UnavailableError(std::string("communicator nccl: ") + what + ": " +
                          cudaGetErrorString(error) + kFix);
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Backend* backend, int rank, int world_size)
      : backend_(*backend), rank_(rank), world_size_(world_size) {}

  ~NcclCommunicator() override {
    if (comm_ != nullptr) ncclCommDestroy(comm_);
    cudaFree(numbers_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Status Open() {
    RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"));
    const size_t bytes = static_cast<size_t>(world_size_ + 1) * sizeof(double);
    RETURN_IF_ERROR(CudaStatus(cudaMalloc(&numbers_, bytes), "memory"));
    ncclUniqueId id;
    RETURN_IF_ERROR(Check(ncclGetUniqueId(&id), "ncclGetUniqueId"));
    return Check(ncclCommInitRank(&comm_, world_size_, id, rank_), "ncclCommInitRank");
  }

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }

  Status AllReduceSum(TensorView x) override {
    RETURN_IF_ERROR(Begin(x, x.size(), x.size()));
    return End(ncclAllReduce(x.data, x.data, Count(x), ncclFloat32, ncclSum, comm_, stream_),
               "ncclAllReduce");
  }
  Status ReduceScatterSum(ConstTensorView x, TensorView out) override {
    RETURN_IF_ERROR(Begin(out, x.size(), world_size_ * out.size()));
    return End(
        ncclReduceScatter(x.data, out.data, Count(out), ncclFloat32, ncclSum, comm_, stream_),
        "ncclReduceScatter");
  }
  Status AllGather(ConstTensorView x, TensorView out) override {
    RETURN_IF_ERROR(Begin(out, out.size(), world_size_ * x.size()));
    return End(ncclAllGather(x.data, out.data, Count(x), ncclFloat32, comm_, stream_),
               "ncclAllGather");
  }
  Status Broadcast(TensorView x, int root) override {
    if (root < 0 || root >= world_size_) {
      return InvalidArgumentError(
          StrFormat("broadcast: root %d is not in a world of %d ranks", root, world_size_));
    }
    RETURN_IF_ERROR(Begin(x, x.size(), x.size()));
    return End(ncclBroadcast(x.data, x.data, Count(x), ncclFloat32, root, comm_, stream_),
               "ncclBroadcast");
  }
  Status Barrier() override { return Numbers(0).status(); }

  Result<double> AllReduceSum(double value) override {
    ASSIGN_OR_RETURN(const std::vector<double> all, Numbers(value));
    double sum = 0;
    for (const double one : all) sum += one;
    return sum;
  }
  Result<float> AllReduceMax(float value) override {
    ASSIGN_OR_RETURN(const std::vector<double> all, Numbers(static_cast<double>(value)));
    double largest = all.front();
    for (const double one : all) {
      if (std::isnan(one) || one > largest) largest = one;
      if (std::isnan(one)) break;
    }
    return static_cast<float>(largest);
  }

 private:
  static size_t Count(ConstTensorView x) { return static_cast<size_t>(x.size()); }

  Status Check(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess) return OkStatus();
    return UnavailableError(std::string("communicator nccl: ") + what + ": " +
                            ncclGetErrorString(result) + " (" + ncclGetLastError(comm_) + ")" +
                            kFix);
  }

  // Shapes, and the backend's work before ours.
  Status Begin(ConstTensorView x, int64_t size, int64_t expected) {
    if (x.dtype != DType::kF32 || size != expected) {
      return InvalidArgumentError(
          StrFormat("communicator nccl: %lld elements of %s where a world of %d ranks needs %lld "
                    "of f32",
                    static_cast<long long>(size), DTypeName(x.dtype), world_size_,
                    static_cast<long long>(expected)));
    }
    return backend_.Synchronize();
  }
  Status End(ncclResult_t result, const char* what) {
    RETURN_IF_ERROR(Check(result, what));
    return CudaStatus(cudaStreamSynchronize(stream_), what);
  }

  // One number of each rank, in rank order.
  Result<std::vector<double>> Numbers(double value) {
    RETURN_IF_ERROR(backend_.Synchronize());
    double* const mine = numbers_ + world_size_;
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(mine, &value, sizeof(value), cudaMemcpyHostToDevice, stream_), "copy"));
    RETURN_IF_ERROR(
        Check(ncclAllGather(mine, numbers_, 1, ncclFloat64, comm_, stream_), "ncclAllGather"));
    std::vector<double> all(static_cast<size_t>(world_size_));
    RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(all.data(), numbers_, all.size() * sizeof(double),
                                               cudaMemcpyDeviceToHost, stream_),
                               "copy"));
    RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "waiting for the ranks"));
    return all;
  }

  Backend& backend_;
  const int rank_;
  const int world_size_;
  cudaStream_t stream_ = nullptr;
  double* numbers_ = nullptr;  // of all ranks, then this one's
  ncclComm_t comm_ = nullptr;
};

}  // namespace
}  // namespace nibble

extern "C" __attribute__((visibility("default"))) nibble::Status nibble_make_nccl_communicator(
    uint32_t version, nibble::Backend* backend, int rank, int world_size,
    std::unique_ptr<nibble::Communicator>* communicator) {
  if (version != nibble::kNcclPluginVersion) {
    return nibble::FailedPreconditionError(nibble::StrFormat(
        "communicator nccl: the plug-in is of interface version %u, the program asks for %u; build "
        "both from one tree",
        nibble::kNcclPluginVersion, version));
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    return nibble::UnavailableError(
        std::string("communicator nccl: no usable device: ") +
        (error == cudaSuccess ? "none is visible" : cudaGetErrorString(error)) + nibble::kFix);
  }
  if (backend->name() != "cuda") {
    return nibble::InvalidArgumentError(
        "communicator nccl: it moves memory of backend cuda, the run is on " +
        std::string(backend->name()) + "; use communicator single");
  }
  auto made = std::make_unique<nibble::NcclCommunicator>(backend, rank, world_size);
  nibble::Status status = made->Open();
  if (status.ok()) *communicator = std::move(made);
  return status;
}
