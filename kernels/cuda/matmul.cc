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

cudaDataType_t TypeOf(MatmulElem elem) {
  switch (elem) {
    case MatmulElem::kF32:
      return CUDA_R_32F;
    case MatmulElem::kBf16:
      return CUDA_R_16BF;
    case MatmulElem::kE5M2:
      return CUDA_R_8F_E5M2;
    case MatmulElem::kNvE2M1:
      return CUDA_R_4F_E2M1;
    default:
      return CUDA_R_8F_E4M3;
  }
}

cublasLtMatmulMatrixScale_t ScaleModeOf(MatmulElem elem) {
  if (elem == MatmulElem::kMxE4M3) return CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0;
  if (elem == MatmulElem::kNvE2M1) return CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
  return CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
}

static_assert(AlignmentOf(0x7100) == 256 && AlignmentOf(0x7040) == 64 && AlignmentOf(0x7006) == 2);

const char* NameOf(MatmulElem elem) {
  static constexpr const char* kNames[] = {"fp32", "bf16", "e4m3", "e5m2", "mxfp8", "nvfp4"};
  return kNames[static_cast<int>(elem)];
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

  template <typename T>
  Status Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    return LtStatus(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
                    "descriptor attribute");
  }

  // The library's first matrix is b.
  Status SetScales(const MatmulScales& scales) {
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.b));
    return Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.a);
  }

  // `any`: device memory that stands for scales not known yet.
  Status Build(cublasLtHandle_t handle, const MatmulShape& s, const MatmulAlignment& alignment,
               const void* any) {
    if (IsNarrow(s.a) != IsNarrow(s.b) || (IsNarrow(s.a) && (s.transpose_a || !s.transpose_b))) {
      return InvalidArgumentError("Gemm: narrow operands go together and lie along the sum");
    }
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                             "descriptor"));
    const cublasOperation_t op_first = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_second = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSA, op_first));
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSB, op_second));
    if (IsNarrow(s.a)) {
      RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, ScaleModeOf(s.b)));
      RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, ScaleModeOf(s.a)));
      RETURN_IF_ERROR(SetScales({any, any}));
      const int8_t fast = s.fast_accumulation ? 1 : 0;
      RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast));
    }
    const auto layout = [](cublasLtMatrixLayout_t* out, cudaDataType_t t, int64_t rows,
                           int64_t cols) {
      return LtStatus(cublasLtMatrixLayoutCreate(out, t, static_cast<uint64_t>(rows),
                                                 static_cast<uint64_t>(cols), rows),
                      "layout");
    };
    // Column-major views of the stored matrices: (columns, rows) of each.
    RETURN_IF_ERROR(
        layout(&first, TypeOf(s.b), s.transpose_b ? s.k : s.n, s.transpose_b ? s.n : s.k));
    RETURN_IF_ERROR(
        layout(&second, TypeOf(s.a), s.transpose_a ? s.m : s.k, s.transpose_a ? s.k : s.m));
    RETURN_IF_ERROR(layout(&result, CUDA_R_32F, s.n, s.m));
    return Choose(handle, s, alignment);
  }

  // The library's first matrix is b.
  static Status Prefer(cublasLtMatmulPreference_t preference, const MatmulAlignment& alignment) {
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      return LtStatus(
          cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
          "preference");
    };
    const uint64_t bytes = Matmul::kWorkspaceBytes;
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment.b));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment.a));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment.out));
    return set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment.out);
  }

  Status Choose(cublasLtHandle_t handle, const MatmulShape& s, const MatmulAlignment& alignment) {
    cublasLtMatmulPreference_t preference = nullptr;
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulPreferenceCreate(&preference), "preference"));
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    Status status = Prefer(preference, alignment);
    if (status.ok()) {
      status = LtStatus(cublasLtMatmulAlgoGetHeuristic(handle, operation, first, second, result,
                                                       result, preference, 1, &found, &count),
                        "heuristic");
    }
    cublasLtMatmulPreferenceDestroy(preference);
    if (!status.ok() || count == 0) {
      return UnimplementedError(
          StrFormat("Gemm: cuBLASLt has no algorithm for (%lld, %lld, %lld), %s by %s",
                    static_cast<long long>(s.m), static_cast<long long>(s.n),
                    static_cast<long long>(s.k), NameOf(s.a), NameOf(s.b)));
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

Result<Matmul::Plan*> Matmul::PlanOf(const MatmulShape& shape, const MatmulAlignment& alignment) {
  const std::pair key(shape, alignment);
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second.get();
  auto plan = std::make_unique<Plan>();
  RETURN_IF_ERROR(plan->Build(handle_, shape, alignment, workspace_));
  Plan* const result = plan.get();
  plans_[key] = std::move(plan);
  return result;
}

bool Matmul::Has(const MatmulShape& shape) { return PlanOf(shape, {}).ok(); }

Status Matmul::Run(cudaStream_t stream, const MatmulShape& shape, const void* a, const void* b,
                   const MatmulScales& scales, bool accumulate, float* out) {
  const auto aligned = [](const void* p) { return AlignmentOf(reinterpret_cast<uintptr_t>(p)); };
  ASSIGN_OR_RETURN(Plan* const plan, PlanOf(shape, {aligned(a), aligned(b), aligned(out)}));
  if (IsNarrow(shape.a)) RETURN_IF_ERROR(plan->SetScales(scales));
  const float one = 1.0f;
  const float beta = accumulate ? 1.0f : 0.0f;
  return LtStatus(cublasLtMatmul(handle_, plan->operation, &one, b, plan->first, a, plan->second,
                                 &beta, out, plan->result, out, plan->result, &plan->algorithm,
                                 workspace_, kWorkspaceBytes, stream),
                  "cublasLtMatmul");
}

}  // namespace nibble::cuda
