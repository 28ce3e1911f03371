// SPDX-License-Identifier: Apache-2.0
//
// Device, memory, copies and GEMM of the CUDA backend, and the plug-in's entry point.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda_plugin.h"
#include "kernels/recipe/product_path.h"

namespace nibble::cuda {
namespace {

constexpr int kFirstDevice = 0;  // the worker narrows CUDA_VISIBLE_DEVICES to the slot's device
constexpr int kOldestMajor = 8;
constexpr unsigned long long kNoBadId = ~0ull;

// Gathers what is launched on one stream.
class StreamGraphs final : public GraphApi {
 public:
  explicit StreamGraphs(cudaStream_t stream) : stream_(stream) {}

  Status Begin() override {
    return CudaStatus(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed),
                      "recording a step");
  }
  Result<Graph> End() override {
    cudaGraph_t graph = nullptr;
    RETURN_IF_ERROR(CudaStatus(cudaStreamEndCapture(stream_, &graph), "recording a step"));
    size_t nodes = 0;
    RETURN_IF_ERROR(CudaStatus(cudaGraphGetNodes(graph, nullptr, &nodes), "recording a step"));
    return Graph{graph, static_cast<int64_t>(nodes)};
  }
  Result<void*> Instantiate(const Graph& graph) override {
    cudaGraphExec_t executable = nullptr;
    RETURN_IF_ERROR(
        CudaStatus(cudaGraphInstantiate(&executable, static_cast<cudaGraph_t>(graph.handle), 0),
                   "graph of a step"));
    return static_cast<void*>(executable);
  }
  bool Update(void* executable, const Graph& graph) override {
    cudaGraphExecUpdateResultInfo info{};
    const cudaError_t error = cudaGraphExecUpdate(static_cast<cudaGraphExec_t>(executable),
                                                  static_cast<cudaGraph_t>(graph.handle), &info);
    cudaGetLastError();  // another shape is no error of ours
    return error == cudaSuccess;
  }
  Status Launch(void* executable) override {
    return CudaStatus(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable), stream_),
                      "graph of a step");
  }
  void DestroyGraph(const Graph& graph) override {
    if (graph.handle != nullptr) cudaGraphDestroy(static_cast<cudaGraph_t>(graph.handle));
  }
  void DestroyExecutable(void* executable) override {
    cudaStreamSynchronize(stream_);  // it may be running
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable));
  }

 private:
  cudaStream_t stream_;
};

}  // namespace

CudaBackend::CudaBackend(int device, const BackendOptions& options)
    : device_(device), options_(options) {}

CudaBackend::~CudaBackend() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const Lane& lane : lanes_) {
    if (lane.stream != nullptr) cudaStreamSynchronize(lane.stream);
    if (lane.worked != nullptr) cudaEventDestroy(lane.worked);
    if (lane.transferred != nullptr) cudaEventDestroy(lane.transferred);
    if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
  }
  recorder_.reset();
  matmul_.reset();
  if (id_errors_ != nullptr) cudaFree(id_errors_);
  if (host_id_errors_ != nullptr) cudaFreeHost(host_id_errors_);
  // What buffers of the workspaces free afterwards is not known any more.
  for (const auto& [memory, size] : allocations_) {
    if (!InArena(memory)) cudaFree(memory);
  }
  allocations_.clear();
  if (arena_memory_ != nullptr) cudaFree(arena_memory_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Result<std::unique_ptr<Backend>> CudaBackend::Make(const BackendOptions& options) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    return UnavailableError(std::string("backend cuda: no usable device: ") +
                            (error == cudaSuccess ? "none is visible" : cudaGetErrorString(error)) +
                            "; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use backend cpu");
  }
  std::unique_ptr<CudaBackend> backend(new CudaBackend(kFirstDevice, options));
  RETURN_IF_ERROR(backend->Open());
  return std::unique_ptr<Backend>(std::move(backend));
}

