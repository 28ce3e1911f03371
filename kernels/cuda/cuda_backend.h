// SPDX-License-Identifier: Apache-2.0
//
// CudaBackend: the operations of a training step on one NVIDIA device.
//
// Purpose: the numerics of the CPU backend on the device: codes and scales are equal bit for bit
// (shared formats code, no multiply-add contraction), products and sums agree within the stated
// accumulation error. Every result is deterministic: no floating-point atomics, fixed reduction
// trees. Thread-safety, errors, aliasing: as kernels/backend.h. Ownership: owns the stream, the
// cuBLASLt handle, its allocations and workspaces. All work is ordered on one stream.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/code_carrier.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/step_recorder.h"

namespace nibble::cuda {

// Ids that are none, as the device notes them: position << 32 | id of the first, all bits when
// there is none.
enum class IdCheck : uint8_t { kToken, kTarget };
struct IdErrors {
  unsigned long long first[2];
};

struct RowStats;   // row_stats.h
struct GroupTask;  // group_kernels.cuh

class CudaBackend final : public Backend {
 public:
  // UNAVAILABLE without a device this build has code for; the message names the driver's error.
  static Result<std::unique_ptr<Backend>> Make(const BackendOptions& options);
  ~CudaBackend() override;

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  Support Supports(const OpQuery& query) const override;
  bool StoresBf16() const override { return true; }

  Result<void*> Allocate(int64_t size_bytes) override;
  void Free(void* memory) override;
  int64_t allocated_bytes() const override { return allocated_bytes_; }
  int64_t peak_allocated_bytes() const override { return peak_allocated_bytes_; }
  int64_t workspace_bytes() const override;
  int64_t memory_bytes() const override { return memory_bytes_; }
  Status CopyIn(void* device, const void* host, int64_t size_bytes) override;
  Status CopyOut(void* host, const void* device, int64_t size_bytes) override;
  Status Copy(void* to_device, const void* from_device, int64_t size_bytes) override;
  Status Fill(TensorView x, float value) override;
  Status Synchronize() override;
  Status TransferIn(int lane, void* device, const void* host, int64_t size_bytes) override;
  Status TransferOut(int lane, void* host, const void* device, int64_t size_bytes) override;
  Status LaneAfterWork(int lane) override;
  Status WorkAfterLane(int lane) override;
  Status PinHost(void* memory, int64_t size_bytes) override;
  void UnpinHost(void* memory) override;
  Status BeginStep() override;
  Status EndStep() override { return recorder_->EndStep(); }

