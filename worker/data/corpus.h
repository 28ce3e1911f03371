// SPDX-License-Identifier: Apache-2.0
//
// Corpus files: UTF-8 text with documents separated by a line that is exactly kDocumentSeparator.
//
// Thread-safety: a CorpusWriter belongs to one thread. Invariant: a corpus under its final name is
// whole (written beside it, synced, renamed).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/status.h"

namespace nibble {

// As in the TinyStories files; also what keeps separators out of ordinary text.
inline constexpr std::string_view kDocumentSeparator = "<|endoftext|>";
inline constexpr int64_t kMaxTextFileBytes = int64_t{4} << 30;

class CorpusWriter {
 public:
  static Result<CorpusWriter> Create(const std::string& path);
  ~CorpusWriter();  // removes an unfinished file
  CorpusWriter(CorpusWriter&& other) noexcept;
  CorpusWriter& operator=(CorpusWriter&&) = delete;

  // Adds a document; line ends around it are dropped, and nothing is written for an empty one.
  Status Add(std::string_view text);
  // Puts the corpus under its name.
  Status Finish();

  int64_t documents() const { return documents_; }
  int64_t size_bytes() const { return file_.size_bytes(); }

 private:
  CorpusWriter() = default;
  std::string path_;
  std::string partial_path_;  // "" when finished or moved from
  AppendFile file_;
  int64_t documents_ = 0;
};

// The text of Perl's documentation, one document a page. `pod_folder` "" looks for the files of the
// Debian package perl-doc. NOT_FOUND names the package when they are absent; FAILED_PRECONDITION
// when the text has fewer than `min_bytes` bytes. Returns {"documents", "bytes", "files"}.
Result<Json> WritePerlDocCorpus(const std::string& out, const std::string& pod_folder,
                                int64_t min_bytes);

// The user's own files, one document each (kDocumentSeparator lines in them divide further). CRLF
// becomes LF and a byte order mark is dropped. INVALID_ARGUMENT: invalid UTF-8 (file and offset)
// unless `lossy`, or no text at all. Returns {"documents", "bytes", "files"}.
Result<Json> WriteFilesCorpus(const std::string& out, const std::vector<std::string>& files,
                              bool lossy);

}  // namespace nibble
