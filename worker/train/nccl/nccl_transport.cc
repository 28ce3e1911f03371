// SPDX-License-Identifier: Apache-2.0
//
// RankTransport over NCCL, and the plug-in's entry point.
//
// Collectives run on a stream of their own and have ended before control returns. NCCL's calls do
// not block (ncclConfig_t::blocking = 0): a rank that waits longer than the time-out, in a
// collective or for the others to open the communicator, aborts it and says which ranks are behind.
#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/strings.h"
#include "worker/train/nccl/nccl_plugin.h"

namespace nibble {
namespace {

using Steady = std::chrono::steady_clock;

constexpr char kFix[] = "; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use communicator single";
// Until then a waiting rank looks again at once.
constexpr auto kBusyWait = std::chrono::milliseconds(2);
constexpr auto kPause = std::chrono::microseconds(100);
constexpr auto kEndTimeout = std::chrono::seconds(10);

Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  return UnavailableError(std::string("communicator nccl: ") + what + ": " +
                          cudaGetErrorString(error) + kFix);
}

class NcclTransport final : public RankTransport {
 public:
  explicit NcclTransport(const NcclWorld& world) : world_(world) {}

  ~NcclTransport() override {
    if (comm_ != nullptr) {
      // Ranks end together; one that is lost must not keep the others.
      const ncclResult_t ended = Await(ncclCommFinalize(comm_), kEndTimeout);
      ended == ncclSuccess ? ncclCommDestroy(comm_) : ncclCommAbort(comm_);
    }
    cudaFree(numbers_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Status Open() {
    RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"));
    const size_t bytes = static_cast<size_t>(world_.world_size + 1) * sizeof(double);
    RETURN_IF_ERROR(CudaStatus(cudaMalloc(&numbers_, bytes), "memory"));
    ASSIGN_OR_RETURN(const std::string word, world_.exchange([this]() -> Result<std::string> {
      ncclUniqueId made;
      RETURN_IF_ERROR(Check(ncclGetUniqueId(&made), "ncclGetUniqueId"));
      return std::string(made.internal, sizeof(made.internal));
    }));
    ncclUniqueId id;
    if (word.size() != sizeof(id.internal)) {
      return DataLossError(StrFormat(
          "communicator nccl: a unique id of %zu bytes where %zu are due; build all ranks from one "
          "tree",
          word.size(), sizeof(id.internal)));
    }
    std::memcpy(id.internal, word.data(), sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    RETURN_IF_ERROR(
        Done(ncclCommInitRankConfig(&comm_, world_.world_size, id, world_.rank, &config),
             "ncclCommInitRank"));
    collective_ = 0;
    return OkStatus();
  }

  int rank() const override { return world_.rank; }
  int world_size() const override { return world_.world_size; }

  Status AllToAll(const float* parts, float* received, int64_t count) override {
    RETURN_IF_ERROR(Alive());
    const auto n = static_cast<size_t>(count);
    RETURN_IF_ERROR(Check(ncclGroupStart(), "ncclGroupStart"));
    ncclResult_t result = ncclSuccess;
    const auto ok = [&] { return result == ncclSuccess || result == ncclInProgress; };
    for (int r = 0; r < world_.world_size && ok(); ++r) {
      result = ncclSend(parts + r * count, n, ncclFloat32, r, comm_, stream_);
      if (ok()) result = ncclRecv(received + r * count, n, ncclFloat32, r, comm_, stream_);
    }
    const ncclResult_t ended = ncclGroupEnd();  // a group that was begun must end
    RETURN_IF_ERROR(Done(ok() ? ended : result, "a sum"));
    return Wait("a sum");
  }
  Status AllGather(const float* mine, float* all, int64_t count) override {
    RETURN_IF_ERROR(Alive());
    RETURN_IF_ERROR(
        Done(ncclAllGather(mine, all, static_cast<size_t>(count), ncclFloat32, comm_, stream_),
             "gathering"));
    return Wait("gathering");
  }
  Status Broadcast(float* x, int64_t count, int root) override {
    RETURN_IF_ERROR(Alive());
    RETURN_IF_ERROR(
        Done(ncclBroadcast(x, x, static_cast<size_t>(count), ncclFloat32, root, comm_, stream_),
             "a broadcast"));
    return Wait("a broadcast");
  }
  Result<std::vector<double>> Gather(double value) override {
    RETURN_IF_ERROR(Alive());
    double* const mine = numbers_ + world_.world_size;
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(mine, &value, sizeof(value), cudaMemcpyHostToDevice, stream_), "copy"));
    RETURN_IF_ERROR(Done(ncclAllGather(mine, numbers_, 1, ncclFloat64, comm_, stream_), "numbers"));
    RETURN_IF_ERROR(Wait("numbers"));
    std::vector<double> all(static_cast<size_t>(world_.world_size));
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy(all.data(), numbers_, all.size() * sizeof(double), cudaMemcpyDeviceToHost),
        "copy"));
    return all;
  }

