// SPDX-License-Identifier: Apache-2.0
//
// CpuBackend: the reference backend: plain loops and packed products on a thread pool; OpenBLAS
// (one thread per tile) for thin products and on processors without a kernel of ours.
//
// Thread-safety, errors and aliasing: as kernels/backend.h. Ownership: owns its threads and
// workspaces. Invariant: where a chunk's bounds enter a result they depend on shapes only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/backend.h"
#include "kernels/checks.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/codes/gemm.h"
#include "kernels/cpu/codes/reference.h"
#include "kernels/cpu/group_quantizer.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {

struct FloatKernel;
struct QuantizeJob;
struct RowStats;

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, int64_t memory_limit_bytes, const codes::KernelSet& code_kernels);

  std::string_view name() const override { return "cpu"; }
  std::string description() const override;
  Support Supports(const OpQuery& query) const override;

  Result<void*> Allocate(int64_t size_bytes) override;
  void Free(void* memory) override;
  int64_t allocated_bytes() const override { return allocated_bytes_; }
  int64_t peak_allocated_bytes() const override { return peak_allocated_bytes_; }
  int64_t workspace_bytes() const override;
  Status CopyIn(void* device, const void* host, int64_t size_bytes) override;
  Status CopyOut(void* host, const void* device, int64_t size_bytes) override;
  Status Copy(void* to_device, const void* from_device, int64_t size_bytes) override;
  Status Fill(TensorView x, float value) override;
  Status Synchronize() override { return OkStatus(); }

  Status EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) override;
  Status EmbeddingBackward(ConstTensorView ids, ConstTensorView dout, TensorView dtable) override;
  Status RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon, TensorView out,
                        TensorView rstd) override;
  Status RmsNormBackward(ConstTensorView dout, ConstTensorView x, ConstTensorView weight,
                         ConstTensorView rstd, TensorView dx, bool accumulate_dx,
                         TensorView dweight) override;
  Status RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) override;
  Status RopeBackward(const RopeParams& params, TensorView dx) override;
  Status AttentionForward(const AttentionParams& params, ConstTensorView q, ConstTensorView k,
                          ConstTensorView v, TensorView out, TensorView lse) override;
  Status AttentionBackward(const AttentionParams& params, ConstTensorView dout, ConstTensorView q,
                           ConstTensorView k, ConstTensorView v, ConstTensorView out,
                           ConstTensorView lse, TensorView dq, TensorView dk,
                           TensorView dv) override;
  Status SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) override;
  Status SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                        TensorView dgate, TensorView dup) override;
  Status Add(ConstTensorView a, ConstTensorView b, TensorView out) override;
  Status Axpy(float factor, ConstTensorView x, TensorView y) override;
  Status Scale(float factor, TensorView x) override;
  Status RoundToBf16(ConstTensorView x, TensorView out) override;
  Status CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                      TensorView gradient, TensorView losses) override;
  Status Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
              Transpose transpose_b, bool accumulate, TensorView out) override;
  Status Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                  QuantizedTensor* out, TensorView decoded) override;
  Status QuantizeBoth(const Quant& first, const QuantizeContext& first_context, const Quant& second,
                      const QuantizeContext& second_context, ConstTensorView x,
                      QuantizedTensor* first_out, QuantizedTensor* second_out) override;
  Status Dequantize(const QuantizedTensor& x, TensorView decoded) override;
  Status DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                       ConstTensorView weight, const QuantizedTensor& quantized,
                       TensorView gradient) override;
  Status DgeScale(const PendingFactor& pending) override;
  Status ApplyMask(const QuantizedTensor& quantized, TensorView x) override;
  Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                       const QuantizedTensor& b, TensorView out) override;
  Status Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                ConstTensorView x, TensorView out) override;
  Result<QuantizationHealth> MeasureHealth(ConstTensorView x, const QuantizedTensor& quantized,
                                           ConstTensorView decoded) override;
  Status AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m, TensorView v,
               TensorView parameter) override;
  Status RoundedAdamW(const AdamWParams& params, const StatePrecision& precision,
                      ConstTensorView gradient, TensorView m, TensorView v, TensorView parameter,
                      StateScales* scales) override;
  Status RoundToE4M3(float scale, TensorView x) override;
  Status AddPath(ConstTensorView x, TensorView previous, TensorView path) override;
  Result<int64_t> ResetOscillating(float ratio, ConstTensorView path,
                                   ConstTensorView quantized_path, ConstTensorView quantized,
                                   TensorView weight) override;
  Result<float> AbsMax(ConstTensorView x) override;
  Result<double> Sum(ConstTensorView x) override;
  Result<double> SumOfSquares(ConstTensorView x) override;

 private:
  // A view of the workspace `buffer`, grown when needed.
  Result<float*> Workspace(Buffer& buffer, int64_t floats);
  Status Rope(const RopeParams& params, TensorView x, bool inverse);
  // The (cos, sin) table for positions [0, positions), grown when needed.
  Result<const float*> RopeTable(const RopeParams& params, int64_t positions);
  Result<double> Reduce(ConstTensorView x, bool squared);
  Status WriteCodeScales(codes::CodeGemm* gemm);

  // Quantize in two passes over rows, one tensor for one or two jobs; struct RowStats carries what
  // one pass tells the next.
  static Status CheckQuantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                              TensorView decoded, QuantizedTensor* out);
  Status RunJobs(std::span<QuantizeJob> jobs, ConstTensorView x);
  Status PrepareFold(QuantizeJob* job, ConstTensorView x, float* reciprocals);
  Status MeasureRows(std::span<QuantizeJob> jobs, ConstTensorView x);
  static void MeasureJobRow(const QuantizeJob& job, ConstTensorView x, int64_t row, int worker);
  Status SetScales(const QuantizeJob& job);
  Status PlaceResidual(const QuantizeJob& job, uint32_t residual_bits);
  Status EncodeRows(std::span<const QuantizeJob> jobs, ConstTensorView x);
  // gradient = product * D, plus what it was when accumulating; product may be gradient. All
  // estimators but their part through the scale's maximum.
  Status ApplyEstimator(const WeightEstimator& estimator, bool accumulate, ConstTensorView product,
                        ConstTensorView weight, const QuantizedTensor& quantized,
                        TensorView gradient);
  // The same beyond the plain DGE with scales by tensor or row.
  void EstimateByGroups(const WeightEstimator& estimator, bool accumulate, ConstTensorView product,
                        ConstTensorView weight, const QuantizedTensor& quantized,
                        TensorView gradient);
  Status MaxGradientPart(const WeightEstimator& estimator, ConstTensorView wgrad,
                         ConstTensorView weight, const QuantizedTensor& quantized,
                         TensorView gradient);
  // Quantize where NeedsGroupQuantizer says so.
  Status QuantizeGroups(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                        QuantizedTensor* out, TensorView decoded);
  // Clamping bounds from the order statistics of the whole tensor (one pair) or of each row.
  Status TensorBounds(const Occ& occ, ConstTensorView x, RowStats* stats);
  // Two ways to the same pair: sorting the tails beyond a guess (false: the guess was bad), and
  // counting every value.
  Result<bool> TailBounds(const Occ& occ, ConstTensorView x, float* low, float* high);
  Status HistogramBounds(const Occ& occ, ConstTensorView x, float* low, float* high);
  Status TokenBounds(const Occ& occ, ConstTensorView x, RowStats* stats);

  ThreadPool pool_;
  int64_t memory_limit_bytes_;
  int64_t allocated_bytes_ = 0;
  int64_t peak_allocated_bytes_ = 0;
  std::unordered_map<void*, int64_t> allocations_;

  // Workspaces, one per purpose so that operations may call each other.
  Buffer rope_table_, norm_partials_, attention_scratch_, attention_packed_, gemm_a_, gemm_b_;
  Buffer reduce_partials_, histogram_, tail_keys_, tails_, row_stats_, column_stats_, reciprocals_,
      code_scales_;
  codes::ReferenceWorkspace code_reference_;
  codes::FastWorkspace code_workspace_;
  const codes::KernelSet& code_kernels_;
  const FloatKernel& bf16_kernel_;  // of GemmMode::kBf16
  const SgemmFn blas_;              // of thin products; nullptr in a build without OpenBLAS
  GroupWorkspace groups_;
  Buffer max_gradient_decoded_;
  int64_t rope_positions_ = 0;
  int64_t rope_head_dim_ = 0;
  double rope_theta_ = 0;
};

}  // namespace nibble::cpu
