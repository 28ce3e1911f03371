// SPDX-License-Identifier: Apache-2.0
//
// Backend: memory and the operations of a LLaMA training step on one device.
//
// Purpose: the training core is written once against this interface. The CPU backend is the
// reference; a CUDA backend is a plug-in with the same numerics.
// Thread-safety: one caller thread at a time per backend (thread-compatible). Calls are ordered;
// an asynchronous backend may return before the work is done, results are readable by the host
// only after CopyOut or Synchronize.
// Ownership: borrows every view for the length of the call (device order included); workspaces
// belong to the backend, grow on demand and are never shrunk, so a warmed-up step allocates
// nothing. Invariants: every result is a pure function of its inputs: bitwise independent of the
// number of threads. Reductions have a fixed order. Shapes: matrices are dense row-major. T tokens,
// D hidden, V vocabulary, F feed-forward width, H query heads, G key-value heads, C head dimension.
// All float data is DType::kF32 here, unless a method says otherwise. Errors: INVALID_ARGUMENT
// names the operation, the view and both shapes; UNIMPLEMENTED when a type is not supported;
// INTERNAL for device failures. "accumulates" means +=; otherwise overwritten. Aliasing: outputs
// must not overlap inputs unless the method says so.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/operand_source.h"
#include "kernels/quantize_context.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"
#include "kernels/tensor.h"

namespace nibble {

enum class Op : uint8_t {
  kEmbedding,
  kRmsNorm,
  kRope,
  kAttention,
  kSwiGlu,
  kElementwise,
  kCrossEntropy,
  kGemm,
  kQuantize,
  kQuantizedGemm,
  kAdamW,
  kReduction,
};
const char* OpName(Op op);

// kReference: quantized operands are decoded and multiplied in high precision. kFast: codes go to
// the unit that multiplies them.
enum class Support : uint8_t { kNone, kReference, kFast };
const char* SupportName(Support support);  // "none", "reference", "fast"

// rows x cols of the output; depth is the contraction of a GEMM. 0 = any. kRmsNorm and kSwiGlu with
// an element format: whether QuantizeFormed and SwiGluBackwardToCodes are more than compositions.
struct OpQuery {
  Op op;
  Elem left = Elem::kF32;
  Elem right = Elem::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;
};

enum class Transpose : uint8_t { kNo, kYes };
// kF32: operands as they are. kBf16: both operands rounded to BF16 (nearest even) first; the
// products are accumulated in FP32 either way. Between CPUs kBf16 may differ in the last bits
// (kernels/cpu/bf16_kernel.h).
enum class GemmMode : uint8_t { kF32, kBf16 };

// Positions of row t: t % seq + position_offset. Rows are batch-major.
struct RopeParams {
  int64_t batch = 1;
  int64_t seq = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;  // even
  int64_t position_offset = 0;
  double theta = 10000.0;
};

// Causal grouped-query attention. kv_seq >= seq: the queries are the last `seq` positions of the
// keys (generation with a key-value cache); the backward pass needs kv_seq == seq.
struct AttentionParams {
  int64_t batch = 1;
  int64_t seq = 0;
  int64_t kv_seq = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads
  int64_t head_dim = 0;
  // kBf16 rounds Q, K, V and the probabilities to BF16 before each product.
  GemmMode mode = GemmMode::kF32;
};

struct AdamWParams {
  float learning_rate = 3e-4f;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0.1f;  // decoupled; 0 for norms
  int64_t step = 1;           // 1 for the first update; bias correction uses it
  float gradient_scale = 1;   // multiplies the gradient first (clipping, averaging)
  // Of a stochastically rounded state: element i of m, v and the parameter takes word i of random
  // streams `stream`, stream + 1 and stream + 2 at (seed, step).
  uint64_t seed = 0;
  uint32_t stream = 0;
};

// Scales of one tensor's rounded AdamW state; 1 for formats without one. Value type.
struct StateScales {
  float m = 1;
  float v = 1;
  float master = 1;
};

// A GEMM on integer codes (E2M1 in half units, INT4, INT8), scales applied to exact integer sums.
struct QuantizedGemmParams {
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  // The operand's codes enter without its scales (folded into the other operand).
  bool fold_a = false;
  bool fold_b = false;
  bool accumulate = false;
  // kReference: the same sums by FP32 Gemm on integer-valued operands. Equal bit for bit to kFast.
  Support path = Support::kFast;
};

// A gradient that has gathered its products and lacks the factor of its weight's estimator.
struct PendingFactor {
  WeightEstimator estimator;
  ConstTensorView weight;
  const QuantizedTensor* quantized = nullptr;  // codes of that weight
  TensorView gradient;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;    // "cpu"
  virtual std::string description() const = 0;  // device, threads, math library
  virtual Support Supports(const OpQuery&) const = 0;
  // Whether BF16 is a type of this device's memory. Then views that a comment marks [bf16] may be
  // of DType::kBF16: what is read counts as the FP32 numbers it stands for, what is written is
  // rounded once, to nearest even, from the FP32 that would be written otherwise. Products of BF16
  // operands run at that type's rate.
  virtual bool StoresBf16() const { return false; }

