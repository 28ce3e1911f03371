// SPDX-License-Identifier: Apache-2.0
#include "worker/train/parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <thread>

#include "base/sha256.h"
#include "base/strings.h"
#include "kernels/formats/philox.h"

namespace nibble {
namespace {

// Elements copied to the host at a time when reading or writing a tensor.
constexpr int64_t kChunkElements = 1 << 18;  // a multiple of 4

constexpr char kScalesName[] = "optimizer.scales";

// The place of initialisation in the random streams: no training step has this number.
constexpr uint32_t kInitialisationStep = 0xffffffffu;

// Elements 4 * group .. 4 * group + 3 of the standard normal sequence of tensor `t`: Box-Muller
// over two pairs of uniforms.
void NormalGroup(uint64_t seed, size_t t, uint64_t group, float out[4]) {
  const formats::PhiloxWords words =
      formats::RandomGroup(seed, kInitialisationStep, static_cast<uint32_t>(t), group);
  for (int pair = 0; pair < 2; ++pair) {
    const double u1 = (words.word[2 * pair] + 0.5) * 0x1p-32;  // (0, 1)
    const double u2 = words.word[2 * pair + 1] * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(u1));
    const double angle = 2.0 * std::numbers::pi * u2;
    out[2 * pair] = static_cast<float>(radius * std::cos(angle));
    out[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

// Elements begin .. begin + out.size() - 1 of tensor `t`, a chunk per thread. Precondition: 4
// divides begin.
void NormalValues(uint64_t seed, size_t t, int64_t begin, float deviation, std::span<float> out) {
  const auto fill = [=](size_t first, size_t last) {
    float group[4];
    for (size_t i = first; i < last; ++i) {
      const uint64_t index = static_cast<uint64_t>(begin) + i;
      if (index % 4 == 0) NormalGroup(seed, t, index / 4, group);
      out[i] = deviation * group[index % 4];
    }
  };
  constexpr auto kChunk = static_cast<size_t>(kChunkElements);
  std::vector<std::thread> helpers;
  for (size_t first = kChunk; first < out.size(); first += kChunk) {
    helpers.emplace_back(fill, first, std::min(first + kChunk, out.size()));
  }
  fill(0, std::min(kChunk, out.size()));
  for (std::thread& helper : helpers) helper.join();
}

void AddParameter(std::vector<ParameterInfo>& list, ParameterInfo info) {
  if (!list.empty()) {
    const int64_t end = list.back().offset + list.back().size();
    info.offset = (end + kTensorAlignElements - 1) / kTensorAlignElements * kTensorAlignElements;
  }
  list.push_back(std::move(info));
}

void AddBlock(std::vector<ParameterInfo>& list, const ModelConfig& model, int64_t layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  const int64_t d = model.hidden_size, f = model.intermediate_size, kv = model.kv_size();
  const auto norm = [&](const char* name) {
    ParameterInfo info{prefix + name + ".weight", 1, d};
    info.is_norm = true;
    info.layer = layer;
    AddParameter(list, std::move(info));
  };
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols, bool residual = false) {
    ParameterInfo info{prefix + name + ".weight", rows, cols};
    info.is_residual_output = residual;
    info.layer = layer;
    AddParameter(list, std::move(info));
  };
  norm("input_layernorm");
  matrix("self_attn.q_proj", d, d);
  matrix("self_attn.k_proj", kv, d);
  matrix("self_attn.v_proj", kv, d);
  matrix("self_attn.o_proj", d, d, true);
  norm("post_attention_layernorm");
  matrix("mlp.gate_proj", f, d);
  matrix("mlp.up_proj", f, d);
  matrix("mlp.down_proj", d, f, true);
}

}  // namespace

std::vector<int64_t> ParameterInfo::shape() const {
  if (is_norm) return {cols};
  return {rows, cols};
}

std::vector<ParameterInfo> ListParameters(const ModelConfig& model) {
  std::vector<ParameterInfo> list;
  AddParameter(list, {"model.embed_tokens.weight", model.vocab_size, model.hidden_size});
  for (int64_t layer = 0; layer < model.layers; ++layer) AddBlock(list, model, layer);
  ParameterInfo norm{"model.norm.weight", 1, model.hidden_size};
  norm.is_norm = true;
  AddParameter(list, std::move(norm));
  if (!model.tied_embeddings) {
    AddParameter(list, {"lm_head.weight", model.vocab_size, model.hidden_size});
  }
  return list;
}

BlockParameter ParameterOf(LinearKind kind) {
  const auto index = static_cast<int>(kind);
  return static_cast<BlockParameter>(index + (kind < LinearKind::kGate ? 1 : 2));
}

const char* PlaceOfLayer(int64_t layer, int64_t layers) {
  if (layer <= 0) return "first";
  return layer == layers - 1 ? "last" : "middle";
}

const char* PlaceOf(const ParameterInfo& info, int64_t layers) {
  if (info.layer >= 0) return PlaceOfLayer(info.layer, layers);
  return info.offset == 0 ? "first" : "last";
}

Result<Parameters> Parameters::Create(Backend* backend, const ModelConfig& model,
                                      bool with_training_state, const StatePrecision& precision,
                                      Backend* host) {
  Parameters p;
  p.backend_ = backend;
  p.moments_backend_ = host != nullptr ? host : backend;
  p.list_ = ListParameters(model);
  p.final_norm_ = 1 + static_cast<size_t>(model.layers) * kBlockParameters;
  p.head_ = model.tied_embeddings ? p.embedding() : p.final_norm_ + 1;
  for (const ParameterInfo& info : p.list_) p.count_ += info.size();
  const int64_t end = p.list_.back().offset + p.list_.back().size();
  p.elements_ = (end + kTensorAlignElements - 1) / kTensorAlignElements * kTensorAlignElements;
  const int64_t bytes = p.elements_ * SizeOf(DType::kF32);
  p.precision_ = precision;
  p.scales_.resize(p.list_.size());
  // Zero bits mean zero in every format; all sizes are multiples of 16 bytes.
  const auto zeros = [](Backend& where, Buffer& buffer, int64_t size) -> Status {
    RETURN_IF_ERROR(buffer.Reserve(where, size));
    return where.Fill({buffer.data(), 1, size / SizeOf(DType::kF32), DType::kF32}, 0.0f);
  };
  RETURN_IF_ERROR(zeros(*backend, p.weights_, bytes));
  if (!with_training_state) return p;
  RETURN_IF_ERROR(zeros(*backend, p.gradients_, bytes));
  Backend& moments = *p.moments_backend_;
  const int64_t first_bytes = StateElemBytes(precision.m);
  const int64_t second_bytes = StateElemBytes(precision.v);
  RETURN_IF_ERROR(zeros(moments, p.first_moments_, p.elements_ * first_bytes));
  RETURN_IF_ERROR(zeros(moments, p.second_moments_, p.elements_ * second_bytes));
  if (!p.offloads_moments()) return p;
  RETURN_IF_ERROR(p.MakePlaces(first_bytes, second_bytes));
  return p;
}

Status Parameters::MakePlaces(int64_t first_bytes, int64_t second_bytes) {
  int64_t largest = 0;
  for (const ParameterInfo& info : list_) largest = std::max(largest, info.size());
  for (Place& place : places_) {
    RETURN_IF_ERROR(place.first.Reserve(*backend_, largest * first_bytes));
    RETURN_IF_ERROR(place.second.Reserve(*backend_, largest * second_bytes));
  }
  const auto pin = [&](const Buffer& buffer) {
    const bool pinned = backend_->PinHost(buffer.data(), buffer.capacity_bytes()).ok();
    return std::unique_ptr<void, Pin>(pinned ? buffer.data() : nullptr, Pin{backend_});
  };
  pinned_first_ = pin(first_moments_);
  pinned_second_ = pin(second_moments_);
  return OkStatus();
}

Parameters::Moments Parameters::PlacedMoments(size_t index) {
  const TensorView first = first_moment(index), second = second_moment(index);
  const Place& place = places_[index % places_.size()];
  return {{place.first.data(), first.rows, first.cols, first.dtype},
          {place.second.data(), second.rows, second.cols, second.dtype}};
}

Status Parameters::SendIn(size_t index) {
  Place& place = places_[index % places_.size()];
  if (place.holds == static_cast<int64_t>(index)) return OkStatus();
  const int lane = static_cast<int>(index % places_.size());
  const TensorView first = first_moment(index), second = second_moment(index);
  const Moments to = PlacedMoments(index);
  RETURN_IF_ERROR(backend_->TransferIn(lane, to.first.data, first.data, first.size_bytes()));
  RETURN_IF_ERROR(backend_->TransferIn(lane, to.second.data, second.data, second.size_bytes()));
  place.holds = static_cast<int64_t>(index);
  return OkStatus();
}

Result<Parameters::Moments> Parameters::FetchMoments(size_t index) {
  if (!offloads_moments()) return Moments{first_moment(index), second_moment(index)};
  RETURN_IF_ERROR(SendIn(index));
  if (index + 1 < list_.size()) RETURN_IF_ERROR(SendIn(index + 1));
  RETURN_IF_ERROR(backend_->WorkAfterLane(static_cast<int>(index % places_.size())));
  return PlacedMoments(index);
}

Status Parameters::StoreMoments(size_t index, const Moments& moments) {
  if (!offloads_moments()) return OkStatus();
  const int lane = static_cast<int>(index % places_.size());
  const TensorView first = first_moment(index), second = second_moment(index);
  RETURN_IF_ERROR(backend_->LaneAfterWork(lane));
  RETURN_IF_ERROR(backend_->TransferOut(lane, first.data, moments.first.data, first.size_bytes()));
  RETURN_IF_ERROR(
      backend_->TransferOut(lane, second.data, moments.second.data, second.size_bytes()));
  places_[index % places_.size()].holds = -1;
  return OkStatus();
}

Status Parameters::SettleMoments() const {
  return offloads_moments() ? backend_->Synchronize() : OkStatus();
}

const ParameterInfo* Parameters::Find(std::string_view name) const {
  for (const ParameterInfo& info : list_) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

size_t Parameters::IndexOf(int64_t layer, BlockParameter which) const {
  return 1 + static_cast<size_t>(layer) * kBlockParameters + static_cast<size_t>(which);
}

DType Parameters::StateType(StateElem elem) {
  switch (elem) {
    case StateElem::kF32:
      return DType::kF32;
    case StateElem::kF16:
      return DType::kF16;
    case StateElem::kBf16:
    case StateElem::kBf16Sr:
      return DType::kBF16;
    case StateElem::kE4M3:
      break;
  }
  return DType::kU8;
}

TensorView Parameters::ViewOf(const Buffer& buffer, size_t index, DType type) const {
  const ParameterInfo& info = list_[index];
  auto* const first = static_cast<uint8_t*>(buffer.data()) + info.offset * SizeOf(type);
  return {first, info.rows, info.cols, type};
}

void Parameters::SaveScales(RecipeTensors* tensors) const {
  if (precision_ == StatePrecision{}) return;
  std::vector<float>& out = (*tensors)[kScalesName];
  out.clear();
  for (const StateScales& s : scales_) out.insert(out.end(), {s.m, s.v, s.master});
}

Status Parameters::RestoreScales(const RecipeTensors& tensors) {
  if (precision_ == StatePrecision{}) return OkStatus();
  const auto found = tensors.find(kScalesName);
  if (found == tensors.end() || found->second.size() != 3 * scales_.size()) {
    return DataLossError(std::string("tensor '") + kScalesName +
                         "' is missing or does not have three scales per parameter");
  }
  for (size_t t = 0; t < scales_.size(); ++t) {
    const float* const s = &found->second[3 * t];
    scales_[t] = {s[0], s[1], s[2]};
  }
  return OkStatus();
}

TensorView Parameters::AllOf(const Buffer& buffer) const {
  return {buffer.data(), 1, elements_, DType::kF32};
}

Status Parameters::Initialise(const ModelConfig& model, uint64_t seed, int threads) {
  std::vector<float> values;  // a chunk of each thread
  for (size_t t = 0; t < list_.size(); ++t) {
    const ParameterInfo& info = list_[t];
    if (info.is_norm) {
      RETURN_IF_ERROR(backend_->Fill(weight(t), 1.0f));
      continue;
    }
    double deviation = model.init_std;
    if (info.is_residual_output) deviation /= std::sqrt(2.0 * static_cast<double>(model.layers));
    float* const device = weight(t).f32();
    const int64_t at_once = kChunkElements * std::max(threads, 1);
    for (int64_t begin = 0; begin < info.size(); begin += at_once) {
      values.resize(static_cast<size_t>(std::min(at_once, info.size() - begin)));
      NormalValues(seed, t, begin, static_cast<float>(deviation), values);
      RETURN_IF_ERROR(backend_->CopyIn(device + begin, values.data(),
                                       static_cast<int64_t>(values.size() * sizeof(float))));
    }
  }
  return OkStatus();
}

Result<std::string> Parameters::Fingerprint() const {
  Sha256 hash;
  std::vector<float> chunk;
  for (size_t t = 0; t < list_.size(); ++t) {
    const ParameterInfo& info = list_[t];
    hash.Update(StrFormat("%s %lld %lld\n", info.name.c_str(), static_cast<long long>(info.rows),
                          static_cast<long long>(info.cols)));
    const float* const device = weight(t).f32();
    for (int64_t begin = 0; begin < info.size(); begin += kChunkElements) {
      chunk.resize(static_cast<size_t>(std::min(kChunkElements, info.size() - begin)));
      const auto bytes = static_cast<int64_t>(chunk.size() * sizeof(float));
      RETURN_IF_ERROR(backend_->CopyOut(chunk.data(), device + begin, bytes));
      hash.Update(chunk.data(), static_cast<size_t>(bytes));
    }
  }
  return hash.HexDigest();
}

}  // namespace nibble
