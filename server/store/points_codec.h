// SPDX-License-Identifier: Apache-2.0
//
// The bytes of metric segments. All integers little-endian, doubles IEEE 754 binary64.
//
//   segment = kSegmentMagic frame*
//   frame   = u32 payload size, u32 CRC-32 of the payload, payload
//   payload = i64 journal cursor after this batch, point*
//   point   = u8 kind, fields in the order of their struct; text as u32 size and bytes
// Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "server/store/points.h"

namespace nibble::store {

inline constexpr std::string_view kSegmentMagic = "NIBPTS01";
inline constexpr size_t kFrameHeaderBytes = 8;
inline constexpr size_t kMaxFrameBytes = size_t{1} << 30;

// A whole frame.
std::string EncodeFrame(const PointBatch& batch, int64_t end_cursor);

struct DecodedFrame {
  int64_t end_cursor = 0;
  PointBatch batch;
};
// DATA_LOSS for a payload no build wrote; FAILED_PRECONDITION for an unknown kind of point.
Result<DecodedFrame> DecodePayload(std::string_view payload);

// Frames of the segment file from `offset` (0 = after the magic) up to `end` bytes, until `visit`
// returns false. Returns where the last whole, undamaged frame ends: a smaller number than `end`
// means that a torn or damaged frame follows. DATA_LOSS when the file has another magic.
Result<int64_t> ForEachFrame(const std::string& path, int64_t offset, int64_t end,
                             const std::function<bool(int64_t frame_offset, DecodedFrame&)>& visit);

// CRC-32 (ISO-HDLC, the one of zlib and PNG).
uint32_t Crc32(std::string_view bytes);

}  // namespace nibble::store
