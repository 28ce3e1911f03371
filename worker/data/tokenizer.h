// SPDX-License-Identifier: Apache-2.0
//
// Tokenizer: text to token ids and back, whatever file the vocabulary came from.
//
// Accepted: SentencePiece models, GPT-2's byte-level BPE (encoder.json + vocab.bpe, or the same
// under Hugging Face's names vocab.json + merges.txt), and llama2.c's tokenizer.bin.
// Thread-safety: immutable after loading; all methods may run in parallel.
// Invariant: 0 <= id < vocab_size() for every id that Encode returns.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble {

inline constexpr int32_t kNoToken = -1;
// The longest text of one Encode call; EncodeDocument takes more.
inline constexpr int64_t kMaxEncodeBytes = int64_t{64} << 20;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`; adds neither bos nor eos. Control pieces are never produced from text ("<s>" and
  // "<|endoftext|>" are ordinary characters). INVALID_ARGUMENT above kMaxEncodeBytes.
  virtual Result<std::vector<int32_t>> Encode(std::string_view text) const = 0;

  // As Encode for text that continues earlier text: no leading space is put before it where the
  // vocabulary's rule would put one.
  virtual Result<std::vector<int32_t>> EncodeContinuation(std::string_view text) const = 0;

  // The text of `ids`, without control pieces (bos, eos) and without the leading space that Encode
  // adds. May end inside a UTF-8 character when the ids do. INVALID_ARGUMENT for an id outside
  // 0..vocab_size()-1.
  virtual Result<std::string> Decode(std::span<const int32_t> ids) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual int32_t bos_id() const = 0;         // kNoToken when there is none
  virtual int32_t eos_id() const = 0;         // kNoToken when there is none; may equal bos_id()
  virtual std::string_view name() const = 0;  // "sentencepiece", "gpt2", "llama2.c"
};

// Loads what lies at `path`, deciding by content, never by name. `path` is a file (for GPT-2 either
// of the two, the other lies beside it) or a folder with tokenizer.model, tokenizer.bin or a GPT-2
// pair in it. NOT_FOUND; INVALID_ARGUMENT when the content is none of the accepted forms (the
// message lists them) or damaged; UNIMPLEMENTED for a SentencePiece model when this build lacks
// SentencePiece.
Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

// The files LoadTokenizer(path) reads, e.g. to copy them into a checkpoint. Errors as
// LoadTokenizer.
Result<std::vector<std::string>> TokenizerFiles(const std::string& path);

struct NamedContent {
  std::string name;
  std::string content;
};
// The same files under the names by which LoadTokenizer finds them in a folder, whatever they are
// called now: tokenizer.model, tokenizer.bin, or vocab.json and merges.txt. A folder that holds
// them loads as the same tokenizer, and so does the first of them. Errors as LoadTokenizer.
Result<std::vector<NamedContent>> ReadTokenizerFiles(const std::string& path);

// The tokenizer's identity as 64 hex digits: the SHA-256 of its file or, for a pair, of the two
// files' digests, each followed by a line end.
Result<std::string> TokenizerHash(const std::string& path);

// Encode for text of any length in bounded memory: encodes runs of at most kEncodeRunBytes, cut by
// CutText, and joins the ids. `continuation`: the text continues earlier text.
inline constexpr size_t kEncodeRunBytes = 65536;
Result<std::vector<int32_t>> EncodeDocument(const Tokenizer& tokenizer, std::string_view text,
                                            bool continuation = false);

// Where to cut `text` so that the first part has 1 to `limit` bytes: before a line end, else before
// a space, that follows a visible ASCII character (no piece of the usual vocabularies reaches
// across), else between two characters. text.size() when the whole fits. Precondition: limit >= 4.
size_t CutText(std::string_view text, size_t limit);

}  // namespace nibble