  // --- Memory -----------------------------------------------------------------------------------
  // 64-byte aligned device memory, content undefined. RESOURCE_EXHAUSTED names size and total.
  virtual Result<void*> Allocate(int64_t size_bytes) = 0;
  virtual void Free(void* memory) = 0;          // nullptr is fine
  virtual int64_t allocated_bytes() const = 0;  // live bytes, workspaces included
  virtual int64_t peak_allocated_bytes() const = 0;
  virtual int64_t workspace_bytes() const = 0;  // of allocated_bytes, the backend's own
  // Memory of the device in all; 0: not known, or the host's.
  virtual int64_t memory_bytes() const { return 0; }
  virtual Status CopyIn(void* device, const void* host, int64_t size_bytes) = 0;
  virtual Status CopyOut(void* host, const void* device, int64_t size_bytes) = 0;  // waits
  virtual Status Copy(void* to_device, const void* from_device, int64_t size_bytes) = 0;
  virtual Status Fill(TensorView x, float value) = 0;  // f32
  virtual Status Synchronize() = 0;                    // lanes included
  // Transfers beside the work, on lanes. What a lane is given happens in order; how it falls
  // against the operations is said by the two calls after it. Here: plain copies, which need
  // neither. The host may touch its side again after Synchronize.
  static constexpr int kTransferLanes = 2;
  virtual Status TransferIn(int lane, void* device, const void* host, int64_t size_bytes);
  virtual Status TransferOut(int lane, void* host, const void* device, int64_t size_bytes);
  virtual Status LaneAfterWork(int lane);  // what it is given next follows all operations so far
  virtual Status WorkAfterLane(int lane);  // operations from here on follow what it was given
  // Locks host memory in its place while transfers use it, for their speed; any memory works
  // without. UNAVAILABLE when the system locks no more.
  virtual Status PinHost(void* memory, int64_t size_bytes);
  virtual void UnpinHost(void* memory);
  // Between the two the caller issues one training step, the same operations as in the step before
  // but for their numbers: a backend may gather them and hand them to its device together. Results
  // and errors are as without. BeginStep inside a step is FAILED_PRECONDITION where steps are
  // gathered; EndStep outside one does nothing. No-ops by default.
  virtual Status BeginStep();
  virtual Status EndStep();

  // --- Embedding --------------------------------------------------------------------------------
  // out[t] = table[ids[t]]. table (V, D), ids (T) i32, out (T, D). OUT_OF_RANGE for a bad id, from
  // an asynchronous backend at the next wait, the bad id counting as none until then.
  virtual Status EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) = 0;
  // dtable[ids[t]] += dout[t], in ascending t. dtable (V, D) accumulates.
  virtual Status EmbeddingBackward(ConstTensorView ids, ConstTensorView dout,
                                   TensorView dtable) = 0;

