// SPDX-License-Identifier: Apache-2.0
//
// SplitWriter: one split ("train" or "val") of a tokenized corpus: frames documents, writes shards.
// SplitChooser: which split a part of the text belongs to. Both: one thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "worker/data/token_shard.h"
#include "worker/data/tokenizer.h"

namespace nibble {

// Spreads the validation share evenly over the text by error diffusion: a credit grows by fraction
// times the bytes of each part; a part that finds half a unit of credit goes to validation and pays
// its bytes. The choice looks at no part's own size, so long and short documents are equally
// likely.
class SplitChooser {
 public:
  SplitChooser(double val_fraction, int64_t unit_bytes)
      : fraction_(val_fraction), threshold_(0.5 * static_cast<double>(unit_bytes)) {}

  // True when the next part, of `bytes` bytes, goes to validation.
  bool NextIsValidation(int64_t bytes) {
    const bool chosen = fraction_ > 0 && credit_ >= threshold_;
    credit_ += fraction_ * static_cast<double>(bytes) - (chosen ? static_cast<double>(bytes) : 0);
    return chosen;
  }

 private:
  const double fraction_;
  const double threshold_;
  double credit_ = 0;
};

class SplitWriter {
 public:
  // `tokenizer` is borrowed and outlives the writer.
  SplitWriter(const Tokenizer& tokenizer, TokenShardWriter shards)
      : tokenizer_(tokenizer), shards_(std::move(shards)) {}

  // Appends the ids of a part. `continues`: it goes on where this split's last part ended; else
  // the last document is closed and a new one begins.
  Status Append(std::span<const int32_t> ids, bool continues);
  // Closes the last document and returns {"tokens", "documents", "files"}.
  Result<Json> Finish();

  int64_t tokens() const { return shards_.tokens_written(); }

 private:
  Status Frame(int32_t id);

  const Tokenizer& tokenizer_;
  TokenShardWriter shards_;
  bool open_ = false;
  int64_t documents_ = 0;
};

}  // namespace nibble