Status CudaBackend::Open() {
  cudaDeviceProp properties{};
  const Status taken = CudaStatus(cudaSetDevice(device_), "no usable device");
  if (taken.code() == StatusCode::kInternal) {  // another process has it to itself, say
    return UnavailableError("backend cuda: " + taken.message() +
                            "; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use backend cpu");
  }
  RETURN_IF_ERROR(taken);
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, device_), "device properties"));
  if (properties.major < kOldestMajor) {
    return UnavailableError(
        StrFormat("backend cuda: %s has compute capability %d.%d; 8.0 or newer "
                  "is needed",
                  properties.name, properties.major, properties.minor));
  }
  if (!HasCode()) {
    return UnavailableError(StrFormat(
        "backend cuda: this build has no code for %s, compute capability %d.%d; build it "
        "with -DCMAKE_CUDA_ARCHITECTURES=%d%d-real, or use backend cpu",
        properties.name, properties.major, properties.minor, properties.major, properties.minor));
  }
  const char* const blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
  launch_blocking_ = blocking != nullptr && std::string(blocking) == "1";
  block_shared_bytes_ = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  memory_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  description_ =
      StrFormat("%s, compute capability %d.%d, %.0f GiB", properties.name, properties.major,
                properties.minor, static_cast<double>(properties.totalGlobalMem) / 1073741824.0);
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"));
  graphs_ = std::make_unique<StreamGraphs>(stream_);
  recorder_ = std::make_unique<StepRecorder>(graphs_.get());
  ASSIGN_OR_RETURN(matmul_, Matmul::Make());
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(&id_errors_, sizeof(IdErrors)), "error words"));
  RETURN_IF_ERROR(CudaStatus(cudaMallocHost(&host_id_errors_, sizeof(IdErrors)), "error words"));
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(id_errors_, 0xFF, sizeof(IdErrors), stream_), "error words"));
  RETURN_IF_ERROR(TakeArena());
  constexpr int kHopper = 9;
  const auto has = [&](MatmulElem elem) {
    return matmul_->Has({256, 256, 256, false, true, elem, elem});
  };
  products_.outer_fp8 = properties.major == kHopper && has(MatmulElem::kE4M3);
  products_.block_fp8 = properties.major > kHopper && has(MatmulElem::kMxE4M3);
  products_.block_fp4 = properties.major > kHopper && has(MatmulElem::kNvE2M1);
  const char* const carried = products_.block_fp4   ? "NVFP4 or MXFP8"
                              : products_.block_fp8 ? "MXFP8"
                              : products_.outer_fp8 ? "FP8"
                                                    : "BF16";
  description_ += std::string(", codes as ") + carried;
  return OkStatus();
}

Support CudaBackend::Supports(const OpQuery& query) const {
  const bool left = CudaMultipliesCodes(query.left), right = CudaMultipliesCodes(query.right);
  switch (query.op) {
    case Op::kQuantize:
      return left ? Support::kFast : Support::kNone;
    case Op::kQuantizedGemm:
      if (left && right) return Support::kFast;
      return left || right ? Support::kReference : Support::kNone;
    case Op::kGemm:
      return query.left == Elem::kF32 || query.left == Elem::kBf16 ? Support::kFast
                                                                   : Support::kNone;
    case Op::kRmsNorm:
    case Op::kSwiGlu:
      return query.left == Elem::kF32 || left ? Support::kFast : Support::kNone;
    default:
      return query.left == Elem::kF32 ? Support::kFast : Support::kNone;
  }
}

Status CudaBackend::TakeArena() {
  if (options_.arena_bytes <= 0) return OkStatus();
  size_t available = 0, total = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&available, &total), "free device memory"));
  // Kernels and libraries need some of it, too.
  constexpr int64_t kLeft = int64_t{512} << 20;
  const int64_t bytes = std::min(options_.arena_bytes, static_cast<int64_t>(available) - kLeft);
  if (bytes <= 0) return OkStatus();
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();  // not sticky; single allocations remain
    return OkStatus();
  }
  arena_memory_ = static_cast<uint8_t*>(memory);
  arena_ = Arena(bytes);
  return OkStatus();
}

bool CudaBackend::InArena(const void* memory) const {
  const auto* const at = static_cast<const uint8_t*>(memory);
  return arena_memory_ != nullptr && at >= arena_memory_ &&
         at < arena_memory_ + arena_.capacity_bytes();
}

