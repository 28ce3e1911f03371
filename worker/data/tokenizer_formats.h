// SPDX-License-Identifier: Apache-2.0
//
// The makers behind LoadTokenizer, one per vocabulary format. Each takes the content of its files;
// `path` is for messages. Thread-safe. Errors: INVALID_ARGUMENT when the content is damaged.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "worker/data/tokenizer.h"

namespace nibble {

// GPT-2: `vocabulary` is a JSON object of piece to id, `merges` lists one pair a line, best first.
Result<std::unique_ptr<Tokenizer>> MakeGpt2Tokenizer(const std::string& path,
                                                     std::string_view vocabulary,
                                                     std::string_view merges);

// llama2.c: int32 longest piece, then per piece float32 score, int32 length, bytes. Ids 0, 1 and 2
// are unknown, bos and eos; 3 to 258 are the bytes.
Result<std::unique_ptr<Tokenizer>> MakeLlama2cTokenizer(const std::string& path,
                                                        std::string_view content);
// Whether the bytes have that layout from first to last.
bool LooksLikeLlama2c(std::string_view content);

// A serialized SentencePiece model. UNIMPLEMENTED when this build lacks SentencePiece.
Result<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(const std::string& path,
                                                              std::string_view content);

// INVALID_ARGUMENT for text above kMaxEncodeBytes.
Status CheckEncodeSize(std::string_view text);
// INVALID_ARGUMENT for an id outside 0..vocab_size-1.
Status CheckIds(std::span<const int32_t> ids, int32_t vocab_size);

}  // namespace nibble
