// SPDX-License-Identifier: Apache-2.0
//
// DocumentReader: the documents of text, JSONL and their zstd forms, in parts of bounded size.
//
// A long document comes as several parts, cut by CutText, so memory does not grow with the input.
// One thread; owns its file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "worker/data/line_reader.h"

namespace nibble {

enum class InputFormat { kAuto, kText, kJsonl };

// What ends a document in plain text.
enum class TextDocuments {
  kSeparator,   // a line that is exactly "<|endoftext|>"; without one, the file is one document
  kBlankLines,  // one or more lines of white space only
  kFile,        // only the end of the file
};

struct DocumentReaderOptions {
  InputFormat format = InputFormat::kAuto;  // kAuto: JSONL when the name has .jsonl, .ndjson
  TextDocuments documents = TextDocuments::kSeparator;
  std::string field = "text";  // of each JSONL object
  bool lossy = false;          // replace invalid UTF-8 by U+FFFD instead of refusing it
  size_t part_bytes = 65536;   // parts have at most this many bytes
};

struct DocumentPart {
  int64_t document = 0;  // number of the document in this file
  int64_t part = 0;      // 0 begins the document
  std::string text;      // never empty
};

class DocumentReader {
 public:
  static Result<DocumentReader> Open(const std::string& path, DocumentReaderOptions options);

  // The next part; false at the end. Documents of white space only are left out; line ends around
  // a text document are dropped. INVALID_ARGUMENT names file and line: invalid UTF-8, broken JSON,
  // a line that is no object or lacks the field. Errors of LineReader.
  Result<bool> Next(DocumentPart& part);

 private:
  DocumentReader(LineReader lines, DocumentReaderOptions options, bool jsonl)
      : lines_(std::move(lines)), options_(std::move(options)), jsonl_(jsonl) {}
  Status ReadLine();  // takes in one line, sets document_ended_ or at_end_
  Status TakeJsonLine(const std::string& line);
  Status TakeTextLine(const std::string& line);
  Status CheckUtf8(std::string& line) const;

  LineReader lines_;
  DocumentReaderOptions options_;
  bool jsonl_;
  std::string line_;
  std::string pending_;  // text of the current document not yet handed out
  size_t pending_pos_ = 0;
  bool document_ended_ = false;  // pending_ is all that is left of it
  bool at_end_ = false;
  int64_t document_ = 0;
  int64_t part_ = 0;
};

}  // namespace nibble
