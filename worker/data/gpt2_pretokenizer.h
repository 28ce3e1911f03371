// SPDX-License-Identifier: Apache-2.0
//
// GPT-2's pre-tokenizer: cuts text into the words inside which byte pairs merge. Thread-safe.
#pragma once

#include <cstddef>
#include <string_view>

namespace nibble {

// Length in bytes of the word that begins at text[pos], as matched by the pattern of
// openai/gpt-2's encoder.py:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// A byte that is not valid UTF-8 counts as a character of the third class.
// Precondition: pos < text.size().
size_t Gpt2WordLength(std::string_view text, size_t pos);

}  // namespace nibble
