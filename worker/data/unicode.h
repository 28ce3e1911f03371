// SPDX-License-Identifier: Apache-2.0
//
// Unicode: UTF-8 decoding and the three character classes that pre-tokenizers need.
// Thread-safe, no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// May begin a UTF-8 file; no part of its text.
inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

struct Utf8Char {
  char32_t code_point = 0;  // U+FFFD for a byte that begins no valid sequence
  size_t length = 0;        // bytes taken: 1..4; 1 for an invalid byte
  bool valid = false;
};

// The character at text[pos]. Precondition: pos < text.size(). RFC 3629: no overlong forms, no
// surrogates, nothing above U+10FFFF.
Utf8Char DecodeUtf8(std::string_view text, size_t pos);

void AppendUtf8(char32_t code_point, std::string& out);

// Offset of the first byte that is not part of valid UTF-8; nullopt when all is valid.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// The text with each invalid byte replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

bool IsUnicodeLetter(char32_t c);  // general categories L*
bool IsUnicodeNumber(char32_t c);  // general categories N*
bool IsUnicodeSpace(char32_t c);   // property White_Space

}  // namespace nibble
