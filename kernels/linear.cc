// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <algorithm>

#include "base/strings.h"

namespace nibble {
namespace {

uint32_t StreamOf(uint32_t layer, Slot slot) { return layer * 8 + static_cast<uint32_t>(slot); }

QuantizeContext ContextOf(const LinearStep& step, uint32_t layer, Slot slot) {
  QuantizeContext context;
  context.seed = step.seed;
  context.step = step.step;
  context.stream = StreamOf(layer, slot);
  return context;
}

// The slot whose quantized copy serves `slot`.
Slot Holder(const LinearRecipe& recipe, Slot slot, Slot forward) {
  return recipe.SharesCodes(slot) ? forward : slot;
}

double GradientToNoise(const QuantizationHealth& health) {
  if (health.elements == 0) return 0;
  if (health.noise_norm == 0) return kMaxGradientToNoise;
  return std::min(kMaxGradientToNoise, health.source_norm / health.noise_norm);
}

}  // namespace

int64_t LinearWorkspace::size_bytes() const {
  int64_t total = gradient_codes_.enc.capacity_bytes();
  for (const Buffer* buffer : {&input_, &weight_, &gradient_, &gradient_wgrad_, &product_}) {
    total += buffer->capacity_bytes();
  }
  return total;
}

LinearInput::LinearInput(LinearWorkspace* workspace, const LinearRecipe& recipe, uint32_t layer)
    : workspace_(*workspace), recipe_(recipe), layer_(layer) {}

bool LinearInput::BorrowsSource(const LinearRecipe& recipe) {
  return !recipe.Resolved(Slot::kXf).has_scale() || !recipe.Resolved(Slot::kXw).has_scale();
}
bool LinearInput::borrows_source() const { return BorrowsSource(recipe_); }

Status LinearInput::QuantizeSlot(const LinearStep& step, Slot slot, ConstTensorView x,
                                 QuantizedTensor* out) {
  Backend& backend = workspace_.backend_;
  ASSIGN_OR_RETURN(const TensorView decoded, workspace_.input_.View(backend, rows_, cols_));
  workspace_.input_content_ = {};
  RETURN_IF_ERROR(
      backend.Quantize(recipe_.slot(slot), ContextOf(step, layer_, slot), x, out, decoded));
  workspace_.input_content_ = {stamp_, slot};
  if (step.measure_health && slot == Slot::kXf) {
    ASSIGN_OR_RETURN(health_, backend.MeasureHealth(x, *out, decoded));
  }
  return OkStatus();
}

Status LinearInput::Set(const LinearStep& step, ConstTensorView x) {
  if (x.rows <= 0 || x.cols <= 0) {
    return InvalidArgumentError(StrFormat("linear input is (%lld, %lld); expected at least (1, 1)",
                                          static_cast<long long>(x.rows),
                                          static_cast<long long>(x.cols)));
  }
  rows_ = x.rows;
  cols_ = x.cols;
  stamp_ = workspace_.NextStamp();
  source_ = borrows_source() ? x : ConstTensorView();
  // Xw first, so that the forward operand is what the workspace holds when Forward comes.
  if (!recipe_.SharesCodes(Slot::kXw) && recipe_.slot(Slot::kXw).has_scale()) {
    RETURN_IF_ERROR(QuantizeSlot(step, Slot::kXw, x, &wgrad_));
  }
  if (recipe_.slot(Slot::kXf).has_scale()) {
    RETURN_IF_ERROR(QuantizeSlot(step, Slot::kXf, x, &forward_));
  }
  return OkStatus();
}

Result<ConstTensorView> LinearInput::Operand(Slot slot) {
  if (stamp_ == 0) return FailedPreconditionError("linear input used before Set");
  const Slot holder = Holder(recipe_, slot, Slot::kXf);
  const Quant& quant = recipe_.slot(holder);
  if (quant.elem == Elem::kF32) return source_;
  Backend& backend = workspace_.backend_;
  ASSIGN_OR_RETURN(const TensorView decoded, workspace_.input_.View(backend, rows_, cols_));
  const LinearWorkspace::Content wanted{stamp_, holder};
  if (workspace_.input_content_ == wanted) return ConstTensorView(decoded);
  workspace_.input_content_ = {};
  if (quant.elem == Elem::kBf16) {
    RETURN_IF_ERROR(backend.RoundToBf16(source_, decoded));
  } else {
    RETURN_IF_ERROR(backend.Dequantize(holder == Slot::kXf ? forward_ : wgrad_, decoded));
  }
  workspace_.input_content_ = wanted;
  return ConstTensorView(decoded);
}

int64_t LinearInput::saved_bytes() const {
  if (stamp_ == 0) return 0;
  int64_t total = 0;
  if (recipe_.slot(Slot::kXf).has_scale()) total += forward_.size_bytes();
  if (!recipe_.SharesCodes(Slot::kXw) && recipe_.slot(Slot::kXw).has_scale()) {
    total += wgrad_.size_bytes();
  }
  return total;
}

int64_t LinearInput::nonfinite_amax() const {
  return forward_.nonfinite_amax + wgrad_.nonfinite_amax;
}

QuantizedLinear::QuantizedLinear(LinearWorkspace* workspace, const LinearRecipe& recipe,
                                 uint32_t layer)
    : workspace_(*workspace), recipe_(recipe), layer_(layer) {}

int64_t QuantizedLinear::quantized_weight_bytes() const {
  return stamp_ == 0 ? 0
                     : (weight_.rows > 0 ? weight_.size_bytes() : 0) +
                           (weight_dgrad_.rows > 0 ? weight_dgrad_.size_bytes() : 0);
}

Status QuantizedLinear::CheckShapes(const char* op, const LinearInput& input,
                                    ConstTensorView weight, ConstTensorView y) const {
  if (input.rows() == y.rows && input.cols() == weight.cols && weight.rows == y.cols) {
    return OkStatus();
  }
  return InvalidArgumentError(StrFormat(
      "%s: input (%lld, %lld), weight (%lld, %lld), output (%lld, %lld) do not fit; expected "
      "(T, K), (N, K), (T, N)",
      op, static_cast<long long>(input.rows()), static_cast<long long>(input.cols()),
      static_cast<long long>(weight.rows), static_cast<long long>(weight.cols),
      static_cast<long long>(y.rows), static_cast<long long>(y.cols)));
}

Status QuantizedLinear::QuantizeWeight(const LinearStep& step, Slot slot, ConstTensorView weight,
                                       QuantizedTensor* out) {
  Backend& backend = workspace_.backend_;
  ASSIGN_OR_RETURN(const TensorView decoded,
                   workspace_.weight_.View(backend, weight.rows, weight.cols));
  workspace_.weight_content_ = {};
  RETURN_IF_ERROR(
      backend.Quantize(recipe_.slot(slot), ContextOf(step, layer_, slot), weight, out, decoded));
  workspace_.weight_content_ = {stamp_, slot};
  nonfinite_amax_ += out->nonfinite_amax;
  return OkStatus();
}

Status QuantizedLinear::PrepareWeight(const LinearStep& step, ConstTensorView weight,
                                      uint64_t version) {
  if (stamp_ != 0 && version == version_) return OkStatus();
  stamp_ = workspace_.NextStamp();
  version_ = version;
  if (!recipe_.SharesCodes(Slot::kWd) && recipe_.slot(Slot::kWd).has_scale()) {
    RETURN_IF_ERROR(QuantizeWeight(step, Slot::kWd, weight, &weight_dgrad_));
  }
  if (recipe_.slot(Slot::kWf).has_scale()) {
    RETURN_IF_ERROR(QuantizeWeight(step, Slot::kWf, weight, &weight_));
  }
  return OkStatus();
}

Result<ConstTensorView> QuantizedLinear::WeightOperand(Slot slot, ConstTensorView weight) {
  const Slot holder = Holder(recipe_, slot, Slot::kWf);
  const Quant& quant = recipe_.slot(holder);
  if (quant.elem == Elem::kF32) return weight;
  Backend& backend = workspace_.backend_;
  ASSIGN_OR_RETURN(const TensorView decoded,
                   workspace_.weight_.View(backend, weight.rows, weight.cols));
  const LinearWorkspace::Content wanted{stamp_, holder};
  if (workspace_.weight_content_ == wanted) return ConstTensorView(decoded);
  workspace_.weight_content_ = {};
  if (quant.elem == Elem::kBf16) {
    RETURN_IF_ERROR(backend.RoundToBf16(weight, decoded));
  } else {
    RETURN_IF_ERROR(backend.Dequantize(holder == Slot::kWf ? weight_ : weight_dgrad_, decoded));
  }
  workspace_.weight_content_ = wanted;
  return ConstTensorView(decoded);
}

Status QuantizedLinear::Forward(const LinearStep& step, LinearInput& input, ConstTensorView weight,
                                uint64_t weight_version, TensorView y) {
  RETURN_IF_ERROR(CheckShapes("linear forward", input, weight, y));
  RETURN_IF_ERROR(PrepareWeight(step, weight, weight_version));
  ASSIGN_OR_RETURN(const ConstTensorView x, input.Operand(Slot::kXf));
  ASSIGN_OR_RETURN(const ConstTensorView w, WeightOperand(Slot::kWf, weight));
  Backend& backend = workspace_.backend_;
  if (step.measure_health && recipe_.slot(Slot::kWf).has_scale()) {
    ASSIGN_OR_RETURN(health_.weight, backend.MeasureHealth(weight, weight_, w));
  }
  return backend.Gemm(GemmMode::kF32, x, Transpose::kNo, w, Transpose::kYes, false, y);
}

Result<ConstTensorView> QuantizedLinear::GradientOperand(Slot slot, const LinearStep& step,
                                                         ConstTensorView dy, Buffer& buffer) {
  const Quant& quant = recipe_.slot(slot);
  if (quant.elem == Elem::kF32) return dy;
  Backend& backend = workspace_.backend_;
  ASSIGN_OR_RETURN(const TensorView decoded, buffer.View(backend, dy.rows, dy.cols));
  if (quant.elem == Elem::kBf16) {
    RETURN_IF_ERROR(backend.RoundToBf16(dy, decoded));
    return ConstTensorView(decoded);
  }
  QuantizedTensor& codes = workspace_.gradient_codes_;
  QuantizeContext context = ContextOf(step, layer_, slot);
  context.keep_codes = false;
  RETURN_IF_ERROR(backend.Quantize(quant, context, dy, &codes, decoded));
  nonfinite_amax_ += codes.nonfinite_amax;
  if (step.measure_health && slot == Slot::kGd) {
    ASSIGN_OR_RETURN(health_.gradient, backend.MeasureHealth(dy, codes, decoded));
    health_.gradient_to_noise = GradientToNoise(health_.gradient);
  }
  return ConstTensorView(decoded);
}

Status QuantizedLinear::WeightGradient(ConstTensorView gradient, ConstTensorView input,
                                       ConstTensorView weight, TensorView dweight) {
  Backend& backend = workspace_.backend_;
  if (!recipe_.weight_estimator.dge()) {
    return backend.Gemm(GemmMode::kF32, gradient, Transpose::kYes, input, Transpose::kNo, true,
                        dweight);
  }
  ASSIGN_OR_RETURN(const TensorView product,
                   workspace_.product_.View(backend, dweight.rows, dweight.cols));
  RETURN_IF_ERROR(backend.Gemm(GemmMode::kF32, gradient, Transpose::kYes, input, Transpose::kNo,
                               false, product));
  return backend.DgeAccumulate(recipe_.weight_estimator, product, weight, weight_, dweight);
}

Status QuantizedLinear::Backward(const LinearStep& step, ConstTensorView dy, LinearInput& input,
                                 ConstTensorView weight, uint64_t weight_version, TensorView dx,
                                 bool accumulate_dx, TensorView dweight) {
  RETURN_IF_ERROR(CheckShapes("linear backward", input, weight, dy));
  if (dweight.rows != weight.rows || dweight.cols != weight.cols) {
    return InvalidArgumentError(StrFormat(
        "linear backward: weight gradient (%lld, %lld) is not of the weight's shape (%lld, %lld)",
        static_cast<long long>(dweight.rows), static_cast<long long>(dweight.cols),
        static_cast<long long>(weight.rows), static_cast<long long>(weight.cols)));
  }
  RETURN_IF_ERROR(PrepareWeight(step, weight, weight_version));
  Backend& backend = workspace_.backend_;
  ASSIGN_OR_RETURN(const ConstTensorView gd,
                   GradientOperand(Slot::kGd, step, dy, workspace_.gradient_));
  if (dx.data != nullptr) {
    ASSIGN_OR_RETURN(const ConstTensorView w, WeightOperand(Slot::kWd, weight));
    RETURN_IF_ERROR(
        backend.Gemm(GemmMode::kF32, gd, Transpose::kNo, w, Transpose::kNo, accumulate_dx, dx));
  }
  ConstTensorView gw = gd;
  if (!recipe_.SharesCodes(Slot::kGw)) {
    ASSIGN_OR_RETURN(gw, GradientOperand(Slot::kGw, step, dy, workspace_.gradient_wgrad_));
  }
  ASSIGN_OR_RETURN(const ConstTensorView x, input.Operand(Slot::kXw));
  return WeightGradient(gw, x, weight, dweight);
}

Result<LinearPaths> PathsOf(const Backend& backend, const LinearRecipe& recipe, int64_t tokens,
                            int64_t in, int64_t out) {
  const auto path = [&](const char* gemm, Slot left, Slot right, int64_t rows, int64_t cols,
                        int64_t depth) -> Result<Support> {
    OpQuery query{Op::kQuantizedGemm,
                  recipe.Resolved(left).elem,
                  recipe.Resolved(right).elem,
                  rows,
                  cols,
                  depth};
    if (!recipe.Resolved(left).has_scale() && !recipe.Resolved(right).has_scale()) {
      query.op = Op::kGemm;
    }
    const Support support = backend.Supports(query);
    if (support != Support::kNone) return support;
    return UnimplementedError(std::string("backend ") + std::string(backend.name()) + " has no " +
                              gemm + " of " + ElemName(query.left) + " by " +
                              ElemName(query.right));
  };
  LinearPaths paths{};
  ASSIGN_OR_RETURN(paths.fprop, path("fprop", Slot::kXf, Slot::kWf, tokens, out, in));
  ASSIGN_OR_RETURN(paths.dgrad, path("dgrad", Slot::kGd, Slot::kWd, tokens, in, out));
  ASSIGN_OR_RETURN(paths.wgrad, path("wgrad", Slot::kGw, Slot::kXw, out, in, tokens));
  return paths;
}

}  // namespace nibble
