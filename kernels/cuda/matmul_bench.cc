// SPDX-License-Identifier: Apache-2.0
//
// nibble-matmul-bench: FP8 products of our own making beside the fastest that cuBLASLt has.
//
// Ours: kernels/cuda/matmul.h as the backend calls it, E4M3 bytes with FP32 scale vectors, partial
// sums promoted, FP32 out. Best: every algorithm that the library names for the shape, one scale a
// tensor, fast accumulation allowed, BF16 out. The same bytes, the same GPU, in turn. Lines of JSON
// on stdout, a row per shape. Needs a GPU with FP8 tensor cores.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/strings.h"
#include "kernels/cuda/matmul.h"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

constexpr int kRounds = 15;
constexpr int kMaxAlgorithms = 16;
constexpr int64_t kTokens = 8192;
constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
struct Shape {
  int64_t m, n, k;
};
// Layers of 7B and 13B models, forward.
constexpr Shape kShapes[] = {{kTokens, 4096, 4096},
                             {kTokens, 11008, 4096},
                             {kTokens, 4096, 11008},
                             {kTokens, 13824, 5120},
                             {kTokens, 5120, 13824}};

Status Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  return UnavailableError(std::string(what) + ": " + cudaGetErrorString(error));
}
Status Check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return OkStatus();
  return InternalError(std::string(what) + ": " + cublasLtGetStatusString(status));
}

class Memory {
 public:
  Status Reserve(int64_t bytes) {
    cudaFree(data_);
    data_ = nullptr;
    return Check(cudaMalloc(&data_, static_cast<size_t>(bytes)), "device memory");
  }
  // Bytes of finite E4M3 codes, the same for every reader.
  Status Codes(int64_t count) {
    std::vector<uint8_t> host(static_cast<size_t>(count));
    for (size_t i = 0; i < host.size(); i += 4) {
      const uint32_t word = formats::RandomWord(3, 0, 0, (i / 4) % (1 << 20));
      for (size_t j = i; j < std::min(i + 4, host.size()); ++j) {
        const auto code = static_cast<uint8_t>(word >> (8 * (j - i)));
        host[j] = (code & 0x7f) == 0x7f ? 0x38 : code;
      }
    }
    RETURN_IF_ERROR(Reserve(count));
    return Check(cudaMemcpy(data_, host.data(), host.size(), cudaMemcpyHostToDevice), "copy");
  }
  Status Ones(int64_t count) {
    const std::vector<float> host(static_cast<size_t>(count), 1.0f);
    RETURN_IF_ERROR(Reserve(count * 4));
    return Check(cudaMemcpy(data_, host.data(), host.size() * 4, cudaMemcpyHostToDevice), "copy");
  }
  ~Memory() { cudaFree(data_); }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// One scale a tensor, BF16 out; every algorithm the library offers.
class Library {
 public:
  ~Library() {
    if (preference_ != nullptr) cublasLtMatmulPreferenceDestroy(preference_);
    for (cublasLtMatrixLayout_t layout : {weight_, input_, out_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (operation_ != nullptr) cublasLtMatmulDescDestroy(operation_);
    if (handle_ != nullptr) cublasLtDestroy(handle_);
  }

  Status Open(const Shape& s, bool fast, const void* scale) {
    RETURN_IF_ERROR(Check(cublasLtCreate(&handle_), "cublasLtCreate"));
    RETURN_IF_ERROR(workspace_.Reserve(kWorkspaceBytes));
    RETURN_IF_ERROR(
        Check(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor"));
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(fast ? 1 : 0)));
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale));
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale));
    // Column-major views: out^T (n, m) = W (n, k) X^T (k, m).
    RETURN_IF_ERROR(Layout(&weight_, CUDA_R_8F_E4M3, s.k, s.n));
    RETURN_IF_ERROR(Layout(&input_, CUDA_R_8F_E4M3, s.k, s.m));
    RETURN_IF_ERROR(Layout(&out_, CUDA_R_16BF, s.n, s.m));
    RETURN_IF_ERROR(Check(cublasLtMatmulPreferenceCreate(&preference_), "preference"));
    const uint64_t bytes = kWorkspaceBytes;
    RETURN_IF_ERROR(
        Check(cublasLtMatmulPreferenceSetAttribute(
                  preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)),
              "preference"));
    found_.resize(kMaxAlgorithms);
    int count = 0;
    RETURN_IF_ERROR(
        Check(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, weight_, input_, out_, out_,
                                             preference_, kMaxAlgorithms, found_.data(), &count),
              "heuristic"));
    found_.resize(static_cast<size_t>(count));
    return OkStatus();
  }
  size_t algorithms() const { return found_.size(); }
  Status Run(cudaStream_t stream, size_t which, const void* x, const void* w, void* out) {
    const float one = 1, zero = 0;
    return Check(
        cublasLtMatmul(handle_, operation_, &one, w, weight_, x, input_, &zero, out, out_, out,
                       out_, &found_[which].algo, workspace_.data(), kWorkspaceBytes, stream),
        "cublasLtMatmul");
  }

 private:
  template <typename T>
  Status Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    return Check(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)),
                 "descriptor attribute");
  }
  static Status Layout(cublasLtMatrixLayout_t* out, cudaDataType_t type, int64_t rows,
                       int64_t cols) {
    return Check(cublasLtMatrixLayoutCreate(out, type, static_cast<uint64_t>(rows),
                                            static_cast<uint64_t>(cols), rows),
                 "layout");
  }

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t weight_ = nullptr, input_ = nullptr, out_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> found_;
  Memory workspace_;
};

