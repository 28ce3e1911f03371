// SPDX-License-Identifier: Apache-2.0
//
// QuantizedLinear::Backward: operands of dY, the two products, and the pair of layers before a
// SwiGLU.
#include <algorithm>

#include "base/strings.h"
#include "kernels/linear.h"

namespace nibble {
namespace {

double GradientToNoise(const QuantizationHealth& health) {
  if (health.elements == 0) return 0;
  if (health.noise_norm == 0) return kMaxGradientToNoise;
  return std::min(kMaxGradientToNoise, health.source_norm / health.noise_norm);
}

}  // namespace

QuantizedLinear::BackwardForms QuantizedLinear::FormsOf(ConstTensorView dy,
                                                        ConstTensorView weight) const {
  const Backend& backend = workspace_.backend();
  return {FormOf(backend, recipe_, kDgrad, dy.rows, weight.cols, weight.rows),
          FormOf(backend, recipe_, kWgrad, weight.rows, weight.cols, dy.rows)};
}

bool QuantizedLinear::TakesGradientCodes(const LinearStep& step, const BackwardForms& forms) const {
  const Quant& gd = recipe_.slot(Slot::kGd);
  const Quant& gw = recipe_.slot(Slot::kGw);
  return !recipe_.SharesCodes(Slot::kGw) && forms.dgrad.on_codes && forms.wgrad.on_codes &&
         !step.measure_health && gd.rotation.size == 0 && gw.rotation.size == 0 &&
         !gd.has_history() && !gw.has_history();
}

Status QuantizedLinear::PrepareGradients(const LinearStep& step, const BackwardOperands& operands,
                                         const LinearInput& input, ConstTensorView dy,
                                         GradientOperands* gradients) {
  SlotOperand& gd = gradients->dgrad;
  SlotOperand& gw = gradients->wgrad;
  const SlotOperand& weight = Weight(Slot::kWd);
  if (TakesGradientCodes(step, operands.forms)) {
    RETURN_IF_ERROR(SlotOperand::MakeBoth(workspace_, recipe_, layer_, step, weight, *operands.x,
                                          dy, &gd, &gw));
    nonfinite_amax_ += gd.nonfinite_amax() + gw.nonfinite_amax();
    return OkStatus();
  }
  const auto& [dgrad, wgrad] = operands.forms;
  const bool shared = recipe_.SharesCodes(Slot::kGw);
  // dY is used at once: the codes are kept only where a product multiplies them.
  OperandForms forms;
  forms.codes = dgrad.on_codes || (shared && wgrad.on_codes);
  forms.decoded = !dgrad.on_codes || (shared && !wgrad.on_codes);
  forms.health = step.measure_health;
  RETURN_IF_ERROR(gd.Make(workspace_, recipe_, Slot::kGd, layer_, step, &weight, forms, dy,
                          {layer_, &dgrad_history_}));
  nonfinite_amax_ += gd.nonfinite_amax();
  if (forms.health && gd.has_codes()) {
    health_.gradient = gd.health();
    health_.gradient_to_noise = GradientToNoise(health_.gradient);
  }
  if (shared) return OkStatus();
  forms.codes = wgrad.on_codes;
  forms.decoded = !wgrad.on_codes;
  RETURN_IF_ERROR(gw.Make(workspace_, recipe_, Slot::kGw, layer_, step, operands.x, forms, dy,
                          {input.layer_, &wgrad_history_}));
  nonfinite_amax_ += gw.nonfinite_amax();
  if (forms.health && gw.has_codes()) health_.gradient_wgrad = gw.health();
  return OkStatus();
}

Status QuantizedLinear::InputGradient(const ProductForm& form, SlotOperand& gradient,
                                      const SlotOperand& input, bool accumulate, TensorView dx) {
  SlotOperand& weight = Weight(Slot::kWd);
  const bool rotated = FromForward(Slot::kWd);
  if (!input.NeedsPullBack(rotated)) {
    return Multiply(workspace_, recipe_, kDgrad, form, gradient, weight, accumulate, dx);
  }
  Backend& backend = workspace_.backend();
  TensorView product = dx;
  if (accumulate) {
    ASSIGN_OR_RETURN(product, workspace_.Product(dx.rows, dx.cols));
  }
  RETURN_IF_ERROR(Multiply(workspace_, recipe_, kDgrad, form, gradient, weight, false, product));
  RETURN_IF_ERROR(input.PullBack(backend, rotated, product));
  return accumulate ? backend.Axpy(1.0f, product, dx) : OkStatus();
}

// The codes of a stochastic or rotated weight, or one that follows the columns of X, change from
// one micro-batch to the next, and their scales with them.
std::optional<PendingFactor> QuantizedLinear::Pending(ConstTensorView weight,
                                                      TensorView dweight) const {
  if (!recipe_.HasSharedFactor() || !weight_.made()) return std::nullopt;
  return PendingFactor{recipe_.weight_estimator, weight, &weight_.codes(), dweight};
}

Status QuantizedLinear::WeightGradient(const LinearStep& step, const ProductForm& form,
                                       SlotOperand& gradient, SlotOperand& input,
                                       ConstTensorView weight, TensorView dweight) {
  const WeightEstimator& estimator = recipe_.weight_estimator;
  const bool estimated =
      (estimator.kind != Estimator::kSte || estimator.max_gradient != MaxGradient::kIgnore) &&
      !(step.defer_factor && recipe_.HasSharedFactor());
  const bool rotated = FromForward(Slot::kXw);
  const bool pulled = weight_.NeedsPullBack(rotated);
  if (!estimated && !pulled) {
    return Multiply(workspace_, recipe_, kWgrad, form, gradient, input, true, dweight);
  }
  Backend& backend = workspace_.backend();
  ASSIGN_OR_RETURN(const TensorView product, workspace_.Product(dweight.rows, dweight.cols));
  RETURN_IF_ERROR(Multiply(workspace_, recipe_, kWgrad, form, gradient, input, false, product));
  if (pulled) RETURN_IF_ERROR(weight_.PullBack(backend, rotated, product));
  if (!estimated) return backend.Axpy(1.0f, product, dweight);
  return backend.DgeAccumulate(estimator, product, weight, weight_.codes(), dweight);
}

Result<QuantizedLinear::BackwardOperands> QuantizedLinear::PrepareBackward(
    const LinearStep& step, ConstTensorView dy, LinearInput& input, ConstTensorView weight,
    uint64_t weight_version, TensorView dweight) {
  RETURN_IF_ERROR(CheckShapes("linear backward", input, weight, dy));
  if (dweight.rows != weight.rows || dweight.cols != weight.cols) {
    return InvalidArgumentError(StrFormat(
        "linear backward: weight gradient (%lld, %lld) is not of the weight's shape (%lld, %lld)",
        static_cast<long long>(dweight.rows), static_cast<long long>(dweight.cols),
        static_cast<long long>(weight.rows), static_cast<long long>(weight.cols)));
  }
  RETURN_IF_ERROR(PrepareWeight(step, input, weight, weight_version));
  BackwardOperands operands;
  ASSIGN_OR_RETURN(operands.forward, input.Operand(step, Slot::kXf));
  ASSIGN_OR_RETURN(operands.x, input.Operand(step, Slot::kXw));
  operands.forms = FormsOf(dy, weight);
  RETURN_IF_ERROR(PrepareWeightDgrad(step, weight, weight_version));
  return operands;
}

Status QuantizedLinear::BackwardProducts(const LinearStep& step, const BackwardOperands& operands,
                                         GradientOperands& gradients, ConstTensorView weight,
                                         TensorView dx, bool accumulate_dx, TensorView dweight) {
  SlotOperand& gd = gradients.dgrad;
  if (dx.data != nullptr) {
    RETURN_IF_ERROR(InputGradient(operands.forms.dgrad, gd, *operands.forward, accumulate_dx, dx));
  }
  SlotOperand& gw = recipe_.SharesCodes(Slot::kGw) ? gd : gradients.wgrad;
  return WeightGradient(step, operands.forms.wgrad, gw, *operands.x, weight, dweight);
}

Status QuantizedLinear::Backward(const LinearStep& step, ConstTensorView dy, LinearInput& input,
                                 ConstTensorView weight, uint64_t weight_version, TensorView dx,
                                 bool accumulate_dx, TensorView dweight) {
  ASSIGN_OR_RETURN(const BackwardOperands operands,
                   PrepareBackward(step, dy, input, weight, weight_version, dweight));
  GradientOperands& gradients = workspace_.gradients(0);
  RETURN_IF_ERROR(PrepareGradients(step, operands, input, dy, &gradients));
  return BackwardProducts(step, operands, gradients, weight, dx, accumulate_dx, dweight);
}

Status QuantizedLinear::BackwardOfSwiGlu(const LinearStep& step, const SwiGluGradientViews& v,
                                         const Call& of_gate, const Call& of_up,
                                         uint64_t weight_version, TensorView dx) {
  Backend& backend = of_gate.layer->workspace_.backend();
  const auto takes_codes = [&](const Call& c, ConstTensorView dy) {
    const Elem elem = c.layer->recipe_.slot(Slot::kGd).elem;
    return backend.Supports({Op::kSwiGlu, elem}) == Support::kFast &&
           c.layer->TakesGradientCodes(step, c.layer->FormsOf(dy, c.weight));
  };
  if (takes_codes(of_gate, v.dgate) && takes_codes(of_up, v.dup)) {
    return BackwardToCodes(step, v, {&of_gate, &of_up}, weight_version, dx);
  }
  RETURN_IF_ERROR(backend.SwiGluBackward(v.dout, v.gate, v.up, v.dgate, v.dup));
  RETURN_IF_ERROR(of_gate.layer->Backward(step, v.dgate, *of_gate.input, of_gate.weight,
                                          weight_version, dx, false, of_gate.dweight));
  return of_up.layer->Backward(step, v.dup, *of_up.input, of_up.weight, weight_version, dx, true,
                               of_up.dweight);
}

Status QuantizedLinear::BackwardToCodes(const LinearStep& step, const SwiGluGradientViews& views,
                                        const std::array<const Call*, 2>& calls,
                                        uint64_t weight_version, TensorView dx) {
  LinearWorkspace& workspace = calls[0]->layer->workspace_;
  const std::array<ConstTensorView, 2> dy = {views.dgate, views.dup};
  std::array<BackwardOperands, 2> operands = {};
  std::array<std::array<QuantizeTarget, 2>, 2> targets = {};
  for (size_t i = 0; i < 2; ++i) {
    const Call& c = *calls[i];
    QuantizedLinear& layer = *c.layer;
    GradientOperands& gradients = workspace.gradients(i);
    ASSIGN_OR_RETURN(operands[i], layer.PrepareBackward(step, dy[i], *c.input, c.weight,
                                                        weight_version, c.dweight));
    ASSIGN_OR_RETURN(targets[i],
                     SlotOperand::PrepareBoth(workspace, layer.recipe_, layer.layer_, step,
                                              layer.Weight(Slot::kWd), *operands[i].x, dy[i],
                                              &gradients.dgrad, &gradients.wgrad));
  }
  RETURN_IF_ERROR(workspace.backend().SwiGluBackwardToCodes(views, targets[0], targets[1]));
  for (size_t i = 0; i < 2; ++i) {
    const Call& c = *calls[i];
    GradientOperands& gradients = workspace.gradients(i);
    c.layer->nonfinite_amax_ += gradients.dgrad.nonfinite_amax() + gradients.wgrad.nonfinite_amax();
    RETURN_IF_ERROR(
        c.layer->BackwardProducts(step, operands[i], gradients, c.weight, dx, i > 0, c.dweight));
  }
  return OkStatus();
}

}  // namespace nibble
