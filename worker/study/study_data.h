// SPDX-License-Identifier: Apache-2.0
//
// Text for a study: training and held-out tokens below one folder, made once and reused.
//
// Sources: the files given, else Gutenberg and WikiText-2 below NIBBLE_DATA_DIR, else Perl's
// documentation. The end of every text is held out for validation; the tokenizer is trained on what
// is left, so no validation text reaches training or tokenizer.
// Thread-safety: free functions. The result is the same for any number of threads.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/study/study_definition.h"

namespace nibble {

struct StudyData {
  std::string train_folder;     // token shards, index.json and tokenizer
  std::string validation_glob;  // the held-out shards
  std::string fingerprint;      // over the content of both splits and the tokenizer
  std::string source;           // "Gutenberg and WikiText-2", "Perl's documentation", "own text"
  int64_t train_tokens = 0;
  int64_t validation_tokens = 0;
};

struct StudyDataOptions {
  std::string folder;                            // everything goes below it
  std::vector<std::string> text;                 // own UTF-8 files; empty: as described above
  std::string data_dir;                          // value of NIBBLE_DATA_DIR, may be ""
  std::function<void(const std::string&)> note;  // progress for people
};

// Makes what is missing. NOT_FOUND when no source has text; UNIMPLEMENTED without SentencePiece.
Result<StudyData> PrepareStudyData(const StudyCorpus& corpus, const StudyDataOptions& options);

// Where the held-out part of `text` begins: the first line break at or after the (1 - fraction)
// part; text.size() when there is none.
size_t HeldOutBegin(std::string_view text, double fraction);

}  // namespace nibble