  // --- RMSNorm ----------------------------------------------------------------------------------
  // rstd[t] = 1/sqrt(mean(x[t]^2) + eps); out = x * rstd * weight. x, out (T, D), weight (D),
  // rstd (T). out may be x.
  virtual Status RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon,
                                TensorView out, TensorView rstd) = 0;
  // The residual stream and its norm: sum = a + b, then out and rstd of the sum as above. The bits
  // of Add and RmsNormForward, whose composition is the default. sum may be a or b.
  virtual Status AddRmsNormForward(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                                   float epsilon, TensorView sum, TensorView out, TensorView rstd);
  // dx (T, D) overwritten, or accumulated when accumulate_dx; dweight (D) accumulates. dx may be
  // dout when not accumulating.
  virtual Status RmsNormBackward(ConstTensorView dout, ConstTensorView x, ConstTensorView weight,
                                 ConstTensorView rstd, TensorView dx, bool accumulate_dx,
                                 TensorView dweight) = 0;

  // --- Rotary position embedding, Hugging Face half-split convention -----------------------------
  // x, out (batch * seq, heads * head_dim): pair (i, i + head_dim/2) turns by
  // position * theta^(-2i/head_dim). out may be x, or [bf16] and apart. Backward is the inverse
  // rotation, in place.
  virtual Status RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) = 0;
  virtual Status RopeBackward(const RopeParams& params, TensorView dx) = 0;

  // --- Attention --------------------------------------------------------------------------------
  // q, out (batch * seq, heads * head_dim); k, v (batch * kv_seq, kv_heads * head_dim);
  // lse (batch * heads, seq): log-sum-exp of each row of scaled scores, kept for backward.
  // scores = q k^T / sqrt(head_dim), causal. q, k, v and out are of one type [bf16].
  virtual Status AttentionForward(const AttentionParams& params, ConstTensorView q,
                                  ConstTensorView k, ConstTensorView v, TensorView out,
                                  TensorView lse) = 0;
  // Recomputes the probabilities from lse. dq, dk, dv overwritten.
  virtual Status AttentionBackward(const AttentionParams& params, ConstTensorView dout,
                                   ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                   ConstTensorView out, ConstTensorView lse, TensorView dq,
                                   TensorView dk, TensorView dv) = 0;

  // --- SwiGLU: out = silu(gate) * up, all (T, F); gate and up of one type [bf16]
  // ------------------ out may be gate or up.
  virtual Status SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) = 0;
  // dgate and dup overwritten; each may be dout, or gate or up when those are FP32.
  virtual Status SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                                TensorView dgate, TensorView dup) = 0;

  // --- Elementwise, any equal sizes
  // ---------------------------------------------------------------
  virtual Status Add(ConstTensorView a, ConstTensorView b, TensorView out) = 0;  // out may alias
  virtual Status Axpy(float factor, ConstTensorView x, TensorView y) = 0;        // y += factor x
  virtual Status Scale(float factor, TensorView x) = 0;                          // x *= factor
  // Each [bf16]. out may be x when both are FP32.
  virtual Status RoundToBf16(ConstTensorView x, TensorView out) = 0;

  // --- Loss -------------------------------------------------------------------------------------
  // Softmax cross-entropy of a chunk of rows. logits (R, V); targets (R) i32, kIgnoreTarget rows
  // count nothing; losses (R): -log p[target], 0 for ignored rows. gradient (R, V):
  // gradient_scale * (softmax - onehot), 0 rows where ignored; the logits themselves, or of
  // DType::kBF16 [bf16] elsewhere, or no data. Unless they are the gradient, the logits keep their
  // values. The caller chunks rows so that full logits of a batch never exist.
  // OUT_OF_RANGE for a target outside [0, V).
  static constexpr int32_t kIgnoreTarget = -1;
  virtual Status CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                              TensorView gradient, TensorView losses) = 0;

  // --- GEMM -------------------------------------------------------------------------------------
  // out = op(a) op(b), or out += when accumulate. Shapes after op: (m, k) (k, n) -> (m, n).
  // Operands in mode kBf16 [bf16]; out [bf16] unless accumulating.
  // Linear layers: Y = Gemm(X, no, W, yes); dX = Gemm(dY, no, W, no); dW = Gemm(dY, yes, X, no).
  virtual Status Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                      Transpose transpose_b, bool accumulate, TensorView out) = 0;

  // --- Quantization -----------------------------------------------------------------------------
  // x (R, C) [bf16] rounded by `quant` into codes, scales and residual of `out` (buffers grown as
  // needed). x is rounded to BF16 first (except elem fp32, which is refused: there is nothing to
  // quantize). `decoded` (R, C): what the codes mean as x, residual included and folding undone, as
  // FP32; data == nullptr skips it; may be x. Scale groups: QuantizedTensor::per_row and
  // per_column. A non-finite block amax gives scale 1 and raises out->nonfinite_amax.
  virtual Status Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                          QuantizedTensor* out, TensorView decoded) = 0;
  // Quantize of the same x twice: dY as dgrad and as wgrad need it. The same bits as two calls.
  virtual Status QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                              const Quant& second, const QuantizeContext& second_context,
                              ConstTensorView x, QuantizedTensor* first_out,
                              QuantizedTensor* second_out);
  // Quantize of source.rows once they are formed, where nothing but the codes is wanted: the rows
  // themselves need not reach memory, and source.rows holds anything afterwards. The bits of
  // FormRows and Quantize, or QuantizeRotated, whose composition is the default.
  virtual Status QuantizeFormed(const OperandSource& source, const Quant& quant,
                                const QuantizeContext& context, QuantizedTensor* out);
  // Quantize of x [bf16] under quant.rotation: RotateSource into `rotated` (R, C), then Quantize of
  // that, whose composition is the default. The bits of it; `rotated` is room for the rotated
  // values, which need not reach it, and holds anything afterwards. `decoded` may be x.
  virtual Status QuantizeRotated(const Quant& quant, const QuantizeContext& context,
                                 ConstTensorView x, TensorView rotated, QuantizedTensor* out,
                                 TensorView decoded);
  // SwiGluBackward and QuantizeBoth of dgate and of dup, where nothing but the codes is wanted: all
  // views hold anything afterwards. The bits of the composition, which is the default.
  virtual Status SwiGluBackwardToCodes(const SwiGluGradientViews& views,
                                       const std::array<QuantizeTarget, 2>& dgate,
                                       const std::array<QuantizeTarget, 2>& dup);
  // Fills residual_count, residual_enc and nonfinite_amax of a tensor that is still counting;
  // waits.
  virtual Status ReadCounters(QuantizedTensor* x);
  // decoded (R, C) from codes, scales and residual; equal bit for bit to Quantize's.
  // FAILED_PRECONDITION when the codes were not kept.
  virtual Status Dequantize(const QuantizedTensor& x, TensorView decoded) = 0;
  // gradient += wgrad .* D(bf16(weight) .* enc), the estimator's derivative on the E2M1 axis, plus
  // the part through the scale's maximum where the estimator has one; wgrad, weight, gradient
  // (N, K); enc as `quantized` holds it.
  virtual Status DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                               ConstTensorView weight, const QuantizedTensor& quantized,
                               TensorView gradient) = 0;
  // gradient = 0 + gradient .* D, D as above: products gathered first, their factor once.
  // INVALID_ARGUMENT for an estimator with a part through the scale's maximum, which is no factor.
  virtual Status DgeScale(const PendingFactor& pending) = 0;
  // x (rows, cols of `quantized`) becomes 0 where the mask of `quantized` is 0. FAILED_PRECONDITION
  // without a mask.
  virtual Status ApplyMask(const QuantizedTensor& quantized, TensorView x) = 0;
  // out = op(a) op(b) on codes; shapes as Gemm. Each scale must be constant along the contraction
  // or per group of it (equal groups in both operands). Outer scales: out = fl(fl(S * ra) * rb), S
  // the exact integer sum, ra = fl(unit_a / enc_a). Groups: FP32 sum over groups in ascending
  // order. Outliers of an operand count with their full value. out as Gemm's. UNIMPLEMENTED where
  // Supports says kNone.
  virtual Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                               const QuantizedTensor& b, TensorView out) = 0;
  // out = (x .* d) H / sqrt(n) on each group of rotation.size along context.contraction, signs d
  // from (seed, step, rotation_stream); inverse: out = (x H / sqrt(n)) .* d. FP32 butterflies, one
  // FP32 multiply. out may be x. INVALID_ARGUMENT when the axis is not a multiple of the size.
  virtual Status Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                        ConstTensorView x, TensorView out) = 0;
  // Compares x [bf16], rounded to BF16, with its decoded form. Host result; waits.
  virtual Result<QuantizationHealth> MeasureHealth(ConstTensorView x,
                                                   const QuantizedTensor& quantized,
                                                   ConstTensorView decoded) = 0;

  // --- Optimizer --------------------------------------------------------------------------------
  // p -= lr * weight_decay * p; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
  // p -= lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps). All one size; g is not changed.
  virtual Status AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                       TensorView v, TensorView parameter) = 0;

  // AdamW, then Quantize of the new parameter, codes only. The bits of both calls, whose
  // composition is the default. In one pass over memory where QuantizesInUpdate; elsewhere codes
  // may as well be made when they are needed.
  virtual bool QuantizesInUpdate(const Quant& quant) const;  // false by default
  virtual Status AdamWQuantize(const AdamWParams& params, const Quant& quant,
                               const QuantizeContext& context, ConstTensorView gradient,
                               TensorView m, TensorView v, TensorView parameter,
                               QuantizedTensor* out);

  // AdamW with a rounded state (arXiv 2310.18313): m and v decode to FP32, the update takes the
  // new ones unrounded, then they are stored under new scales and the parameter, held as FP32
  // values, is rounded to the master format. kBf16Sr rounds to BF16 stochastically. kE4M3 and kF16
  // have one scale per tensor, the largest power of two that keeps its amax within 448 or 65504. m
  // and v: u8 codes, f16, bf16 or f32 as `precision` says. A parameter that is not finite stays
  // unrounded. UNIMPLEMENTED by default.
  virtual Status RoundedAdamW(const AdamWParams& params, const StatePrecision& precision,
                              ConstTensorView gradient, TensorView m, TensorView v,
                              TensorView parameter, StateScales* scales);

  // x = E4M3(x * scale), the code's value: what a gradient is on the wire. f32. UNIMPLEMENTED by
  // default.
  virtual Status RoundToE4M3(float scale, TensorView x);

  // Weight rule oscireset (arXiv 2510.27527). AddPath: path += |x - previous|, then previous = x.
  // f32, equal sizes. UNIMPLEMENTED by default.
  virtual Status AddPath(ConstTensorView x, TensorView previous, TensorView path);
  // weight = quantized where quantized_path > 0 and quantized_path >= ratio * path. Returns the
  // number of such elements. UNIMPLEMENTED by default.
  virtual Result<int64_t> ResetOscillating(float ratio, ConstTensorView path,
                                           ConstTensorView quantized_path,
                                           ConstTensorView quantized, TensorView weight);

  // --- Reductions to the host (wait); FP64 partial sums in a fixed order
  // ---------------------------
  virtual Result<double> Sum(ConstTensorView x) = 0;
  virtual Result<double> SumOfSquares(ConstTensorView x) = 0;
  // DgeScale of all of `pending`, then SumOfSquares of `gradients`, in which their gradients lie
  // one after another. Composed of both by default.
  virtual Result<double> ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                            ConstTensorView gradients);
  // max |x|, x [bf16]; NaN when an element is. UNIMPLEMENTED by default.
  virtual Result<float> AbsMax(ConstTensorView x);
};

// What a slot's rotation makes of its source: x, rounded to BF16 unless quant.source is kRequant,
// then Rotate. `rotated` may be x.
Status RotateSource(Backend& backend, const Quant& quant, const QuantizeContext& context,
                    ConstTensorView x, TensorView rotated);

struct BackendOptions {
  int threads = 0;                 // 0: one per usable core; at most kMaxThreads
  int64_t memory_limit_bytes = 0;  // 0: no limit of our own
  // Device memory to take in one block at once, as far as the device has it; what does not fit into
  // it is allocated apart. 0: none. Host backends have no use for it.
  int64_t arena_bytes = 0;
};
inline constexpr int kMaxThreads = 64;

// "cpu", or "cuda" through its plug-in (NOT_FOUND without one, UNAVAILABLE without a usable
// device). INVALID_ARGUMENT for other names or bad options.
Result<std::unique_ptr<Backend>> MakeBackend(std::string_view name, const BackendOptions& options);

}  // namespace nibble
