// SPDX-License-Identifier: Apache-2.0
#include "server/store/log_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/ids.h"
#include "base/log.h"
#include "base/strings.h"

namespace nibble::store {
namespace {

constexpr int64_t kTailChunkBytes = 65'536;
constexpr int kMaxTailLines = 100'000;
constexpr std::string_view kCutMark = " [cut]";

Status CheckKey(const StreamKey& key) {
  if (IsValidName(key.job_id) && key.attempt >= 1 && key.rank >= 0) return OkStatus();
  return InvalidArgumentError(StrFormat("no log stream can be job '%.80s' attempt %d rank %d",
                                        key.job_id.c_str(), key.attempt, key.rank));
}

// One line in a file of lines: no line end, no tab that could be taken for a separator.
std::string Escaped(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) {
    if (c == '\n') {
      escaped += "\\n";
    } else if (c == '\r') {
      escaped += "\\r";
    } else if (c == '\t') {
      escaped += "\\t";
    } else if (c == '\\') {
      escaped += "\\\\";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string Unescaped(std::string_view text) {
  std::string plain;
  plain.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      plain += text[i];
      continue;
    }
    const char code = text[++i];
    plain += code == 'n' ? '\n' : code == 'r' ? '\r' : code == 't' ? '\t' : code;
  }
  return plain;
}

std::string Encode(const LogLine& line) {
  std::string text = Escaped(line.text);
  if (text.size() > kMaxLogLineBytes) {
    text.resize(kMaxLogLineBytes);
    text += kCutMark;
  }
  return StrFormat("%lld\t%lld\t%s\t", static_cast<long long>(line.source_cursor),
                   static_cast<long long>(line.time_ms),
                   Escaped(std::string_view(line.level).substr(0, 16)).c_str()) +
         text + "\n";
}

// DATA_LOSS for a line this class did not write.
Result<LogLine> Decode(std::string_view text) {
  LogLine line;
  size_t fields[3];
  size_t from = 0;
  for (size_t& tab : fields) {
    tab = text.find('\t', from);
    if (tab == std::string_view::npos) return DataLossError("a log line has too few fields");
    from = tab + 1;
  }
  ASSIGN_OR_RETURN(line.source_cursor, ParseInt(text.substr(0, fields[0])));
  ASSIGN_OR_RETURN(line.time_ms, ParseInt(text.substr(fields[0] + 1, fields[1] - fields[0] - 1)));
  line.level = Unescaped(text.substr(fields[1] + 1, fields[2] - fields[1] - 1));
  line.text = Unescaped(text.substr(fields[2] + 1));
  return line;
}

// Offset after the last line end at or before `end`; 0 when there is none.
Result<int64_t> EndOfLastLine(const std::string& path, int64_t end) {
  while (end > 0) {
    const int64_t from = std::max<int64_t>(0, end - kTailChunkBytes);
    ASSIGN_OR_RETURN(const std::string chunk, ReadFileRange(path, from, end - from));
    const size_t found = chunk.rfind('\n');
    if (found != std::string::npos) return from + static_cast<int64_t>(found) + 1;
    end = from;
  }
  return 0;
}

}  // namespace

struct LogStore::File {
  std::string path;
  AppendFile file;
  int64_t newest_cursor = 0;
  bool full = false;
  int64_t last_used = 0;
};

LogStore::LogStore(std::string directory) : directory_(std::move(directory)) {}
LogStore::~LogStore() = default;

Result<std::unique_ptr<LogStore>> LogStore::Open(const std::string& directory) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  return std::unique_ptr<LogStore>(new LogStore(directory));
}

std::string LogStore::PathOf(const StreamKey& key) const {
  return JoinPath(JoinPath(directory_, key.job_id),
                  StrFormat("a%d-r%d.log", key.attempt, key.rank));
}

Result<LogStore::File*> LogStore::OpenFile(const StreamKey& key) {
  const auto found = files_.find(key);
  if (found != files_.end()) {
    found->second->last_used = ++use_counter_;
    return found->second.get();
  }
  auto file = std::make_unique<File>();
  file->path = PathOf(key);
  RETURN_IF_ERROR(MakeDirectories(DirName(file->path)));
  if (PathExists(file->path)) {
    ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(file->path));
    ASSIGN_OR_RETURN(const int64_t whole, EndOfLastLine(file->path, size));
    if (whole < size && ::truncate(file->path.c_str(), whole) != 0) {
      return ErrnoError(errno, "truncate " + file->path);
    }
    ASSIGN_OR_RETURN(const int64_t begin,
                     EndOfLastLine(file->path, std::max<int64_t>(0, whole - 1)));
    if (whole > begin) {
      ASSIGN_OR_RETURN(const std::string last, ReadFileRange(file->path, begin, whole - begin - 1));
      ASSIGN_OR_RETURN(const LogLine line, Decode(last));
      file->newest_cursor = line.source_cursor;
    }
    file->full = whole >= kMaxLogBytes;
  }
  ASSIGN_OR_RETURN(file->file, AppendFile::Open(file->path));
  if (files_.size() >= kMaxOpenLogs) {
    files_.erase(std::min_element(files_.begin(), files_.end(), [](const auto& a, const auto& b) {
      return a.second->last_used < b.second->last_used;
    }));
  }
  file->last_used = ++use_counter_;
  return (files_[key] = std::move(file)).get();
}

