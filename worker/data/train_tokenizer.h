// SPDX-License-Identifier: Apache-2.0
//
// TrainTokenizer: a SentencePiece model from text. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble {

// Text beyond this is sampled: it bounds time and memory, and a vocabulary of a few thousand pieces
// no longer changes much with more.
inline constexpr int64_t kMaxTokenizerTrainBytes = int64_t{16} << 20;
inline constexpr int64_t kMinVocabulary = 264;  // 3 special, 256 bytes, some characters
inline constexpr int64_t kMaxVocabulary = 1 << 20;

struct TrainTokenizerOptions {
  std::string input;  // a text corpus; kDocumentSeparator lines are left out
  std::string out;    // the model file, replaced as a whole
  int64_t vocab_size = 0;
  std::string model_type = "bpe";  // or "unigram"
  uint64_t seed = 0;               // decides the sample when the text is longer than the limit
  int64_t max_train_bytes = kMaxTokenizerTrainBytes;
};

// Trains and writes the model: unknown 0, bos 1, eos 2, 256 byte pieces, then the learned ones;
// lossless (no normalization, white space kept, digits apart, unknown characters as bytes). The
// model is the same for the same input and options, whatever the machine's threads. When the text
// does not support `vocab_size` pieces the model has fewer, and the result says how many.
// Returns {"model", "vocab_size", "requested_vocab_size", "sentences", "bytes", "sampled",
// "sha256"}. INVALID_ARGUMENT: empty or invalid text, options out of range. UNIMPLEMENTED without
// SentencePiece.
Result<Json> TrainTokenizer(const TrainTokenizerOptions& options);

// The library's part: trains on `sentences`, returns the serialized model. In
// sentencepiece_trainer.cc, or in sentencepiece_absent.cc, where it is UNIMPLEMENTED.
Result<std::string> TrainSentencePiece(const std::vector<std::string>& sentences,
                                       int64_t vocab_size, const std::string& model_type);

}  // namespace nibble
