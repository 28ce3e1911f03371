// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include "base/strings.h"

namespace nibble {

LinearInput::LinearInput(LinearWorkspace* workspace, const LinearRecipe& recipe, uint32_t layer,
                         InputOperands* shared)
    : workspace_(*workspace), recipe_(recipe), layer_(layer), shared_(shared) {}

bool LinearInput::BorrowsSource(const LinearRecipe& recipe) {
  return !recipe.Resolved(Slot::kXf).has_scale() || !recipe.Resolved(Slot::kXw).has_scale();
}
bool LinearInput::borrows_source() const { return BorrowsSource(recipe_); }

Status LinearInput::CheckRows(ConstTensorView x) const {
  if (x.rows > 0 && x.cols > 0) return OkStatus();
  return InvalidArgumentError(StrFormat("linear input is (%lld, %lld); expected at least (1, 1)",
                                        static_cast<long long>(x.rows),
                                        static_cast<long long>(x.cols)));
}

bool LinearInput::TakesCodesAlone(const LinearStep& step, int64_t rows, int64_t cols) const {
  const Quant& quant = recipe_.slot(Slot::kXf);
  const bool alone = recipe_.SharesCodes(Slot::kXw) || RequantizesWgrad();
  return quant.has_scale() && alone && !quant.has_history() && quant.split == Split::kNone &&
         SplitQuant().split == Split::kNone && !step.measure_health &&
         FormOf(workspace_.backend(), recipe_, kFprop, rows, 0, cols).on_codes;
}

Status LinearInput::Set(const LinearStep& step, const OperandSource& source) {
  const TensorView& x = source.rows;
  if (!TakesCodesAlone(step, x.rows, x.cols)) {
    RETURN_IF_ERROR(FormRows(workspace_.backend(), source));
    return Set(step, x);
  }
  RETURN_IF_ERROR(CheckRows(x));
  rows_ = x.rows;
  cols_ = x.cols;
  return MakeFormed(step, source);
}

Status LinearInput::SetAgain(const LinearStep& step, const OperandSource& source) {
  const TensorView& x = source.rows;
  if (!TakesCodesAlone(step, x.rows, x.cols)) {
    RETURN_IF_ERROR(FormRows(workspace_.backend(), source));
    return SetAgain(step, x);
  }
  RETURN_IF_ERROR(CheckAgain(x));
  return MakeFormed(step, source);
}

Status LinearInput::MakeFormed(const LinearStep& step, const OperandSource& source) {
  SlotOperand& forward = operands().forward;
  RETURN_IF_ERROR(forward.MakeFormed(workspace_, recipe_, Slot::kXf, layer_, step, source));
  forward_nonfinite_ = forward.nonfinite_amax();
  stamp_ = forward.stamp();
  return OkStatus();
}

Status LinearInput::Set(const LinearStep& step, ConstTensorView x) {
  RETURN_IF_ERROR(CheckRows(x));
  rows_ = x.rows;
  cols_ = x.cols;
  RETURN_IF_ERROR(GatherNorms(step, x));
  if (shared_ != nullptr) {
    if (recipe_.slot(Slot::kXf).has_history()) forward_before_ = forward_history_;
    if (recipe_.slot(Slot::kXw).has_history()) wgrad_before_ = wgrad_history_;
  }
  RETURN_IF_ERROR(MakeOperands(step, x, &forward_history_, &wgrad_history_));
  const SlotOperand& forward = operands().forward;
  if (step.measure_health && forward.has_codes()) health_ = forward.health();
  if (recipe_.slot(Slot::kXf).split == Split::kChannels) {
    last_channels_ = forward.split().channels();
  }
  return OkStatus();
}

Status LinearInput::CheckAgain(ConstTensorView x) const {
  if (shared_ != nullptr && stamp_ != 0 && x.rows == rows_ && x.cols == cols_) return OkStatus();
  return FailedPreconditionError("linear input made again without shared operands and a Set");
}

Status LinearInput::SetAgain(const LinearStep& step, ConstTensorView x) {
  RETURN_IF_ERROR(CheckAgain(x));
  LinearStep again = step;
  again.measure_health = false;
  again.advance_histories = false;
  return MakeOperands(again, x, &forward_before_, &wgrad_before_);
}

Status LinearInput::MakeOperands(const LinearStep& step, ConstTensorView x, AmaxHistory* forward,
                                 AmaxHistory* wgrad) {
  InputOperands& made = operands();
  // Xw first, so that the forward operand is what the workspace holds when Forward comes.
  if (!recipe_.SharesCodes(Slot::kXw) && !RequantizesWgrad()) {
    RETURN_IF_ERROR(made.wgrad.Make(workspace_, recipe_, Slot::kXw, layer_, step, nullptr, {}, x,
                                    OwnExtras(step, wgrad)));
    wgrad_nonfinite_ = made.wgrad.nonfinite_amax();
  }
  OperandForms forms;
  forms.decoded = !FormOf(workspace_.backend(), recipe_, kFprop, rows_, 0, cols_).on_codes;
  forms.health = step.measure_health;
  RETURN_IF_ERROR(made.forward.Make(workspace_, recipe_, Slot::kXf, layer_, step, nullptr, forms, x,
                                    OwnExtras(step, forward)));
  forward_nonfinite_ = made.forward.nonfinite_amax();
  stamp_ = made.forward.stamp();
  return OkStatus();
}

const Quant& LinearInput::SplitQuant() const {
  const Quant& forward = recipe_.slot(Slot::kXf);
  return forward.split == Split::kChannels ? forward : recipe_.slot(Slot::kXw);
}

Status LinearInput::GatherNorms(const LinearStep& step, ConstTensorView x) {
  const Quant& quant = SplitQuant();
  const int64_t since = step.completed - quant.split_from;
  if (!GathersChannels(step) || !step.advance_histories || since < 0 || !channels_.empty()) {
    return OkStatus();
  }
  if (since >= quant.split_window && channel_norms_.seen > 0) return OkStatus();
  RETURN_IF_ERROR(AddChannelNorms(workspace_.backend(), x, &channel_norms_.amax));
  ++channel_norms_.seen;
  return OkStatus();
}

OperandExtras LinearInput::Extras(const LinearStep& step, uint32_t layer, bool follows) {
  OperandExtras extras;
  extras.signs_layer = layer;
  const Quant& quant = SplitQuant();
  if (!GathersChannels(step)) {
    if (follows && !last_channels_.empty()) extras.channels = &last_channels_;
    return extras;
  }
  const bool complete = step.completed >= quant.split_from + quant.split_window;
  if (channels_.empty() && complete && channel_norms_.seen > 0) {
    channels_ = LargestChannels(channel_norms_.amax, quant.split_share);
  }
  extras.whole = channels_.empty();
  extras.channels = &channels_;
  return extras;
}

OperandExtras LinearInput::OwnExtras(const LinearStep& step, AmaxHistory* history) {
  OperandExtras extras = Extras(step, layer_, false);
  extras.history = history;
  return extras;
}

Result<SlotOperand*> LinearInput::Operand(const LinearStep& step, Slot slot) {
  if (stamp_ == 0) return FailedPreconditionError("linear input used before Set");
  InputOperands& made = operands();
  if (made.forward.stamp() != stamp_) {
    return FailedPreconditionError(
        "linear input used after another took the shared operands; call SetAgain first");
  }
  if (slot == Slot::kXf || recipe_.SharesCodes(slot)) return &made.forward;
  if (RequantizesWgrad() && requantized_ != stamp_) {
    ASSIGN_OR_RETURN(const ConstTensorView decoded, made.forward.Decoded(workspace_));
    OperandForms forms;
    forms.decoded = !FormOf(workspace_.backend(), recipe_, kWgrad, 0, cols_, rows_).on_codes;
    OperandExtras extras = Extras(step, layer_, true);
    extras.history = &wgrad_history_;
    RETURN_IF_ERROR(
        made.wgrad.Make(workspace_, recipe_, slot, layer_, step, nullptr, forms, decoded, extras));
    wgrad_nonfinite_ = made.wgrad.nonfinite_amax();
    requantized_ = stamp_;
  }
  return &made.wgrad;
}

int64_t LinearInput::saved_bytes() const {
  return own_.forward.saved_bytes() + own_.wgrad.saved_bytes();
}

QuantizedLinear::QuantizedLinear(LinearWorkspace* workspace, const LinearRecipe& recipe,
                                 uint32_t layer)
    : workspace_(*workspace), recipe_(recipe), layer_(layer) {}

int64_t QuantizedLinear::quantized_weight_bytes() const {
  return weight_.saved_bytes() + weight_dgrad_.saved_bytes();
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

bool QuantizedLinear::Serves(const SlotOperand& operand, const WeightDraw& made, Slot slot,
                             const LinearStep& step, uint64_t version) const {
  // Without codes there is nothing to cache: the operand borrows the weight of this call.
  if (!made.valid || !operand.has_codes() || version != made.version) return false;
  // A copy that validation made has not advanced the history.
  if (recipe_.slot(slot).has_history() && step.advance_histories && !made.advanced) return false;
  return !recipe_.slot(slot).stochastic() || (step.seed == made.seed && step.step == made.step);
}

Status QuantizedLinear::PrepareWeight(const LinearStep& step, LinearInput& input,
                                      ConstTensorView weight, uint64_t version) {
  const OperandExtras extras = input.Extras(step, input.layer_, true);
  const bool splits = recipe_.slot(Slot::kWf).split == Split::kChannels && !extras.whole;
  const uint64_t columns = splits ? ChannelSetNumber(extras.channels) : 0;
  if (columns == draw_.split && Serves(weight_, draw_, Slot::kWf, step, version)) {
    return OkStatus();
  }
  draw_ = {true, version, step.seed, step.step, columns, step.advance_histories};
  dgrad_draw_ = {};
  OperandForms forms;
  forms.decoded =
      !FormOf(workspace_.backend(), recipe_, kFprop, 0, weight.rows, weight.cols).on_codes;
  RETURN_IF_ERROR(
      weight_.Make(workspace_, recipe_, Slot::kWf, layer_, step, nullptr, forms, weight, extras));
  nonfinite_amax_ += weight_.nonfinite_amax();
  return OkStatus();
}

Status QuantizedLinear::PrepareWeightDgrad(const LinearStep& step, ConstTensorView weight,
                                           uint64_t version) {
  if (recipe_.SharesCodes(Slot::kWd) ||
      Serves(weight_dgrad_, dgrad_draw_, Slot::kWd, step, version)) {
    return OkStatus();
  }
  dgrad_draw_ = {true, version, step.seed, step.step, 0, step.advance_histories};
  OperandForms forms;
  forms.decoded =
      !FormOf(workspace_.backend(), recipe_, kDgrad, 0, weight.cols, weight.rows).on_codes;
  ConstTensorView source = weight;
  if (recipe_.slot(Slot::kWd).source == Source::kRequant) {
    ASSIGN_OR_RETURN(source, weight_.Decoded(workspace_));
  }
  RETURN_IF_ERROR(weight_dgrad_.Make(workspace_, recipe_, Slot::kWd, layer_, step, nullptr, forms,
                                     source, {layer_, nullptr}));
  nonfinite_amax_ += weight_dgrad_.nonfinite_amax();
  return OkStatus();
}

Result<bool> QuantizedLinear::Update(const LinearStep& step, const WeightUpdate& update,
                                     uint64_t weight_version) {
  const Backend& backend = workspace_.backend();
  const TensorView& weight = update.weight;
  // A decoded product wants more than codes.
  if (!SlotOperand::QuantizesInUpdate(backend, recipe_) ||
      !FormOf(backend, recipe_, kFprop, 0, weight.rows, weight.cols).on_codes) {
    return false;
  }
  draw_ = dgrad_draw_ = {};
  RETURN_IF_ERROR(weight_.MakeUpdating(workspace_, recipe_, layer_, step, update));
  draw_ = {true, weight_version, step.seed, step.step, 0, step.advance_histories};
  nonfinite_amax_ += weight_.nonfinite_amax();
  return true;
}

Status QuantizedLinear::DecodeWeight(const LinearStep& step, LinearInput& input,
                                     ConstTensorView weight, uint64_t weight_version,
                                     TensorView out) {
  RETURN_IF_ERROR(PrepareWeight(step, input, weight, weight_version));
  return weight_.DecodedSource(workspace_, out);
}

Status QuantizedLinear::Forward(const LinearStep& step, LinearInput& input, ConstTensorView weight,
                                uint64_t weight_version, TensorView y) {
  RETURN_IF_ERROR(CheckShapes("linear forward", input, weight, y));
  RETURN_IF_ERROR(PrepareWeight(step, input, weight, weight_version));
  ASSIGN_OR_RETURN(SlotOperand* const x, input.Operand(step, Slot::kXf));
  Backend& backend = workspace_.backend();
  if (step.measure_health && weight_.has_codes()) {
    ASSIGN_OR_RETURN(const ConstTensorView decoded, weight_.Decoded(workspace_));
    ASSIGN_OR_RETURN(health_.weight, backend.MeasureHealth(weight, weight_.codes(), decoded));
  }
  const ProductForm form = FormOf(backend, recipe_, kFprop, y.rows, y.cols, weight.cols);
  return Multiply(workspace_, recipe_, kFprop, form, *x, weight_, false, y);
}

Result<LinearPaths> PathsOf(const Backend& backend, const LinearRecipe& recipe, int64_t tokens,
                            int64_t in, int64_t out) {
  RETURN_IF_ERROR(CheckRecipeShape(recipe, tokens, in, out));
  const auto form_of = [&](const LinearProduct& product, int64_t rows, int64_t cols,
                           int64_t depth) -> Result<ProductForm> {
    const ProductForm form = FormOf(backend, recipe, product, rows, cols, depth);
    if (form.support != Support::kNone) return form;
    return UnimplementedError(std::string("backend ") + std::string(backend.name()) + " has no " +
                              product.name + " of " + ElemName(recipe.Resolved(product.left).elem) +
                              " by " + ElemName(recipe.Resolved(product.right).elem));
  };
  LinearPaths paths;
  ASSIGN_OR_RETURN(paths.fprop, form_of(kFprop, tokens, out, in));
  ASSIGN_OR_RETURN(paths.dgrad, form_of(kDgrad, tokens, in, out));
  ASSIGN_OR_RETURN(paths.wgrad, form_of(kWgrad, out, in, tokens));
  return paths;
}

}  // namespace nibble
