// SPDX-License-Identifier: Apache-2.0
//
// TokenizeFiles: documents -> token shards of a training and a validation split, the tokenizer's
// files and index.json.
//
// Deterministic: the output depends on the inputs, the tokenizer and the options alone, not on the
// number of threads. Memory is bounded whatever the input's size. The output folder appears whole
// or not at all: everything is written to `<out>.partial` and renamed; what a killed run left there
// is removed by the next one. docs/reference/file-formats-tokens.md specifies the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/data/document_reader.h"
#include "worker/data/token_shard.h"

namespace nibble {

inline constexpr int kMaxTokenizeThreads = 64;

struct TokenizeOptions {
  std::string tokenizer;  // see LoadTokenizer
  std::string out;        // the folder to make
  std::vector<std::string> inputs;
  DocumentReaderOptions reader;
  // Share of the text that goes to validation: 0 (none) to 0.5.
  double val_fraction = 0.01;
  int64_t shard_tokens = kDefaultShardTokens;
  int threads = 0;         // 0: as many as the machine has
  bool overwrite = false;  // replace an existing output folder
};

// Returns the content of index.json. ALREADY_EXISTS: `out` exists and `overwrite` is off.
// FAILED_PRECONDITION: another run writes to it. INVALID_ARGUMENT: no text in the inputs, or too
// little for a validation split. Errors of LoadTokenizer, DocumentReader and TokenShardWriter.
Result<Json> TokenizeFiles(const TokenizeOptions& options);

}  // namespace nibble
