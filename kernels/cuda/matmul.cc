// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matmul.h"

#include <string>

#include "base/strings.h"

namespace nibble::cuda {
namespace {

Status LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return OkStatus();
  return InternalError(std::string(what) + ": cuBLASLt status " +
                       std::to_string(static_cast<int>(status)) + ", " +
                       cublasLtGetStatusString(status));
}

}  // namespace

// A row-major matrix is its transpose column-major, so out^T (n, m) = op(b)^T op(a)^T.
struct Matmul::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr;   // b
  cublasLtMatrixLayout_t second = nullptr;  // a
  cublasLtMatrixLayout_t result = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  ~Plan() {
    if (result != nullptr) cublasLtMatrixLayoutDestroy(result);
    if (second != nullptr) cublasLtMatrixLayoutDestroy(second);
    if (first != nullptr) cublasLtMatrixLayoutDestroy(first);
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
  }

  Status Build(cublasLtHandle_t handle, const MatmulShape& s) {
    const cudaDataType_t type = s.bf16 ? CUDA_R_16BF : CUDA_R_32F;
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                             "descriptor"));
    const cublasOperation_t op_first = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_second = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                            &op_first, sizeof(op_first)),
                             "transpose"));
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB,
                                                            &op_second, sizeof(op_second)),
                             "transpose"));
    const auto layout = [](cublasLtMatrixLayout_t* out, cudaDataType_t t, int64_t rows,
                           int64_t cols) {
      return LtStatus(cublasLtMatrixLayoutCreate(out, t, static_cast<uint64_t>(rows),
                                                 static_cast<uint64_t>(cols), rows),
                      "layout");
    };
    // Column-major views of the stored matrices: (columns, rows) of each.
    RETURN_IF_ERROR(layout(&first, type, s.transpose_b ? s.k : s.n, s.transpose_b ? s.n : s.k));
    RETURN_IF_ERROR(layout(&second, type, s.transpose_a ? s.m : s.k, s.transpose_a ? s.k : s.m));
    RETURN_IF_ERROR(layout(&result, CUDA_R_32F, s.n, s.m));
    return Choose(handle, s);
  }

  Status Choose(cublasLtHandle_t handle, const MatmulShape& s) {
    cublasLtMatmulPreference_t preference = nullptr;
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulPreferenceCreate(&preference), "preference"));
    const uint64_t bytes = Matmul::kWorkspaceBytes;
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    Status status =
        LtStatus(cublasLtMatmulPreferenceSetAttribute(
                     preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)),
                 "preference");
    if (status.ok()) {
      status = LtStatus(cublasLtMatmulAlgoGetHeuristic(handle, operation, first, second, result,
                                                       result, preference, 1, &found, &count),
                        "heuristic");
    }
    cublasLtMatmulPreferenceDestroy(preference);
    if (!status.ok() || count == 0) {
      return UnimplementedError(
          StrFormat("Gemm: cuBLASLt has no algorithm for (%lld, %lld, %lld), %s operands",
                    static_cast<long long>(s.m), static_cast<long long>(s.n),
                    static_cast<long long>(s.k), s.bf16 ? "bf16" : "fp32"));
    }
    algorithm = found.algo;
    return OkStatus();
  }
};

Result<std::unique_ptr<Matmul>> Matmul::Make() {
  std::unique_ptr<Matmul> matmul(new Matmul());
  RETURN_IF_ERROR(LtStatus(cublasLtCreate(&matmul->handle_), "cublasLtCreate"));
  if (cudaMalloc(&matmul->workspace_, kWorkspaceBytes) != cudaSuccess) {
    return ResourceExhaustedError("no device memory for the cuBLASLt workspace of 32 MiB");
  }
  return matmul;
}

Matmul::~Matmul() {
  plans_.clear();
  if (workspace_ != nullptr) cudaFree(workspace_);
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

Result<const Matmul::Plan*> Matmul::PlanOf(const MatmulShape& shape) {
  const auto found = plans_.find(shape);
  if (found != plans_.end()) return static_cast<const Plan*>(found->second.get());
  auto plan = std::make_unique<Plan>();
  RETURN_IF_ERROR(plan->Build(handle_, shape));
  const Plan* result = plan.get();
  plans_[shape] = std::move(plan);
  return result;
}

Status Matmul::Run(cudaStream_t stream, const MatmulShape& shape, const void* a, const void* b,
                   bool accumulate, float* out) {
  ASSIGN_OR_RETURN(const Plan* plan, PlanOf(shape));
  const float one = 1.0f;
  const float beta = accumulate ? 1.0f : 0.0f;
  return LtStatus(cublasLtMatmul(handle_, plan->operation, &one, b, plan->first, a, plan->second,
                                 &beta, out, plan->result, out, plan->result, &plan->algorithm,
                                 workspace_, kWorkspaceBytes, stream),
                  "cublasLtMatmul");
}

}  // namespace nibble::cuda