Result<void*> CudaBackend::Allocate(int64_t size_bytes) {
  if (size_bytes < 0) {
    return InvalidArgumentError(
        StrFormat("allocation of %lld bytes", static_cast<long long>(size_bytes)));
  }
  const auto text = [](int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); };
  const int64_t limit = options_.memory_limit_bytes;
  if (limit > 0 && allocated_bytes_ + size_bytes > limit) {
    return ResourceExhaustedError("device allocation of " + text(size_bytes) + " with " +
                                  text(allocated_bytes_) + " in use passes the limit of " +
                                  text(limit));
  }
  const int64_t offset = arena_.Take(size_bytes);
  void* memory = offset >= 0 ? arena_memory_ + offset : nullptr;
  if (memory == nullptr &&
      cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(size_bytes, 1))) != cudaSuccess) {
    cudaGetLastError();  // an allocation failure is not sticky; clear it
    return ResourceExhaustedError("the device has no " + text(size_bytes) + " left; " +
                                  text(allocated_bytes_) +
                                  " in use; use a smaller micro-batch, sequence or model");
  }
  allocations_[memory] = size_bytes;
  allocated_bytes_ += size_bytes;
  peak_allocated_bytes_ = std::max(peak_allocated_bytes_, allocated_bytes_);
  return memory;
}

void CudaBackend::Free(void* memory) {
  const auto found = allocations_.find(memory);
  if (found == allocations_.end()) return;
  allocated_bytes_ -= found->second;
  allocations_.erase(found);
  // Work on the stream that still uses a range of the arena comes before what uses it next.
  if (InArena(memory)) return arena_.Return(static_cast<uint8_t*>(memory) - arena_memory_);
  const Status freed = OutsideRecording([&] {
    return CudaStatus(cudaFree(memory),
                      "freeing device memory");  // waits for the work that uses it
  });
  if (!freed.ok() && deferred_.ok()) deferred_ = freed;
}

std::vector<const Buffer*> CudaBackend::Workspaces() const {
  std::vector<const Buffer*> all = {
      &rope_table_,        &norm_partials_, &attention_delta_, &attention_gradient_,
      &attention_rounded_, &gemm_a_,        &gemm_b_,          &gemm_out_,
      &reduce_partials_,   &histogram_,     &row_stats_,       &row_scan_,
      &column_amax_,       &words_,         &code_residual_,   &code_out_,
      &scale_a_,           &scale_b_,       &block_a_,         &block_b_,
      &group_amax_,        &group_sums_,    &token_order_};
  for (const Buffer& place : carried_memory_) all.push_back(&place);
  return all;
}

int64_t CudaBackend::workspace_bytes() const {
  int64_t total = Matmul::kWorkspaceBytes;
  for (const Buffer* buffer : Workspaces()) {
    total += buffer->capacity_bytes();
  }
  return total;
}

Status CudaBackend::CopyIn(void* device, const void* host, int64_t size_bytes) {
  if (size_bytes == 0) return OkStatus();
  return OutsideRecording([&]() -> Status {
    RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(device, host, static_cast<size_t>(size_bytes),
                                               cudaMemcpyHostToDevice, stream_),
                               "copy to the device"));
    return WaitAndReport();  // the caller may reuse `host` at once
  });
}
Status CudaBackend::CopyOut(void* host, const void* device, int64_t size_bytes) {
  if (size_bytes == 0) return OkStatus();
  return OutsideRecording([&]() -> Status {
    RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(host, device, static_cast<size_t>(size_bytes),
                                               cudaMemcpyDeviceToHost, stream_),
                               "copy to the host"));
    return WaitAndReport();
  });
}
Status CudaBackend::Copy(void* to_device, const void* from_device, int64_t size_bytes) {
  if (size_bytes == 0) return OkStatus();
  return CudaStatus(cudaMemcpyAsync(to_device, from_device, static_cast<size_t>(size_bytes),
                                    cudaMemcpyDeviceToDevice, stream_),
                    "copy on the device");
}
Status CudaBackend::Synchronize() {
  return OutsideRecording([&]() -> Status {
    for (const Lane& lane : lanes_) {
      if (lane.stream == nullptr) continue;
      RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(lane.stream), "waiting for transfers"));
    }
    return WaitAndReport();
  });
}

Status CudaBackend::BeginStep() { return launch_blocking_ ? OkStatus() : recorder_->BeginStep(); }

Status CudaBackend::CheckLane(int lane) {
  if (lane < 0 || lane >= kTransferLanes) {
    return InvalidArgumentError(StrFormat("transfer: lane %d of %d", lane, kTransferLanes));
  }
  Lane& own = lanes_[static_cast<size_t>(lane)];
  if (own.stream != nullptr) return OkStatus();
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&own.stream, cudaStreamNonBlocking), "lane"));
  RETURN_IF_ERROR(
      CudaStatus(cudaEventCreateWithFlags(&own.worked, cudaEventDisableTiming), "lane"));
  return CudaStatus(cudaEventCreateWithFlags(&own.transferred, cudaEventDisableTiming), "lane");
}