  Status EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) override;
  Status EmbeddingBackward(ConstTensorView ids, ConstTensorView dout, TensorView dtable) override;
  Status RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon, TensorView out,
                        TensorView rstd) override;
  Status AddRmsNormForward(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                           float epsilon, TensorView sum, TensorView out, TensorView rstd) override;
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
  Status QuantizeFormed(const OperandSource& source, const Quant& quant,
                        const QuantizeContext& context, QuantizedTensor* out) override;
  Status QuantizeRotated(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                         TensorView rotated, QuantizedTensor* out, TensorView decoded) override;
  Status SwiGluBackwardToCodes(const SwiGluGradientViews& views,
                               const std::array<QuantizeTarget, 2>& dgate,
                               const std::array<QuantizeTarget, 2>& dup) override;
  Status ReadCounters(QuantizedTensor* x) override;
  Status Dequantize(const QuantizedTensor& x, TensorView decoded) override;
  Status DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                       ConstTensorView weight, const QuantizedTensor& quantized,
                       TensorView gradient) override;
  Status DgeScale(const PendingFactor& pending) override;
  Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                       const QuantizedTensor& b, TensorView out) override;
  Status ApplyMask(const QuantizedTensor& quantized, TensorView x) override;
  Status Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                ConstTensorView x, TensorView out) override;
  Result<QuantizationHealth> MeasureHealth(ConstTensorView x, const QuantizedTensor& quantized,
                                           ConstTensorView decoded) override;
  Status AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m, TensorView v,
               TensorView parameter) override;
  bool QuantizesInUpdate(const Quant& quant) const override;
  Status AdamWQuantize(const AdamWParams& params, const Quant& quant,
                       const QuantizeContext& context, ConstTensorView gradient, TensorView m,
                       TensorView v, TensorView parameter, QuantizedTensor* out) override;
  Status AddPath(ConstTensorView x, TensorView previous, TensorView path) override;
  Result<int64_t> ResetOscillating(float ratio, ConstTensorView path,
                                   ConstTensorView quantized_path, ConstTensorView quantized,
                                   TensorView weight) override;
  Status RoundedAdamW(const AdamWParams& params, const StatePrecision& precision,
                      ConstTensorView gradient, TensorView m, TensorView v, TensorView parameter,
                      StateScales* scales) override;
  Status RoundToE4M3(float scale, TensorView x) override;
  Result<float> AbsMax(ConstTensorView x) override;
  Result<double> Sum(ConstTensorView x) override;
  Result<double> SumOfSquares(ConstTensorView x) override;
  Result<double> ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                    ConstTensorView gradients) override;

 private:
  explicit CudaBackend(int device, const BackendOptions& options);
  Status TakeArena();
  bool InArena(const void* memory) const;
  // Waits, and reports the bad ids that were met since the last wait.
  Status WaitAndReport();
  // `work` is of the host with the device: what was recorded goes first.
  template <typename Work>
  Status OutsideRecording(Work work) {
    RETURN_IF_ERROR(recorder_->Pause());
    RETURN_IF_ERROR(work());
    return recorder_->Resume();
  }
  Status Open();  // stream, handles, description
  // Whether this build has code for the device; asks for one kernel of it.
  static bool HasCode();
  Status CheckLane(int lane);  // makes its stream at its first use

  std::vector<const Buffer*> Workspaces() const;

  // Notes the first id outside [0, limit) on the device; the next wait reports it.
  Status CheckIds(IdCheck check, ConstTensorView ids, int64_t limit);
  // RMSNorm of x, or of the sum of x and b; b and sum have no data where there is none.
  Status Norm(const char* op, ConstTensorView x, ConstTensorView b, ConstTensorView weight,
              float epsilon, TensorView sum, TensorView out, TensorView rstd);
  Status Rope(const RopeParams& params, ConstTensorView x, TensorView out, float sign);
  Status MakeRopeTable(const RopeParams& params, int64_t positions);
  // x in BF16: itself, or rounded into `buffer`.
  Result<const void*> InBf16(ConstTensorView x, Buffer& buffer);
  // Products on codes; code_gemm.cu.
  Status Carry(const QuantizedTensor& x, CodeCarrier carrier, bool transposed, Buffer& buffer);
  // Of codes that bytes hold as they are, sixteen at a time.
  Status CarryPieces(const QuantizedTensor& x, bool transposed, Buffer& buffer);
  // Carry into its place, unless it lies there; its memory.
  Result<const void*> CarryTo(CarriedPlace place, const QuantizedTensor& x, CodeCarrier carrier,
                              bool transposed);
  template <typename Carrier>
  Status PlaceOutliers(const QuantizedTensor& x, bool transposed, typename Carrier::Stored* out);
  Status CarryResidual(const QuantizedTensor& x, CodeCarrier carrier, bool transposed,
                       Buffer& buffer);
  Status CarryBlockScales(const QuantizedTensor& x, CodeCarrier carrier, bool transposed,
                          Buffer& buffer);
  Status SideScales(const QuantizedTensor& x, bool folded, CodeCarrier carrier, int64_t count,
                    Buffer& buffer);
  Status CarriedProduct(const MatmulShape& shape, const void* a, const void* b, bool accumulate,
                        TensorView out);
  // Replaces each view that is not FP32, or all where `rounds`, by an FP32 copy of BF16 numbers,
  // valid until the next attention call.
  Status WideOperands(bool rounds, std::initializer_list<ConstTensorView*> operands);
  // Attention on tensor cores; flash_attention.cu.
  static bool TakesFlash(const AttentionParams& p);
  // The BF16 numbers of each: its own, or a copy valid until the next attention call.
  Status Bf16Operands(std::initializer_list<ConstTensorView> operands, const uint16_t** first);
  Status FlashForward(const AttentionParams& p, ConstTensorView q, ConstTensorView k,
                      ConstTensorView v, TensorView out, TensorView lse);
  Status FlashBackward(const AttentionParams& p, ConstTensorView dout, ConstTensorView q,
                       ConstTensorView k, ConstTensorView v, ConstTensorView lse,
                       const float* delta, TensorView dq, TensorView dk, TensorView dv);
  Result<double> Reduce(ConstTensorView x, bool squared);
  Result<double> SumPartials(int64_t count);
  // gradient = product .* D, plus what it was when accumulating; estimate.cu.
  Status ApplyEstimator(const PendingFactor& pending, bool accumulate, ConstTensorView product);
  // How often each BF16 value occurs, into histogram_.
  template <typename Values>
  Status CountKeys(Values x, int64_t size, bool aligned);
  // Forms BF16 rows and counts them.
  Status CountSwiGlu(ConstTensorView gate, ConstTensorView up, TensorView out);
  // `counted`: histogram_ is of x.
  Status OccBounds(const Quant& quant, ConstTensorView x, bool counted, RowStats* stats);
  Status PrepareFold(const QuantizeContext& context, ConstTensorView x, bool clamped,
                     QuantizedTensor* out);
  Status MeasureColumns(ConstTensorView x, const RowStats* stats, const QuantizedTensor& out);
  Status StartCounting(QuantizedTensor* out);
  Status ReserveOutliers(const Quant& quant, ConstTensorView x, QuantizedTensor* out);
  Status QuantizeRows(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                      QuantizedTensor* out, TensorView decoded, bool counted);
  // Quantize of FP32 or BF16 rows.
  Status QuantizeView(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                      QuantizedTensor* out, TensorView decoded, bool counted);
  template <typename Measured, typename Encoded>
  Status QuantizeTiles(const Measured& measured, const Encoded& encoded, ConstTensorView x,
                       std::span<const QuantizeTarget> targets);
  // Small groups; group_quantize.cu. `rotation`: size of that of x, 0 for none.
  Status QuantizeGroups(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                        int rotation, QuantizedTensor* out, TensorView decoded);
  Status PrepareGroups(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                       bool in_tiles, QuantizedTensor* out, GroupTask* task);
  static bool RotatesInTiles(const Quant& quant);
  Status QuantizeInCells(const Quant& quant, const QuantizeContext& context, GroupTask task);
  Status QuantizeInTiles(const Quant& quant, const QuantizeContext& context, int rotation,
                         const GroupTask& group);
  Status HoldAmax(const Quant& quant, const QuantizeContext& context, GroupTask* task);
  Status CorrectScales(const GroupTask& task);
  Status DequantizeGroups(const QuantizedTensor& x, TensorView decoded);
  Status PrepareQuantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                         QuantizedTensor* out);
  Status SetScales(const Quant& quant, ConstTensorView x, const RowStats* stats,
                   const uint32_t* columns, QuantizedTensor* out);
  Status Encode(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                const RowStats* stats, QuantizedTensor* out, TensorView decoded);

  int device_;
  BackendOptions options_;
  std::string description_;
  int64_t memory_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  // Of transfers: a stream, and what it waits for and is waited for by.
  struct Lane {
    cudaStream_t stream = nullptr;
    cudaEvent_t worked = nullptr, transferred = nullptr;
  };
  std::array<Lane, kTransferLanes> lanes_ = {};
  std::unique_ptr<Matmul> matmul_;
  std::unique_ptr<GraphApi> graphs_;
  std::unique_ptr<StepRecorder> recorder_;
  uint8_t* arena_memory_ = nullptr;
  Arena arena_{0};
  IdErrors* id_errors_ = nullptr;       // on the device
  IdErrors* host_id_errors_ = nullptr;  // pinned
  int64_t id_limits_[2] = {0, 0};       // of the last checks
  Status deferred_;                     // of a Free, which returns none
  int64_t block_shared_bytes_ = 0;      // most that a block may ask for
  bool launch_blocking_ = false;        // every launch is to answer for itself
  NarrowProducts products_;
  int64_t allocated_bytes_ = 0;
  int64_t peak_allocated_bytes_ = 0;
  std::unordered_map<void*, int64_t> allocations_;
  // One per purpose, so that operations may call each other.
  Buffer rope_table_, norm_partials_, attention_delta_, attention_gradient_, attention_rounded_,
      gemm_a_, gemm_b_, gemm_out_, reduce_partials_;
  Buffer histogram_, row_stats_, row_scan_, column_amax_, words_, code_residual_, code_out_;
  Buffer scale_a_, scale_b_, block_a_, block_b_, group_amax_, group_sums_, token_order_;
  std::array<Buffer, kCarriedPlaces> carried_memory_;
  CarriedOperands carried_;
  int64_t rope_positions_ = 0, rope_head_dim_ = 0;  // of rope_table_
  double rope_theta_ = 0;
  uint64_t last_version_ = 0;  // of codes
};

}  // namespace nibble::cuda
