// SPDX-License-Identifier: Apache-2.0
//
// Safetensors: Hugging Face's tensor file, read strictly and written front to back.
//
// Format (github.com/huggingface/safetensors): 8 bytes little-endian length N of the header; N
// bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}};
// then the data, to which the offsets refer. Here: the tensors cover the data without gap or
// overlap, every size equals its shape, and nothing follows.
// Thread-safety: a reader is immutable after Open; a writer belongs to one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/train/hashed_file.h"

namespace nibble {

// The same limit as the reference implementation's.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "BF16", ...
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes from the start of the data
  int64_t end = 0;

  int64_t elements() const;
  int64_t size_bytes() const { return end - begin; }
};

// Bytes of one element; 0 for a type the format does not know.
int64_t SafetensorsElementBytes(std::string_view dtype);

class SafetensorsReader {
 public:
  // NOT_FOUND; DATA_LOSS naming the file and what is wrong with it.
  static Result<SafetensorsReader> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // ascending begin
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsEntry* Find(std::string_view name) const;  // nullptr when absent

  // Bytes [offset, offset + size) of the entry. OUT_OF_RANGE when they are not inside it;
  // DATA_LOSS when the file became shorter.
  Result<std::string> Read(const SafetensorsEntry& entry, int64_t offset, int64_t size) const;

 private:
  Status ParseHeader(std::string_view header, int64_t data_bytes);
  Status ParseMetadata(const Json& json);

  std::string path_;
  int64_t data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

class SafetensorsWriter {
 public:
  // Writes the header of a new file. `entries` in the order of the data; begin and end are filled
  // here. INVALID_ARGUMENT for an unknown dtype or a name that comes twice.
  static Result<SafetensorsWriter> Create(const std::string& path,
                                          std::vector<SafetensorsEntry> entries,
                                          const std::map<std::string, std::string>& metadata);

  // The next bytes of the data. INVALID_ARGUMENT past the end that the header promises.
  Status Append(const void* data, size_t size_bytes);
  // fsync and close. INVALID_ARGUMENT when data is missing. Call once, last.
  Result<FileDigest> Finish();

 private:
  SafetensorsWriter(HashedFile file, int64_t data_bytes)
      : file_(std::move(file)), bytes_left_(data_bytes) {}

  HashedFile file_;
  int64_t bytes_left_;
};

}  // namespace nibble
