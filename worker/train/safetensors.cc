// SPDX-License-Identifier: Apache-2.0
#include "worker/train/safetensors.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr char kMetadataKey[] = "__metadata__";
// Headers are padded with blanks to this, so that the data is aligned (as the reference does).
constexpr size_t kHeaderAlign = 8;

constexpr std::pair<std::string_view, int64_t> kTypes[] = {
    {"F64", 8},     {"I64", 8},     {"U64", 8}, {"F32", 4}, {"I32", 4},
    {"U32", 4},     {"BF16", 2},    {"F16", 2}, {"I16", 2}, {"U16", 2},
    {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};

// Product of the dimensions times the element size; -1 when it does not fit or one is negative.
int64_t CheckedBytes(const std::vector<int64_t>& shape, int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (const int64_t dim : shape) {
    if (dim < 0 || (dim > 0 && bytes > std::numeric_limits<int64_t>::max() / dim)) return -1;
    bytes *= dim;
  }
  return bytes;
}

// Names come from the file: messages show no more than this of them.
std::string Shown(const std::string& text) {
  constexpr size_t kShownBytes = 200;
  return text.substr(0, kShownBytes);
}

// Reads one member of the header. The message says what is wrong, without the file's name.
Status ParseEntry(const std::string& name, const Json& json, int64_t data_bytes,
                  SafetensorsEntry& entry) {
  const std::string what = "tensor '" + Shown(name) + "' ";
  entry.name = name;
  entry.dtype = json["dtype"].AsString();
  const int64_t element_bytes = SafetensorsElementBytes(entry.dtype);
  if (element_bytes == 0)
    return DataLossError(what + "has unknown dtype '" + Shown(entry.dtype) + "'");
  if (!json["shape"].is_array()) return DataLossError(what + "has no shape");
  for (const Json& dim : json["shape"].items()) {
    if (!dim.is_int()) return DataLossError(what + "has a dimension that is no integer");
    entry.shape.push_back(dim.AsInt());
  }
  const Json& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets.At(0).is_int() ||
      !offsets.At(1).is_int()) {
    return DataLossError(what + "has no data_offsets [begin, end]");
  }
  entry.begin = offsets.At(0).AsInt();
  entry.end = offsets.At(1).AsInt();
  if (entry.begin < 0 || entry.end < entry.begin || entry.end > data_bytes) {
    return DataLossError(what + StrFormat("has data_offsets [%lld, %lld] outside the %lld bytes of "
                                          "data",
                                          static_cast<long long>(entry.begin),
                                          static_cast<long long>(entry.end),
                                          static_cast<long long>(data_bytes)));
  }
  const int64_t expected = CheckedBytes(entry.shape, element_bytes);
  if (expected != entry.size_bytes()) {
    return DataLossError(what + StrFormat("spans %lld bytes, its shape and dtype need %lld",
                                          static_cast<long long>(entry.size_bytes()),
                                          static_cast<long long>(expected)));
  }
  return OkStatus();
}

uint64_t LittleEndian64(std::string_view bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) {
    value = value << 8 | static_cast<uint8_t>(bytes[static_cast<size_t>(i)]);
  }
  return value;
}

}  // namespace

