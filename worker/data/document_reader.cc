// SPDX-License-Identifier: Apache-2.0
#include "worker/data/document_reader.h"

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "worker/data/corpus.h"
#include "worker/data/tokenizer.h"
#include "worker/data/unicode.h"

namespace nibble {
namespace {

bool NamesJsonl(const std::string& path) {
  const std::string name = BaseName(path);
  for (const char* extension : {".jsonl", ".ndjson", ".jsonl.zst", ".ndjson.zst", ".jsonl.zstd"}) {
    if (name.ends_with(extension)) return true;
  }
  return false;
}

}  // namespace

Result<DocumentReader> DocumentReader::Open(const std::string& path,
                                            DocumentReaderOptions options) {
  const bool jsonl = options.format == InputFormat::kJsonl ||
                     (options.format == InputFormat::kAuto && NamesJsonl(path));
  ASSIGN_OR_RETURN(LineReader lines, LineReader::Open(path));
  return DocumentReader(std::move(lines), std::move(options), jsonl);
}

Status DocumentReader::CheckUtf8(std::string& line) const {
  const auto offset = FindInvalidUtf8(line);
  if (!offset) return OkStatus();
  if (options_.lossy) {
    line = ReplaceInvalidUtf8(line);
    return OkStatus();
  }
  return InvalidArgumentError(StrFormat(
      "%s:%lld: not UTF-8: byte 0x%02X at offset %lld of the file; convert it (for example with "
      "iconv) or pass --lossy to replace such bytes",
      lines_.path().c_str(), static_cast<long long>(lines_.line_number()),
      static_cast<unsigned char>(line[*offset]),
      static_cast<long long>(lines_.line_offset() + static_cast<int64_t>(*offset))));
}

Status DocumentReader::TakeJsonLine(const std::string& line) {
  if (StrTrim(line).empty()) return OkStatus();
  const std::string where =
      StrFormat("%s:%lld", lines_.path().c_str(), static_cast<long long>(lines_.line_number()));
  const Result<Json> json = Json::Parse(line);
  if (!json.ok()) return json.status().WithContext(where + ": broken JSON");
  const Json* text = json->is_object() ? json->Find(options_.field) : nullptr;
  if (text == nullptr || !text->is_string()) {
    return InvalidArgumentError(where + ": expected an object with the string field '" +
                                options_.field + "'; name another with --field");
  }
  pending_ = text->AsString();
  document_ended_ = true;
  return OkStatus();
}

Status DocumentReader::TakeTextLine(const std::string& line) {
  const bool ends =
      (options_.documents == TextDocuments::kSeparator && line == kDocumentSeparator) ||
      (options_.documents == TextDocuments::kBlankLines && StrTrim(line).empty());
  if (ends) {
    document_ended_ = true;
    return OkStatus();
  }
  // Line ends before the first text of a document are dropped.
  if (line.empty() && pending_.empty() && part_ == 0) return OkStatus();
  if (!pending_.empty() || part_ > 0) pending_ += '\n';
  pending_ += line;
  return OkStatus();
}

Status DocumentReader::ReadLine() {
  ASSIGN_OR_RETURN(const bool more, lines_.Next(line_));
  if (!more) {
    at_end_ = true;
    document_ended_ = true;
    return OkStatus();
  }
  if (lines_.line_number() == 1 && line_.starts_with(kByteOrderMark)) {
    line_.erase(0, kByteOrderMark.size());
  }
  RETURN_IF_ERROR(CheckUtf8(line_));
  return jsonl_ ? TakeJsonLine(line_) : TakeTextLine(line_);
}

Result<bool> DocumentReader::Next(DocumentPart& part) {
  while (true) {
    if (document_ended_ && !jsonl_) {
      while (pending_.size() > pending_pos_ && pending_.back() == '\n') pending_.pop_back();
    }
    const std::string_view rest = std::string_view(pending_).substr(pending_pos_);
    const bool blank = part_ == 0 && document_ended_ && StrTrim(rest).empty();
    // Before the end one byte more than a part is needed, so that the cut can be chosen.
    if (!blank && !rest.empty() && (document_ended_ || rest.size() > options_.part_bytes)) {
      const size_t cut = CutText(rest, options_.part_bytes);
      part = {document_, part_++, std::string(rest.substr(0, cut))};
      pending_pos_ += cut;
      return true;
    }
    if (document_ended_) {
      document_ += part_ > 0 ? 1 : 0;
      part_ = 0;
      document_ended_ = false;
      pending_.clear();
      pending_pos_ = 0;
      if (at_end_) return false;
    }
    if (pending_pos_ > 0) {
      pending_.erase(0, pending_pos_);
      pending_pos_ = 0;
    }
    RETURN_IF_ERROR(ReadLine());
  }
}

}  // namespace nibble
