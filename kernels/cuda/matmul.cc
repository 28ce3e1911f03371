// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <string>

#include "base/strings.h"

namespace nibble::cuda {
namespace {

Status LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return OkStatus();
  const std::string message = std::string(what) + ": cuBLASLt status " +
                              std::to_string(static_cast<int>(status)) + ", " +
                              cublasLtGetStatusString(status);
  return status == CUBLAS_STATUS_NOT_SUPPORTED ? UnimplementedError(message)
                                               : InternalError(message);
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

constexpr int kProposals = 8;

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
  Status Build(cublasLtHandle_t handle, const Key& key, const void* any) {
    const MatmulShape& s = key.shape;
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
                           int64_t cols, int64_t pitch) {
      return LtStatus(cublasLtMatrixLayoutCreate(out, t, static_cast<uint64_t>(rows),
                                                 static_cast<uint64_t>(cols), pitch),
                      "layout");
    };
    // Column-major views of the stored matrices: (columns, rows) of each.
    const auto pitch = [&key](int64_t rows) { return key.pitch > 0 ? key.pitch : rows; };
    const int64_t rows_b = s.transpose_b ? s.k : s.n, rows_a = s.transpose_a ? s.m : s.k;
    RETURN_IF_ERROR(layout(&first, TypeOf(s.b), rows_b, s.transpose_b ? s.n : s.k, pitch(rows_b)));
    RETURN_IF_ERROR(layout(&second, TypeOf(s.a), rows_a, s.transpose_a ? s.k : s.m, pitch(rows_a)));
    RETURN_IF_ERROR(layout(&result, s.bf16_out ? CUDA_R_16BF : CUDA_R_32F, s.n, s.m, s.n));
    return Choose(handle, s, key.alignment);
  }

  // The library's first matrix is b. `reductions`: how parts of a sum may be joined.
  static Status Prefer(cublasLtMatmulPreference_t preference, const MatmulAlignment& alignment,
                       uint32_t reductions) {
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      return LtStatus(
          cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
          "preference");
    };
    const uint64_t bytes = Matmul::kWorkspaceBytes;
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment.b));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment.a));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment.out));
    return set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment.out);
  }

  // The first algorithm proposed that the library itself holds for able to run.
  bool TakeFirst(cublasLtHandle_t handle, cublasLtMatmulPreference_t preference) {
    cublasLtMatmulHeuristicResult_t found[kProposals] = {};
    int count = 0;
    if (cublasLtMatmulAlgoGetHeuristic(handle, operation, first, second, result, result, preference,
                                       kProposals, found, &count) != CUBLAS_STATUS_SUCCESS) {
      return false;
    }
    for (int i = 0; i < count; ++i) {
      cublasLtMatmulHeuristicResult_t checked{};
      if (found[i].state != CUBLAS_STATUS_SUCCESS ||
          cublasLtMatmulAlgoCheck(handle, operation, first, second, result, result, &found[i].algo,
                                  &checked) != CUBLAS_STATUS_SUCCESS ||
          checked.workspaceSize > static_cast<size_t>(Matmul::kWorkspaceBytes)) {
        continue;
      }
      algorithm = found[i].algo;
      return true;
    }
    return false;
  }

  Status Choose(cublasLtHandle_t handle, const MatmulShape& s, const MatmulAlignment& alignment) {
    // Sums in parts where they are offered, in one where they are not.
    for (const uint32_t reductions :
         {uint32_t{CUBLASLT_REDUCTION_SCHEME_MASK}, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE}}) {
      cublasLtMatmulPreference_t preference = nullptr;
      RETURN_IF_ERROR(LtStatus(cublasLtMatmulPreferenceCreate(&preference), "preference"));
      const Status status = Prefer(preference, alignment, reductions);
      const bool taken = status.ok() && TakeFirst(handle, preference);
      cublasLtMatmulPreferenceDestroy(preference);
      if (!status.ok() || taken) return status;
    }
    return UnimplementedError(StrFormat(
        "Gemm: cuBLASLt has no algorithm for (%lld, %lld, %lld), %s by %s to %s",
        static_cast<long long>(s.m), static_cast<long long>(s.n), static_cast<long long>(s.k),
        NameOf(s.a), NameOf(s.b), s.bf16_out ? "bf16" : "fp32"));
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

