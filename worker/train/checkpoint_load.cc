// SPDX-License-Identifier: Apache-2.0
//
// Reading the tensors of a checkpoint folder; see checkpoint.h.
#include <algorithm>
#include <cstring>

#include "base/files.h"
#include "base/strings.h"
#include "kernels/formats/fp16.h"
#include "worker/train/checkpoint.h"
#include "worker/train/safetensors.h"

namespace nibble {
namespace {

constexpr int64_t kChunkElements = 1 << 18;

float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool Decode(const std::string& dtype, const std::string& bytes, std::vector<float>& out) {
  if (dtype == "F32") {
    out.resize(bytes.size() / sizeof(float));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return true;
  }
  if (dtype != "BF16" && dtype != "F16") return false;
  out.resize(bytes.size() / sizeof(uint16_t));
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t word;
    std::memcpy(&word, bytes.data() + i * sizeof word, sizeof word);
    out[i] = dtype == "BF16" ? FloatFromBits(static_cast<uint32_t>(word) << 16)
                             : formats::DecodeF16(word);
  }
  return true;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::vector<std::string> dims;
  for (const int64_t dim : shape) dims.push_back(std::to_string(dim));
  return "(" + StrJoin(dims, ", ") + ")";
}

// A tensor that is stored as it is held.
Status LoadCodes(const SafetensorsReader& file, const SafetensorsEntry& entry, Backend& backend,
                 TensorView view) {
  if (entry.dtype != CheckpointType(view.dtype)) {
    return FailedPreconditionError(file.path() + ": tensor '" + entry.name + "' is " + entry.dtype +
                                   ", the recipe's optimizer state is " +
                                   CheckpointType(view.dtype));
  }
  for (int64_t begin = 0; begin < view.size_bytes(); begin += kChunkElements) {
    const int64_t size = std::min(kChunkElements, view.size_bytes() - begin);
    ASSIGN_OR_RETURN(const std::string bytes, file.Read(entry, begin, size));
    RETURN_IF_ERROR(backend.CopyIn(view.u8() + begin, bytes.data(), size));
  }
  return OkStatus();
}

Status LoadTensor(const SafetensorsReader& file, const std::string& name, const ParameterInfo& info,
                  Backend& backend, TensorView view) {
  const SafetensorsEntry* entry = file.Find(name);
  if (entry == nullptr) {
    return FailedPreconditionError(file.path() + " has no tensor '" + name +
                                   "' that the model needs");
  }
  if (entry->shape != info.shape()) {
    return FailedPreconditionError(file.path() + ": tensor '" + name + "' has shape " +
                                   ShapeText(entry->shape) + ", the model needs " +
                                   ShapeText(info.shape()));
  }
  if (view.dtype != DType::kF32) return LoadCodes(file, *entry, backend, view);
  const int64_t element_bytes = SafetensorsElementBytes(entry->dtype);
  std::vector<float> chunk;
  for (int64_t begin = 0; begin < info.size(); begin += kChunkElements) {
    const int64_t count = std::min(kChunkElements, info.size() - begin);
    ASSIGN_OR_RETURN(const std::string bytes,
                     file.Read(*entry, begin * element_bytes, count * element_bytes));
    if (!Decode(entry->dtype, bytes, chunk)) {
      return FailedPreconditionError(file.path() + ": tensor '" + name + "' is " + entry->dtype +
                                     "; weights may be F32, BF16 or F16");
    }
    RETURN_IF_ERROR(backend.CopyIn(view.f32() + begin, chunk.data(),
                                   count * static_cast<int64_t>(sizeof(float))));
  }
  return OkStatus();
}

}  // namespace

const char* CheckpointType(DType type) {
  switch (type) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI32:
      return "I32";
    case DType::kU8:
      break;
  }
  return "F8_E4M3";
}

Status LoadTensors(const std::string& folder, Backend& backend, bool with_optimizer,
                   Parameters* parameters) {
  ASSIGN_OR_RETURN(const SafetensorsReader weights,
                   SafetensorsReader::Open(JoinPath(folder, kWeightsFileName)));
  const std::vector<ParameterInfo>& list = parameters->list();
  for (size_t t = 0; t < list.size(); ++t) {
    RETURN_IF_ERROR(LoadTensor(weights, list[t].name, list[t], backend, parameters->weight(t)));
  }
  if (!with_optimizer) return OkStatus();
  ASSIGN_OR_RETURN(const SafetensorsReader moments,
                   SafetensorsReader::Open(JoinPath(folder, kOptimizerFileName)));
  RETURN_IF_ERROR(parameters->SettleMoments());
  Backend& host = parameters->moments_backend();
  for (size_t t = 0; t < list.size(); ++t) {
    RETURN_IF_ERROR(
        LoadTensor(moments, list[t].name + ".exp_avg", list[t], host, parameters->first_moment(t)));
    RETURN_IF_ERROR(LoadTensor(moments, list[t].name + ".exp_avg_sq", list[t], host,
                               parameters->second_moment(t)));
  }
  return OkStatus();
}

Result<RecipeTensors> ReadRecipeTensors(const std::string& folder) {
  RecipeTensors tensors;
  const std::string path = JoinPath(folder, kRecipeFileName);
  if (!PathExists(path)) return tensors;
  ASSIGN_OR_RETURN(const SafetensorsReader file, SafetensorsReader::Open(path));
  for (const SafetensorsEntry& entry : file.entries()) {
    ASSIGN_OR_RETURN(const std::string bytes, file.Read(entry, 0, entry.size_bytes()));
    if (entry.dtype != "F32" || !Decode(entry.dtype, bytes, tensors[entry.name])) {
      return DataLossError(path + ": tensor '" + entry.name + "' is " + entry.dtype + ", not F32");
    }
  }
  return tensors;
}

}  // namespace nibble
