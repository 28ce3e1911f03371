// SPDX-License-Identifier: Apache-2.0
#include "worker/train/oscillation.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"

namespace nibble {
namespace {

constexpr int kValuesPerWeight = 4;

std::string PathName(const char* which, const ParameterInfo& info) {
  return std::string("oscillation.") + which + "." + info.name;
}

}  // namespace

OscillationReset::OscillationReset(Backend* backend, Parameters* parameters, Model* model,
                                   int64_t steps)
    : backend_(*backend),
      parameters_(*parameters),
      model_(*model),
      rule_(model->options().recipe.weight_rule),
      first_(static_cast<int64_t>(std::ceil(rule_.from_share * static_cast<double>(steps)))) {}

Result<std::unique_ptr<OscillationReset>> OscillationReset::Create(Backend* backend,
                                                                   Parameters* parameters,
                                                                   Model* model, int64_t steps) {
  std::unique_ptr<OscillationReset> rule(new OscillationReset(backend, parameters, model, steps));
  int64_t elements = 0, largest = 0;
  for (int64_t layer = 0; layer < model->options().model.layers; ++layer) {
    for (int i = 0; i < kLinearKinds; ++i) {
      const auto kind = static_cast<LinearKind>(i);
      const size_t parameter = parameters->IndexOf(layer, ParameterOf(kind));
      rule->tracked_.push_back({layer, kind, parameter, {}, {}, {}, {}});
      const int64_t size = parameters->list()[parameter].size();
      elements += size;
      largest = std::max(largest, size);
    }
  }
  RETURN_IF_ERROR(
      rule->state_.Reserve(*backend, kValuesPerWeight * elements * SizeOf(DType::kF32)));
  RETURN_IF_ERROR(rule->scratch_.Reserve(*backend, largest * SizeOf(DType::kF32)));
  auto* next = static_cast<float*>(rule->state_.data());
  for (Tracked& tracked : rule->tracked_) {
    const ParameterInfo& info = parameters->list()[tracked.parameter];
    for (TensorView* view : {&tracked.weight_before, &tracked.quantized_before, &tracked.path,
                             &tracked.quantized_path}) {
      *view = {next, info.rows, info.cols};
      next += info.size();
    }
  }
  return rule;
}

bool OscillationReset::Quantizes(const Tracked& tracked) const {
  return model_.QuantizesWeight(tracked.layer, tracked.kind);
}

TensorView OscillationReset::Scratch(const Tracked& tracked) const {
  return {scratch_.data(), tracked.path.rows, tracked.path.cols, DType::kF32};
}

Status OscillationReset::SetBefore(const LinearStep& next) {
  for (const Tracked& t : tracked_) {
    if (!Quantizes(t)) continue;
    const TensorView weight = parameters_.weight(t.parameter);
    RETURN_IF_ERROR(backend_.Copy(t.weight_before.data, weight.data, weight.size_bytes()));
    RETURN_IF_ERROR(model_.DecodeWeight(next, t.layer, t.kind, t.quantized_before));
  }
  return OkStatus();
}

Status OscillationReset::Begin(const LinearStep& next) {
  RETURN_IF_ERROR(SetBefore(next));
  for (const Tracked& t : tracked_) {
    RETURN_IF_ERROR(backend_.Fill(t.path, 0.0f));
    RETURN_IF_ERROR(backend_.Fill(t.quantized_path, 0.0f));
  }
  tracking_ = true;
  return OkStatus();
}

Status OscillationReset::Track(const LinearStep& next) {
  for (const Tracked& t : tracked_) {
    if (!Quantizes(t)) continue;
    const TensorView quantized = Scratch(t);
    RETURN_IF_ERROR(model_.DecodeWeight(next, t.layer, t.kind, quantized));
    RETURN_IF_ERROR(backend_.AddPath(quantized, t.quantized_before, t.quantized_path));
    RETURN_IF_ERROR(backend_.AddPath(parameters_.weight(t.parameter), t.weight_before, t.path));
  }
  return OkStatus();
}

// The quantized values are those that Track has just stored.
Result<int64_t> OscillationReset::Reset() {
  int64_t total = 0;
  for (const Tracked& t : tracked_) {
    if (!Quantizes(t)) continue;
    ASSIGN_OR_RETURN(
        const int64_t count,
        backend_.ResetOscillating(static_cast<float>(rule_.ratio), t.path, t.quantized_path,
                                  t.quantized_before, parameters_.weight(t.parameter)));
    total += count;
  }
  model_.WeightsChanged();
  tracking_ = false;
  return total;
}

Status OscillationReset::Start(int64_t completed, const LinearStep& next,
                               const RecipeTensors& tensors) {
  const int64_t since = completed - first_;
  tracking_ = false;
  if (since < 0 || since % rule_.period >= rule_.window) return OkStatus();
  if (since % rule_.period == 0) return Begin(next);
  for (const Tracked& t : tracked_) {
    const ParameterInfo& info = parameters_.list()[t.parameter];
    for (const auto& [which, view] :
         {std::pair("path", t.path), std::pair("quantized_path", t.quantized_path)}) {
      const auto found = tensors.find(PathName(which, info));
      if (found == tensors.end()) return OkStatus();  // the window was given up
      if (static_cast<int64_t>(found->second.size()) != view.size()) {
        return DataLossError(StrFormat("tensor '%s' has %zu values; the weight has %lld",
                                       found->first.c_str(), found->second.size(),
                                       static_cast<long long>(view.size())));
      }
      RETURN_IF_ERROR(backend_.CopyIn(view.data, found->second.data(), view.size_bytes()));
    }
  }
  tracking_ = true;
  return SetBefore(next);
}

Result<int64_t> OscillationReset::AfterUpdate(int64_t completed, const LinearStep& next,
                                              bool new_stage) {
  const int64_t since = completed - first_;
  int64_t reset = -1;
  if (new_stage) tracking_ = false;
  if (tracking_) {
    RETURN_IF_ERROR(Track(next));
    if ((since - 1) % rule_.period + 1 == rule_.window) {
      ASSIGN_OR_RETURN(reset, Reset());
    }
  }
  if (since >= 0 && since % rule_.period == 0) RETURN_IF_ERROR(Begin(next));
  return reset;
}

Status OscillationReset::Save(int64_t completed, RecipeTensors* tensors) const {
  if (!tracking_ || (completed - first_) % rule_.period == 0) return OkStatus();
  for (const Tracked& t : tracked_) {
    const ParameterInfo& info = parameters_.list()[t.parameter];
    for (const auto& [which, view] :
         {std::pair("path", t.path), std::pair("quantized_path", t.quantized_path)}) {
      std::vector<float>& out = (*tensors)[PathName(which, info)];
      out.resize(static_cast<size_t>(view.size()));
      RETURN_IF_ERROR(backend_.CopyOut(out.data(), view.data, view.size_bytes()));
    }
  }
  return OkStatus();
}

}  // namespace nibble