Result<Matmul::Plan*> Matmul::PlanOf(const Key& key) {
  const auto found = plans_.find(key);
  if (found != plans_.end() && found->second != nullptr) return found->second.get();
  if (found != plans_.end()) return UnimplementedError("Gemm: cuBLASLt has no algorithm");
  auto plan = std::make_unique<Plan>();
  const Status built = plan->Build(handle_, key, workspace_);
  if (built.code() == StatusCode::kUnimplemented) plans_[key] = nullptr;
  RETURN_IF_ERROR(built);
  Plan* const result = plan.get();
  plans_[key] = std::move(plan);
  return result;
}

Result<int64_t> Matmul::DepthOf(const Key& key) {
  const int64_t k = key.shape.k;
  const auto runs = [&](int64_t depth) {
    Key part = key;
    part.shape.k = depth;
    return depth == 0 || PlanOf(part).ok();
  };
  if (runs(k)) return k;
  if (IsOuterFp8(key.shape.a)) {
    for (const int64_t depth : {4096, 2048, 1024, 512, 256}) {
      if (depth < k && runs(depth) && runs(k % depth)) return depth;
    }
  }
  return PlanOf(key).status();
}

bool Matmul::Has(const MatmulShape& shape) {
  return DepthOf({shape, {}, IsNarrow(shape.a) ? shape.k : 0}).ok();
}

Matmul::Key Matmul::KeyOf(const MatmulShape& shape, const void* a, const void* b, const void* out) {
  const auto aligned = [](const void* p) { return AlignmentOf(reinterpret_cast<uintptr_t>(p)); };
  return {shape, {aligned(a), aligned(b), aligned(out)}, IsNarrow(shape.a) ? shape.k : 0};
}

bool Matmul::RunsWhole(const MatmulShape& shape, const void* a, const void* b, const void* out) {
  const Result<int64_t> depth = DepthOf(KeyOf(shape, a, b, out));
  return depth.ok() && *depth == shape.k;
}

Status Matmul::Run(cudaStream_t stream, const MatmulShape& shape, const void* a, const void* b,
                   const MatmulScales& scales, bool accumulate, void* out) {
  Key key = KeyOf(shape, a, b, out);
  ASSIGN_OR_RETURN(const int64_t depth, DepthOf(key));
  if (depth == shape.k) return Launch(stream, key, a, b, scales, accumulate, out);
  if (shape.bf16_out) {
    return UnimplementedError("Gemm: sums that go in slices are gathered in FP32, not in BF16");
  }
  // Bytes that lie along the sum.
  for (int64_t first = 0; first < shape.k; first += depth) {
    key.shape.k = std::min(depth, shape.k - first);
    RETURN_IF_ERROR(Launch(stream, key, static_cast<const uint8_t*>(a) + first,
                           static_cast<const uint8_t*>(b) + first, scales, accumulate || first > 0,
                           out));
  }
  return OkStatus();
}

Status Matmul::Launch(cudaStream_t stream, const Key& key, const void* a, const void* b,
                      const MatmulScales& scales, bool accumulate, void* out) {
  ASSIGN_OR_RETURN(Plan* const plan, PlanOf(key));
  if (IsNarrow(key.shape.a)) RETURN_IF_ERROR(plan->SetScales(scales));
  const float one = 1.0f;
  const float beta = accumulate ? 1.0f : 0.0f;
  return LtStatus(cublasLtMatmul(handle_, plan->operation, &one, b, plan->first, a, plan->second,
                                 &beta, out, plan->result, out, plan->result, &plan->algorithm,
                                 workspace_, kWorkspaceBytes, stream),
                  "cublasLtMatmul");
}

}  // namespace nibble::cuda