Result<int> LogStore::Append(const StreamKey& key, const std::vector<LogLine>& lines) {
  RETURN_IF_ERROR(CheckKey(key));
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(File* const file, OpenFile(key));
  std::string bytes;
  int fresh = 0;
  int64_t newest = file->newest_cursor;
  for (const LogLine& line : lines) {
    if (line.source_cursor <= newest) continue;
    newest = line.source_cursor;
    if (file->full) continue;
    bytes += Encode(line);
    ++fresh;
    if (file->file.size_bytes() + static_cast<int64_t>(bytes.size()) < kMaxLogBytes) continue;
    file->full = true;
    bytes += Encode(
        {newest, line.time_ms, "warning",
         "this log reached " + FormatBytes(double(kMaxLogBytes)) + "; later lines are dropped"});
  }
  if (!bytes.empty()) RETURN_IF_ERROR(file->file.Append(bytes));
  file->newest_cursor = newest;
  return fresh;
}

Result<LogPage> LogStore::Read(const StreamKey& key, int64_t offset) {
  RETURN_IF_ERROR(CheckKey(key));
  MutexLock lock(mutex_);
  LogPage page;
  const std::string path = PathOf(key);
  const bool exists = PathExists(path);
  int64_t size = 0;
  if (exists) {
    ASSIGN_OR_RETURN(size, FileSizeBytes(path));
  }
  if (offset < 0 || offset > size) {
    return OutOfRangeError(StrFormat("log offset %lld is outside 0..%lld of %s",
                                     static_cast<long long>(offset), static_cast<long long>(size),
                                     path.c_str()));
  }
  page.next_offset = offset;
  if (!exists) return page;
  ASSIGN_OR_RETURN(const std::string bytes,
                   ReadFileRange(path, offset, static_cast<int64_t>(kMaxLogReadBytes)));
  size_t from = 0;
  for (size_t end = bytes.find('\n'); end != std::string::npos; end = bytes.find('\n', from)) {
    ASSIGN_OR_RETURN(LogLine line, Decode(std::string_view(bytes).substr(from, end - from)));
    page.lines.push_back(std::move(line));
    from = end + 1;
  }
  page.next_offset = offset + static_cast<int64_t>(from);
  return page;
}

Result<int64_t> LogStore::TailOffset(const StreamKey& key, int lines) {
  RETURN_IF_ERROR(CheckKey(key));
  MutexLock lock(mutex_);
  const std::string path = PathOf(key);
  if (!PathExists(path)) return 0;
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
  ASSIGN_OR_RETURN(int64_t end, EndOfLastLine(path, size));
  if (lines <= 0) return end;
  // The line end that closes the line before the wanted ones is the (wanted + 1)-th from the end.
  int line_ends = 0;
  const int wanted = std::min(lines, kMaxTailLines);
  while (end > 0) {
    const int64_t from = std::max<int64_t>(0, end - kTailChunkBytes);
    ASSIGN_OR_RETURN(const std::string chunk, ReadFileRange(path, from, end - from));
    for (size_t i = chunk.size(); i > 0; --i) {
      if (chunk[i - 1] != '\n') continue;
      if (++line_ends > wanted) return from + static_cast<int64_t>(i);
    }
    end = from;
  }
  return 0;
}

Result<std::vector<StreamKey>> LogStore::Streams(const std::string& job_id) const {
  RETURN_IF_ERROR(CheckKey({job_id, 1, 0}));
  std::vector<StreamKey> streams;
  const std::string directory = JoinPath(directory_, job_id);
  if (!PathExists(directory)) return streams;
  ASSIGN_OR_RETURN(const auto names, ListDirectory(directory));
  for (const std::string& name : names) {
    const size_t dash = name.find("-r");
    if (name.empty() || name[0] != 'a' || dash == std::string::npos || !name.ends_with(".log")) {
      continue;
    }
    const auto attempt = ParseInt(name.substr(1, dash - 1));
    const auto rank = ParseInt(name.substr(dash + 2, name.size() - 4 - dash - 2));
    if (!attempt.ok() || !rank.ok()) continue;
    streams.push_back({job_id, static_cast<int>(*attempt), static_cast<int>(*rank)});
  }
  std::sort(streams.begin(), streams.end());
  return streams;
}

}  // namespace nibble::store
