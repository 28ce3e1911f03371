// SPDX-License-Identifier: Apache-2.0
#include "worker/data/gpt2_pretokenizer.h"

#include "worker/data/unicode.h"

namespace nibble {
namespace {

enum class CharClass { kSpace, kLetter, kNumber, kOther };

struct ClassifiedChar {
  CharClass kind;
  size_t length;
};

ClassifiedChar ClassAt(std::string_view text, size_t pos) {
  const Utf8Char c = DecodeUtf8(text, pos);
  if (!c.valid) return {CharClass::kOther, 1};
  if (IsUnicodeSpace(c.code_point)) return {CharClass::kSpace, c.length};
  if (IsUnicodeLetter(c.code_point)) return {CharClass::kLetter, c.length};
  if (IsUnicodeNumber(c.code_point)) return {CharClass::kNumber, c.length};
  return {CharClass::kOther, c.length};
}

// End of the longest run of `kind` that begins at `pos`; `last` receives where its last character
// begins.
size_t RunEnd(std::string_view text, size_t pos, CharClass kind, size_t* last = nullptr) {
  while (pos < text.size()) {
    const ClassifiedChar c = ClassAt(text, pos);
    if (c.kind != kind) break;
    if (last != nullptr) *last = pos;
    pos += c.length;
  }
  return pos;
}

size_t ContractionLength(std::string_view rest) {
  for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (rest.starts_with(suffix)) return suffix.size();
  }
  return 0;
}

}  // namespace

size_t Gpt2WordLength(std::string_view text, size_t pos) {
  if (const size_t length = ContractionLength(text.substr(pos)); length > 0) return length;
  const ClassifiedChar first = ClassAt(text, pos);
  if (first.kind != CharClass::kSpace) return RunEnd(text, pos, first.kind) - pos;
  if (text[pos] == ' ' && pos + 1 < text.size()) {
    const CharClass kind = ClassAt(text, pos + 1).kind;
    if (kind != CharClass::kSpace) return RunEnd(text, pos + 1, kind) - pos;
  }
  // White space before a word leaves its last character to that word: \s+(?!\S). A single one
  // stands alone: \s+.
  size_t last = pos;
  const size_t end = RunEnd(text, pos, CharClass::kSpace, &last);
  return (end == text.size() || last == pos ? end : last) - pos;
}

}  // namespace nibble
