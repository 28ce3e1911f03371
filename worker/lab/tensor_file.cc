// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/tensor_file.h"

#include <unistd.h>

#include <bit>
#include <cstring>
#include <utility>

#include "base/files.h"
#include "base/strings.h"
#include "kernels/formats/bf16.h"
#include "worker/train/safetensors.h"

namespace nibble {
namespace {

constexpr std::string_view kExtension = ".safetensors";

static_assert(std::endian::native == std::endian::little, "safetensors hold little-endian numbers");

Result<const SafetensorsEntry*> FindEntry(const SafetensorsReader& reader,
                                          const std::string& name) {
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : reader.entries()) names.push_back(entry.name);
  if (name.empty()) {
    if (names.size() == 1) return &reader.entries()[0];
    return InvalidArgumentError(reader.path() +
                                StrFormat(" has %zu tensors; name one of them as "
                                          "FILE:NAME: ",
                                          names.size()) +
                                StrJoin(names, ", "));
  }
  const SafetensorsEntry* entry = reader.Find(name);
  if (entry != nullptr) return entry;
  return NotFoundError(reader.path() + ": " + UnknownNameMessage("tensor", name, names));
}

}  // namespace

Matrix MakeMatrix(std::string name, int64_t rows, int64_t cols) {
  Matrix matrix{std::move(name), rows, cols, {}};
  matrix.values.resize(static_cast<size_t>(rows * cols));
  return matrix;
}

TensorPlace ParseTensorPlace(std::string_view text) {
  const size_t end = text.rfind(kExtension);
  const size_t colon = end == std::string_view::npos ? end : end + kExtension.size();
  if (colon == std::string_view::npos || colon >= text.size() || text[colon] != ':') {
    return {std::string(text), ""};
  }
  return {std::string(text.substr(0, colon)), std::string(text.substr(colon + 1))};
}

Result<Matrix> LoadMatrix(const std::string& path, const std::string& name) {
  ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  ASSIGN_OR_RETURN(const SafetensorsEntry* entry, FindEntry(reader, name));
  const std::string what = path + ": tensor '" + entry->name + "' ";
  const bool bf16 = entry->dtype == "BF16";
  if (!bf16 && entry->dtype != "F32") {
    return InvalidArgumentError(what + "has dtype " + entry->dtype + "; expected BF16 or F32");
  }
  const int64_t elements = entry->elements();
  if (elements == 0) return InvalidArgumentError(what + "has no elements");
  const int64_t cols = entry->shape.empty() ? 1 : entry->shape.back();
  ASSIGN_OR_RETURN(const std::string bytes, reader.Read(*entry, 0, entry->size_bytes()));
  Matrix matrix = MakeMatrix(entry->name, elements / cols, cols);
  if (!bf16) {
    std::memcpy(matrix.values.data(), bytes.data(), bytes.size());
    return matrix;
  }
  for (size_t i = 0; i < matrix.values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, sizeof bits);
    matrix.values[i] = formats::FromBf16(bits);
  }
  return matrix;
}

OutputTensor OutputOf(const Matrix& matrix) {
  OutputTensor out{matrix.name, "F32", {matrix.rows, matrix.cols}, {}};
  out.bytes.resize(matrix.values.size() * sizeof(float));
  std::memcpy(out.bytes.data(), matrix.values.data(), out.bytes.size());
  return out;
}

Status SaveTensors(const std::string& path, const std::vector<OutputTensor>& tensors,
                   const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  for (const OutputTensor& tensor : tensors) {
    SafetensorsEntry entry;
    entry.name = tensor.name;
    entry.dtype = tensor.dtype;
    entry.shape = tensor.shape;
    entries.push_back(std::move(entry));
  }
  const std::string partial = StrFormat("%s.tmp.%d", path.c_str(), static_cast<int>(::getpid()));
  Result<SafetensorsWriter> writer =
      SafetensorsWriter::Create(partial, std::move(entries), metadata);
  if (!writer.ok()) return writer.status();
  Status status;
  for (const OutputTensor& tensor : tensors) {
    if (status.ok()) status = writer->Append(tensor.bytes.data(), tensor.bytes.size());
  }
  if (status.ok()) status = writer->Finish().status();
  if (status.ok()) status = RenamePath(partial, path);
  if (!status.ok() && PathExists(partial)) (void)RemoveTree(partial).ok();
  return status;
}

}  // namespace nibble
