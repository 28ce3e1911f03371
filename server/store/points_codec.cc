// SPDX-License-Identifier: Apache-2.0
#include "server/store/points_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/files.h"

static_assert(std::endian::native == std::endian::little, "segments are written in native order");

namespace nibble::store {
namespace {

constexpr int64_t kReadChunkBytes = int64_t{4} << 20;

enum Kind : uint8_t { kStep = 1, kValidation = 2, kHealth = 3, kCheckpoint = 4, kNote = 5 };

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) ? 0xedb88320u ^ (value >> 1) : value >> 1;
    table[i] = value;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

class Writer {
 public:
  template <typename T>
  void operator()(T& value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void operator()(std::string& text) {
    uint32_t size = static_cast<uint32_t>(text.size());
    (*this)(size);
    out_ += text;
  }
  std::string& out() { return out_; }

 private:
  std::string out_;
};

class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  template <typename T>
  void operator()(T& value) {
    if (in_.size() < sizeof(value)) return Fail();
    std::memcpy(&value, in_.data(), sizeof(value));
    in_.remove_prefix(sizeof(value));
  }
  void operator()(std::string& text) {
    uint32_t size = 0;
    (*this)(size);
    if (in_.size() < size) return Fail();
    text = in_.substr(0, size);
    in_.remove_prefix(size);
  }
  bool failed() const { return failed_; }
  bool at_end() const { return in_.empty(); }

 private:
  void Fail() {
    failed_ = true;
    in_ = {};
  }
  std::string_view in_;
  bool failed_ = false;
};

// One list of fields serves both directions.
template <typename Io>
void Fields(Io& io, StepPoint& p) {
  io(p.step), io(p.time_ms), io(p.loss), io(p.grad_norm), io(p.learning_rate), io(p.tokens);
  io(p.tokens_per_second), io(p.step_seconds), io(p.memory_bytes);
}
template <typename Io>
void Fields(Io& io, ValidationPoint& p) {
  io(p.step), io(p.time_ms), io(p.loss), io(p.tokens);
}
template <typename Io>
void Fields(Io& io, HealthPoint& p) {
  io(p.step), io(p.time_ms), io(p.tensor_class), io(p.underflow_ratio), io(p.saturation_ratio);
  io(p.mse), io(p.snr_db), io(p.cosine), io(p.scale_min), io(p.scale_max);
  io(p.gradient_to_noise), io(p.nonfinite);
}
template <typename Io>
void Fields(Io& io, CheckpointPoint& p) {
  io(p.step), io(p.time_ms), io(p.size_bytes), io(p.save_seconds), io(p.validation_loss);
  io(p.path);
}
template <typename Io>
void Fields(Io& io, Note& p) {
  io(p.time_ms), io(p.name), io(p.json);
}

template <typename Point>
void WriteAll(Writer& writer, Kind kind, const std::vector<Point>& points) {
  for (Point point : points) {
    writer(kind);
    Fields(writer, point);
  }
}

template <typename Point>
void ReadOne(Reader& reader, std::vector<Point>& points) {
  Fields(reader, points.emplace_back());
}

}  // namespace

uint32_t Crc32(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xff] ^ (crc >> 8);
  return crc ^ 0xffffffffu;
}

std::string EncodeFrame(const PointBatch& batch, int64_t end_cursor) {
  Writer payload;
  payload(end_cursor);
  WriteAll(payload, kStep, batch.steps);
  WriteAll(payload, kValidation, batch.validations);
  WriteAll(payload, kHealth, batch.healths);
  WriteAll(payload, kCheckpoint, batch.checkpoints);
  WriteAll(payload, kNote, batch.notes);
  Writer frame;
  uint32_t size = static_cast<uint32_t>(payload.out().size());
  uint32_t crc = Crc32(payload.out());
  frame(size);
  frame(crc);
  return frame.out() + payload.out();
}

Result<DecodedFrame> DecodePayload(std::string_view payload) {
  Reader reader(payload);
  DecodedFrame frame;
  reader(frame.end_cursor);
  while (!reader.failed() && !reader.at_end()) {
    uint8_t kind = 0;
    reader(kind);
    switch (kind) {
      case kStep:
        ReadOne(reader, frame.batch.steps);
        break;
      case kValidation:
        ReadOne(reader, frame.batch.validations);
        break;
      case kHealth:
        ReadOne(reader, frame.batch.healths);
        break;
      case kCheckpoint:
        ReadOne(reader, frame.batch.checkpoints);
        break;
      case kNote:
        ReadOne(reader, frame.batch.notes);
        break;
      default:
        return FailedPreconditionError("a metric segment has points of unknown kind " +
                                       std::to_string(kind) + ": it was written by a newer build");
    }
  }
  if (reader.failed()) return DataLossError("a frame of a metric segment is cut short");
  return frame;
}

Result<int64_t> ForEachFrame(
    const std::string& path, int64_t offset, int64_t end,
    const std::function<bool(int64_t frame_offset, DecodedFrame&)>& visit) {
  const int64_t header_bytes = static_cast<int64_t>(kSegmentMagic.size());
  if (end < header_bytes) return 0;  // not even the magic was written
  ASSIGN_OR_RETURN(const std::string magic, ReadFileRange(path, 0, header_bytes));
  if (magic != kSegmentMagic) return DataLossError(path + " is not a metric segment");
  if (offset == 0) offset = header_bytes;
  std::string buffer;  // bytes of the file from `offset` on, after the first `used` ones
  size_t used = 0;
  while (offset < end) {
    const std::string_view bytes = std::string_view(buffer).substr(used);
    uint32_t header[2] = {0, 0};
    if (bytes.size() >= kFrameHeaderBytes) std::memcpy(header, bytes.data(), sizeof(header));
    if (header[0] > kMaxFrameBytes) return offset;
    const int64_t frame_bytes = static_cast<int64_t>(kFrameHeaderBytes) + header[0];
    if (static_cast<int64_t>(bytes.size()) < frame_bytes) {
      const int64_t have = static_cast<int64_t>(bytes.size());
      const int64_t want = std::min(std::max(kReadChunkBytes, frame_bytes), end - offset - have);
      if (want <= 0) return offset;
      buffer.erase(0, used);
      used = 0;
      ASSIGN_OR_RETURN(const std::string more, ReadFileRange(path, offset + have, want));
      if (more.empty()) return offset;
      buffer += more;
      continue;
    }
    const std::string_view payload = bytes.substr(kFrameHeaderBytes, header[0]);
    if (Crc32(payload) != header[1]) return offset;
    Result<DecodedFrame> frame = DecodePayload(payload);
    if (!frame.ok()) return frame.status().WithContext(path);
    const bool go_on = visit(offset, *frame);
    offset += frame_bytes;
    used += static_cast<size_t>(frame_bytes);
    if (!go_on) break;
  }
  return offset;
}

}  // namespace nibble::store