Status CudaBackend::TransferIn(int lane, void* device, const void* host, int64_t size_bytes) {
  RETURN_IF_ERROR(CheckLane(lane));
  return CudaStatus(
      cudaMemcpyAsync(device, host, static_cast<size_t>(size_bytes), cudaMemcpyHostToDevice,
                      lanes_[static_cast<size_t>(lane)].stream),
      "transfer to the device");
}
Status CudaBackend::TransferOut(int lane, void* host, const void* device, int64_t size_bytes) {
  RETURN_IF_ERROR(CheckLane(lane));
  return CudaStatus(
      cudaMemcpyAsync(host, device, static_cast<size_t>(size_bytes), cudaMemcpyDeviceToHost,
                      lanes_[static_cast<size_t>(lane)].stream),
      "transfer to the host");
}

// What is being recorded goes first, or the events would not see it.
Status CudaBackend::LaneAfterWork(int lane) {
  RETURN_IF_ERROR(CheckLane(lane));
  const Lane& own = lanes_[static_cast<size_t>(lane)];
  return OutsideRecording([&]() -> Status {
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(own.worked, stream_), "lane"));
    return CudaStatus(cudaStreamWaitEvent(own.stream, own.worked, 0), "lane");
  });
}
Status CudaBackend::WorkAfterLane(int lane) {
  RETURN_IF_ERROR(CheckLane(lane));
  const Lane& own = lanes_[static_cast<size_t>(lane)];
  return OutsideRecording([&]() -> Status {
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(own.transferred, own.stream), "lane"));
    return CudaStatus(cudaStreamWaitEvent(stream_, own.transferred, 0), "lane");
  });
}

Status CudaBackend::PinHost(void* memory, int64_t size_bytes) {
  const cudaError_t error =
      cudaHostRegister(memory, static_cast<size_t>(size_bytes), cudaHostRegisterDefault);
  if (error == cudaSuccess) return OkStatus();
  cudaGetLastError();  // not sticky
  return UnavailableError("locking " + FormatBytes(static_cast<double>(size_bytes)) +
                          " of host memory: " + cudaGetErrorString(error));
}
void CudaBackend::UnpinHost(void* memory) {
  for (const Lane& lane : lanes_) {  // that may still use it
    if (lane.stream != nullptr) cudaStreamSynchronize(lane.stream);
  }
  if (cudaHostUnregister(memory) != cudaSuccess) cudaGetLastError();
}

Status CudaBackend::WaitAndReport() {
  if (!deferred_.ok()) return std::exchange(deferred_, OkStatus());
  RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(host_id_errors_, id_errors_, sizeof(IdErrors),
                                             cudaMemcpyDeviceToHost, stream_),
                             "error words"));
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "waiting for the device"));
  for (int check = 0; check < 2; ++check) {
    const unsigned long long first = host_id_errors_->first[check];
    if (first == kNoBadId) continue;
    RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(id_errors_, 0xFF, sizeof(IdErrors), stream_), "error words"));
    return OutOfRangeError(
        StrFormat("%s: token %d at position %lld is outside the vocabulary of %lld",
                  check == static_cast<int>(IdCheck::kToken) ? "EmbeddingForward" : "CrossEntropy",
                  static_cast<int>(static_cast<uint32_t>(first)),
                  static_cast<long long>(first >> 32), static_cast<long long>(id_limits_[check])));
  }
  return OkStatus();
}

}  // namespace nibble::cuda

extern "C" __attribute__((visibility("default"))) nibble::Status nibble_make_cuda_backend(
    uint32_t version, const nibble::BackendOptions& options,
    std::unique_ptr<nibble::Backend>* backend) {
  if (version != nibble::kCudaPluginVersion) {
    return nibble::FailedPreconditionError(nibble::StrFormat(
        "backend cuda: the plug-in is of interface version %u, the program asks for %u; build both "
        "from one tree",
        nibble::kCudaPluginVersion, version));
  }
  nibble::Result<std::unique_ptr<nibble::Backend>> made = nibble::cuda::CudaBackend::Make(options);
  if (!made.ok()) return made.status();
  *backend = *std::move(made);
  return nibble::OkStatus();
}