 private:
  Status Check(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess) return OkStatus();
    return UnavailableError(std::string("communicator nccl: ") + what + ": " +
                            ncclGetErrorString(result) + " (" + ncclGetLastError(comm_) + ")" +
                            kFix);
  }
  Status Alive() const {
    if (comm_ != nullptr) return OkStatus();
    return UnavailableError("communicator nccl: it was given up when a rank was lost");
  }

  // What has become of a call that returned `result`; ncclInProgress when time is over.
  ncclResult_t Await(ncclResult_t result, std::chrono::milliseconds timeout) const {
    const auto start = Steady::now();
    while (result == ncclInProgress && Steady::now() - start <= timeout) {
      if (Steady::now() - start > kBusyWait) std::this_thread::sleep_for(kPause);
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result);
      if (asked != ncclSuccess) return asked;
    }
    return result;
  }
  // Until NCCL has done what it was asked for; a collective is then on the stream.
  Status Done(ncclResult_t result, const char* what) {
    result = Await(result, std::chrono::milliseconds(world_.timeout_ms));
    if (result == ncclInProgress) return GiveUp(what, NoAnswer());
    const Status status = Check(result, what);
    if (!status.ok()) Abort();
    return status;
  }

  // Until the collective has ended, here and so on all ranks.
  Status Wait(const char* what) {
    const auto start = Steady::now();
    const auto end = start + std::chrono::milliseconds(world_.timeout_ms);
    cudaError_t state = cudaStreamQuery(stream_);
    for (; state == cudaErrorNotReady; state = cudaStreamQuery(stream_)) {
      ncclResult_t failed = ncclSuccess;
      RETURN_IF_ERROR(Check(ncclCommGetAsyncError(comm_, &failed), what));
      const bool lost = failed != ncclSuccess && failed != ncclInProgress;
      if (lost) return GiveUp(what, ncclGetErrorString(failed));
      if (Steady::now() > end) return GiveUp(what, NoAnswer());
      if (Steady::now() - start > kBusyWait) std::this_thread::sleep_for(kPause);
    }
    ++collective_;
    return CudaStatus(state, what);
  }

  std::string NoAnswer() const {
    return StrFormat("no answer for %lld s", static_cast<long long>(world_.timeout_ms / 1000));
  }
  void Abort() {
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
  }
  Status GiveUp(const char* what, const std::string& why) {
    const std::string behind = world_.late ? world_.late(collective_) : "unknown ranks";
    Abort();
    return UnavailableError(StrFormat(
        "communicator nccl: rank %d of %d, %s (collective %lld): %s; %s did not take part",
        world_.rank, world_.world_size, what, static_cast<long long>(collective_), why.c_str(),
        behind.c_str()));
  }

  const NcclWorld world_;
  cudaStream_t stream_ = nullptr;
  double* numbers_ = nullptr;  // of all ranks, then this one's
  ncclComm_t comm_ = nullptr;
  int64_t collective_ = -1;  // the same on all ranks; -1: the communicator is being opened
};

}  // namespace
}  // namespace nibble

extern "C" __attribute__((visibility("default"))) nibble::Status nibble_make_nccl_transport(
    uint32_t version, nibble::Backend* backend, const nibble::NcclWorld& world,
    std::unique_ptr<nibble::RankTransport>* transport) {
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
  auto made = std::make_unique<nibble::NcclTransport>(world);
  nibble::Status status = made->Open();
  if (status.ok()) *transport = std::move(made);
  return status;
}