int64_t SafetensorsElementBytes(std::string_view dtype) {
  for (const auto& [name, bytes] : kTypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

int64_t SafetensorsEntry::elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

Result<SafetensorsReader> SafetensorsReader::Open(const std::string& path) {
  SafetensorsReader reader;
  reader.path_ = path;
  const auto damaged = [&](const std::string& why) { return DataLossError(path + ": " + why); };
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
  if (size < kLengthBytes) {
    return damaged(
        StrFormat("%lld bytes are too few for a safetensors file", static_cast<long long>(size)));
  }
  ASSIGN_OR_RETURN(const std::string length_bytes, ReadFileRange(path, 0, kLengthBytes));
  const uint64_t length = LittleEndian64(length_bytes);
  const auto limit =
      static_cast<uint64_t>(std::min<int64_t>(size - kLengthBytes, kMaxSafetensorsHeaderBytes));
  if (length > limit) {
    return damaged(StrFormat("header of %llu bytes; the file allows %llu",
                             static_cast<unsigned long long>(length),
                             static_cast<unsigned long long>(limit)));
  }
  const auto header_bytes = static_cast<int64_t>(length);
  ASSIGN_OR_RETURN(const std::string header, ReadFileRange(path, kLengthBytes, header_bytes));
  reader.data_start_ = kLengthBytes + header_bytes;
  const Status parsed = reader.ParseHeader(header, size - reader.data_start_);
  if (!parsed.ok()) return damaged(parsed.message());
  return reader;
}

Status SafetensorsReader::ParseHeader(std::string_view header, int64_t data_bytes) {
  const Result<Json> json = Json::Parse(header);
  if (!json.ok()) return DataLossError("header is not JSON: " + json.status().message());
  if (!json->is_object()) return DataLossError("header is not a JSON object");
  for (const auto& [name, value] : json->members()) {
    if (name == kMetadataKey) {
      RETURN_IF_ERROR(ParseMetadata(value));
      continue;
    }
    SafetensorsEntry entry;
    RETURN_IF_ERROR(ParseEntry(name, value, data_bytes, entry));
    entries_.push_back(std::move(entry));
  }
  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t covered = 0;
  for (const SafetensorsEntry& entry : entries_) {
    if (entry.begin != covered) {
      return DataLossError(StrFormat(
          "tensor '%s' begins at byte %lld, the one before ends at %lld: "
          "%s",
          Shown(entry.name).c_str(), static_cast<long long>(entry.begin),
          static_cast<long long>(covered), entry.begin < covered ? "they overlap" : "a gap"));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    return DataLossError(StrFormat("%lld bytes of data, the header describes %lld",
                                   static_cast<long long>(data_bytes),
                                   static_cast<long long>(covered)));
  }
  return OkStatus();
}

Status SafetensorsReader::ParseMetadata(const Json& json) {
  if (!json.is_object()) return DataLossError("__metadata__ is not a JSON object");
  for (const auto& [key, text] : json.members()) {
    if (!text.is_string()) {
      return DataLossError("__metadata__ '" + Shown(key) + "' is not a string");
    }
    metadata_[key] = text.AsString();
  }
  return OkStatus();
}

const SafetensorsEntry* SafetensorsReader::Find(std::string_view name) const {
  for (const SafetensorsEntry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

Result<std::string> SafetensorsReader::Read(const SafetensorsEntry& entry, int64_t offset,
                                            int64_t size) const {
  if (offset < 0 || size < 0 || size > entry.size_bytes() || offset > entry.size_bytes() - size) {
    return OutOfRangeError(path_ + ": tensor '" + Shown(entry.name) +
                           StrFormat("' has %lld bytes; asked for %lld from %lld",
                                     static_cast<long long>(entry.size_bytes()),
                                     static_cast<long long>(size), static_cast<long long>(offset)));
  }
  ASSIGN_OR_RETURN(std::string bytes,
                   ReadFileRange(path_, data_start_ + entry.begin + offset, size));
  if (static_cast<int64_t>(bytes.size()) != size) {
    return DataLossError(path_ + ": ends inside tensor '" + entry.name + "'");
  }
  return bytes;
}

Result<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::vector<SafetensorsEntry> entries,
    const std::map<std::string, std::string>& metadata) {
  std::vector<Json::Member> members;
  if (!metadata.empty()) {
    Json texts = Json::Object();
    for (const auto& [key, text] : metadata) texts.Set(key, text);
    members.emplace_back(kMetadataKey, std::move(texts));
  }
  std::map<std::string, bool> seen;
  int64_t offset = 0;
  for (SafetensorsEntry& entry : entries) {
    const int64_t element_bytes = SafetensorsElementBytes(entry.dtype);
    const int64_t bytes = CheckedBytes(entry.shape, element_bytes);
    if (element_bytes == 0 || bytes < 0 || !seen.emplace(entry.name, true).second) {
      return InvalidArgumentError(path + ": tensor '" + entry.name + "' of dtype '" + entry.dtype +
                                  "' has an unknown type, a bad shape, or comes twice");
    }
    Json shape = Json::Array();
    for (const int64_t dim : entry.shape) shape.Append(dim);
    members.emplace_back(entry.name,
                         Json::Object({{"dtype", entry.dtype},
                                       {"shape", std::move(shape)},
                                       {"data_offsets", Json::Array({offset, offset + bytes})}}));
    offset += bytes;
  }
  std::string header = Json::ObjectOf(std::move(members)).Dump();
  header.resize((header.size() + kHeaderAlign - 1) / kHeaderAlign * kHeaderAlign, ' ');
  std::string length(kLengthBytes, '\0');
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  }
  ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(path));
  RETURN_IF_ERROR(file.Write(length.data(), length.size()));
  RETURN_IF_ERROR(file.Write(header.data(), header.size()));
  return SafetensorsWriter(std::move(file), offset);
}

Status SafetensorsWriter::Append(const void* data, size_t size_bytes) {
  if (static_cast<int64_t>(size_bytes) > bytes_left_) {
    return InvalidArgumentError("safetensors: more data than the header describes");
  }
  bytes_left_ -= static_cast<int64_t>(size_bytes);
  return file_.Write(data, size_bytes);
}

Result<FileDigest> SafetensorsWriter::Finish() {
  if (bytes_left_ != 0) {
    return InvalidArgumentError(StrFormat("safetensors: %lld bytes of data are missing",
                                          static_cast<long long>(bytes_left_)));
  }
  return file_.Finish();
}

}  // namespace nibble