class MatmulBench {
 public:
  ~MatmulBench() {
    for (cudaEvent_t event : {start_, end_}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Status Open() {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      return UnavailableError("no usable device; check nvidia-smi and CUDA_VISIBLE_DEVICES");
    }
    RETURN_IF_ERROR(Check(cudaStreamCreate(&stream_), "stream"));
    RETURN_IF_ERROR(Check(cudaEventCreate(&start_), "event"));
    RETURN_IF_ERROR(Check(cudaEventCreate(&end_), "event"));
    ASSIGN_OR_RETURN(ours_, Matmul::Make());
    return OkStatus();
  }

  Result<Json> Row(const Shape& s) {
    Memory x, w, out, ones;
    RETURN_IF_ERROR(x.Codes(s.m * s.k));
    RETURN_IF_ERROR(w.Codes(s.n * s.k));
    RETURN_IF_ERROR(out.Reserve(s.m * s.n * 4));
    RETURN_IF_ERROR(ones.Ones(std::max(s.m, s.n)));
    MatmulShape shape{s.m, s.n, s.k, false, true};
    shape.a = shape.b = MatmulElem::kE4M3;
    const auto own = [&] {
      return ours_->Run(stream_, shape, x.data(), w.data(), {ones.data(), ones.data()}, false,
                        static_cast<float*>(out.data()));
    };
    const double flop =
        2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
    Json row = Json::Object({{"name", "gemm_fp8_best"}, {"m", s.m}, {"n", s.n}, {"k", s.k}});
    double best = 0;
    for (const bool fast : {true, false}) {
      Library library;
      RETURN_IF_ERROR(library.Open(s, fast, ones.data()));
      double fastest = 0;
      for (size_t i = 0; i < library.algorithms(); ++i) {
        const Result<double> ms =
            Median([&] { return library.Run(stream_, i, x.data(), w.data(), out.data()); });
        if (ms.ok() && (fastest == 0 || *ms < fastest)) fastest = *ms;
      }
      if (fastest == 0) continue;
      row.Set(fast ? "library_fast_ms" : "library_promoted_ms", fastest);
      best = best == 0 ? fastest : std::min(best, fastest);
    }
    ASSIGN_OR_RETURN(const double ms, Median(own));
    row.Set("ms", ms);
    row.Set("tflops", flop / ms * 1e-9);
    if (best > 0) row.Set("share_of_best", best / ms);
    return row;
  }

 private:
  // Milliseconds of one call.
  Result<double> Median(const std::function<Status()>& call) {
    std::vector<double> times;
    for (int i = -3; i < kRounds; ++i) {
      RETURN_IF_ERROR(Check(cudaEventRecord(start_, stream_), "event"));
      RETURN_IF_ERROR(call());
      RETURN_IF_ERROR(Check(cudaEventRecord(end_, stream_), "event"));
      RETURN_IF_ERROR(Check(cudaEventSynchronize(end_), "event"));
      float ms = 0;
      RETURN_IF_ERROR(Check(cudaEventElapsedTime(&ms, start_, end_), "event"));
      if (i >= 0) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
  std::unique_ptr<Matmul> ours_;
};

Status Main() {
  MatmulBench bench;
  RETURN_IF_ERROR(bench.Open());
  for (const Shape& shape : kShapes) {
    const Result<Json> row = bench.Row(shape);
    const Json failed =
        Json::Object({{"name", "gemm_fp8_best"}, {"skipped", row.status().message()}});
    std::printf("%s\n", row.ok() ? row->Dump().c_str() : failed.Dump().c_str());
    std::fflush(stdout);
  }
  return OkStatus();
}

}  // namespace
}  // namespace nibble::cuda

int main() {
  const nibble::Status status = nibble::cuda::Main();
  if (status.ok()) return 0;
  std::fprintf(stderr, "nibble-matmul-bench: %s\n", status.message().c_str());
  return 1;
}
