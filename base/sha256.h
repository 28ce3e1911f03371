// SPDX-License-Identifier: Apache-2.0
//
// Sha256 (FIPS 180-4): content hashes in checkpoint manifests, spec hashes, weight fingerprints.
// Thread-compatible.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

class Sha256 {
 public:
  Sha256();
  void Update(const void* data, size_t size_bytes);
  void Update(std::string_view bytes) { Update(bytes.data(), bytes.size()); }
  // 64 lower-case hex digits. Call once, last.
  std::string HexDigest();

 private:
  void Transform(const uint8_t* block);
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_{};
  uint64_t total_bytes_ = 0;
};

std::string Sha256Hex(std::string_view bytes);

}  // namespace nibble
