// SPDX-License-Identifier: Apache-2.0
//
// TimedBackend: a Backend that forwards every call to another one and sums time by operation.
//
// Purpose: shares of a training step's time without a clock in the product's own path. A class
// derived from it may do something of its own around every call.
// Thread-safety: as Backend: one caller thread. Ownership: borrows the inner backend, which must
// outlive it; memory is the inner backend's.
#pragma once

#include <array>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "worker/bench/measure.h"

namespace nibble::bench {

class TimedBackend : public Backend {
 public:
  // Products with an axis of `head_size` (the vocabulary) count as "head gemm"; 0: none do.
  TimedBackend(Backend* inner, ClockKind clock, int64_t head_size = 0)
      : inner_(*inner), clock_(clock), head_size_(head_size) {}

  // Seconds by operation since the last Reset, in order of first use.
  const std::vector<std::pair<std::string, double>>& seconds() const { return seconds_; }
  double SecondsOf(const std::string& operation) const;
  void Reset() { seconds_.clear(); }

  std::string_view name() const override { return inner_.name(); }
  std::string description() const override { return inner_.description(); }
  Support Supports(const OpQuery& query) const override { return inner_.Supports(query); }
  bool StoresBf16() const override { return inner_.StoresBf16(); }
  Result<void*> Allocate(int64_t size_bytes) override { return inner_.Allocate(size_bytes); }
  void Free(void* memory) override { inner_.Free(memory); }
  int64_t allocated_bytes() const override { return inner_.allocated_bytes(); }
  int64_t peak_allocated_bytes() const override { return inner_.peak_allocated_bytes(); }
  int64_t workspace_bytes() const override { return inner_.workspace_bytes(); }
  int64_t memory_bytes() const override { return inner_.memory_bytes(); }
  Status CopyIn(void* device, const void* host, int64_t size_bytes) override;
  Status CopyOut(void* host, const void* device, int64_t size_bytes) override;
  Status Copy(void* to_device, const void* from_device, int64_t size_bytes) override;
  Status Fill(TensorView x, float value) override;
  Status Synchronize() override { return inner_.Synchronize(); }
  Status TransferIn(int lane, void* device, const void* host, int64_t size_bytes) override;
  Status TransferOut(int lane, void* host, const void* device, int64_t size_bytes) override;
  Status LaneAfterWork(int lane) override { return inner_.LaneAfterWork(lane); }
  Status WorkAfterLane(int lane) override { return inner_.WorkAfterLane(lane); }
  Status PinHost(void* memory, int64_t size_bytes) override {
    return inner_.PinHost(memory, size_bytes);
  }
  void UnpinHost(void* memory) override { inner_.UnpinHost(memory); }
  Status BeginStep() override { return inner_.BeginStep(); }
  Status EndStep() override { return inner_.EndStep(); }
  Status ReadCounters(QuantizedTensor* x) override { return inner_.ReadCounters(x); }
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
  // QuantizeRotated stays a composition, which is timed by its parts.
  Status SwiGluBackwardToCodes(const SwiGluGradientViews& views,
                               const std::array<QuantizeTarget, 2>& dgate,
                               const std::array<QuantizeTarget, 2>& dup) override;
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
  bool QuantizesInUpdate(const Quant& quant) const override {
    return inner_.QuantizesInUpdate(quant);
  }
  Status AdamWQuantize(const AdamWParams& params, const Quant& quant,
                       const QuantizeContext& context, ConstTensorView gradient, TensorView m,
                       TensorView v, TensorView parameter, QuantizedTensor* out) override;
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
  Result<double> ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                    ConstTensorView gradients) override;

 protected:
  // Around every call that works on memory.
  virtual void Enter() {}
  virtual void Leave() {}

 private:
  template <typename Call>
  auto Time(const char* operation, Call&& call);
  void Count(const char* operation, double seconds);

  Backend& inner_;
  ClockKind clock_;
  int64_t head_size_;
  std::vector<std::pair<std::string, double>> seconds_;
};

}  // namespace nibble::bench
