// SPDX-License-Identifier: Apache-2.0
#include "worker/data/corpus.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/process.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/pod_text.h"
#include "worker/data/unicode.h"

namespace nibble {
namespace {

constexpr int64_t kMaxPodFileBytes = int64_t{64} << 20;

std::vector<std::string> Glob(const std::string& pattern) {
  glob_t matches{};
  std::vector<std::string> found;
  if (::glob(pattern.c_str(), 0, nullptr, &matches) == 0) {
    found.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  }
  ::globfree(&matches);
  return found;
}

// The .pod files of the package, each once, sorted by name.
Result<std::vector<std::string>> FindPodFiles(const std::string& pod_folder) {
  std::vector<std::string> found;
  if (!pod_folder.empty()) {
    found = Glob(JoinPath(pod_folder, "*.pod"));
  } else {
    const auto listed = RunCommand({"dpkg-query", "-L", "perl-doc"}, /*merge_stderr=*/false);
    if (listed.ok() && listed->status.success()) {
      for (const std::string& path : StrSplit(listed->output, '\n')) {
        if (path.ends_with(".pod") && PathExists(path)) found.push_back(path);
      }
    }
    if (found.empty()) found = Glob("/usr/share/perl/*/pod/*.pod");
    if (found.empty()) found = Glob("/usr/share/perl5/pod/*.pod");
  }
  std::set<std::pair<std::string, std::string>> unique;  // name, real path
  for (const std::string& path : found) {
    std::error_code error;
    const std::string real = std::filesystem::canonical(path, error).string();
    if (!error) unique.emplace(BaseName(real), real);
  }
  std::vector<std::string> files;
  for (const auto& [name, path] : unique) files.push_back(path);
  if (!files.empty()) return files;
  if (!pod_folder.empty()) return NotFoundError("folder " + pod_folder + " holds no .pod file");
  return NotFoundError(
      "Perl's documentation is not installed: no .pod files of the package perl-doc; install it "
      "('apt-get install perl-doc'), name a folder with --pod-dir, or use your own text with "
      "'nibble-data corpus files'");
}

Json Summary(const CorpusWriter& writer, size_t files) {
  return Json::Object({{"documents", writer.documents()},
                       {"bytes", writer.size_bytes()},
                       {"files", static_cast<int64_t>(files)}});
}

std::string WithUnixLineEnds(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out += text[i];
  }
  return out;
}

}  // namespace

Result<CorpusWriter> CorpusWriter::Create(const std::string& path) {
  CorpusWriter writer;
  writer.path_ = path;
  writer.partial_path_ = path + ".partial";
  RETURN_IF_ERROR(RemoveTree(writer.partial_path_));
  ASSIGN_OR_RETURN(writer.file_, AppendFile::Open(writer.partial_path_));
  return writer;
}

CorpusWriter::CorpusWriter(CorpusWriter&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::exchange(other.partial_path_, "")),
      file_(std::move(other.file_)),
      documents_(other.documents_) {}

CorpusWriter::~CorpusWriter() {
  if (!partial_path_.empty()) (void)RemoveTree(partial_path_).ok();
}

Status CorpusWriter::Add(std::string_view text) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  while (text.ends_with('\n')) text.remove_suffix(1);
  if (StrTrim(text).empty()) return OkStatus();
  std::string block;
  if (documents_ > 0) block = std::string(kDocumentSeparator) + "\n";
  block += text;
  block += '\n';
  ++documents_;
  return file_.Append(block);
}

Status CorpusWriter::Finish() {
  RETURN_IF_ERROR(file_.Sync());
  RETURN_IF_ERROR(RenamePath(partial_path_, path_));
  partial_path_.clear();
  return SyncDirectory(DirName(path_));
}

Result<Json> WritePerlDocCorpus(const std::string& out, const std::string& pod_folder,
                                int64_t min_bytes) {
  ASSIGN_OR_RETURN(const std::vector<std::string> files, FindPodFiles(pod_folder));
  ASSIGN_OR_RETURN(CorpusWriter writer, CorpusWriter::Create(out));
  std::set<std::string> seen;  // a page installed under two names counts once
  for (const std::string& path : files) {
    ASSIGN_OR_RETURN(const std::string pod, ReadFile(path, kMaxPodFileBytes));
    const std::string text = PodToText(pod);
    if (seen.insert(Sha256Hex(text)).second) RETURN_IF_ERROR(writer.Add(text));
  }
  if (writer.size_bytes() < min_bytes) {
    return FailedPreconditionError(StrFormat(
        "Perl's documentation gives %lld bytes of text from %zu files, fewer than the %lld asked "
        "for; install the whole package ('apt-get install --reinstall perl-doc') or lower "
        "--min-bytes",
        static_cast<long long>(writer.size_bytes()), files.size(),
        static_cast<long long>(min_bytes)));
  }
  RETURN_IF_ERROR(writer.Finish());
  return Summary(writer, files.size());
}

Result<Json> WriteFilesCorpus(const std::string& out, const std::vector<std::string>& files,
                              bool lossy) {
  ASSIGN_OR_RETURN(CorpusWriter writer, CorpusWriter::Create(out));
  for (const std::string& path : files) {
    ASSIGN_OR_RETURN(std::string text, ReadFile(path, kMaxTextFileBytes));
    if (const auto offset = FindInvalidUtf8(text)) {
      if (!lossy) {
        return InvalidArgumentError(
            StrFormat("%s is not UTF-8: byte 0x%02X at offset %zu; convert it (for example with "
                      "iconv) or pass --lossy to replace such bytes",
                      path.c_str(), static_cast<unsigned char>(text[*offset]), *offset));
      }
      text = ReplaceInvalidUtf8(text);
    }
    std::string_view body = text;
    if (body.starts_with(kByteOrderMark)) body.remove_prefix(kByteOrderMark.size());
    RETURN_IF_ERROR(writer.Add(WithUnixLineEnds(body)));
  }
  if (writer.documents() == 0) {
    return InvalidArgumentError("the corpus would be empty: no text in " + StrJoin(files, ", "));
  }
  RETURN_IF_ERROR(writer.Finish());
  return Summary(writer, files.size());
}

}  // namespace nibble
