// SPDX-License-Identifier: Apache-2.0
//
// LogStore: log lines of trainers, one append-only text file per (job, attempt, rank).
//
// Layout: <directory>/<job>/a<attempt>-r<rank>.log, one line each:
//   <source cursor> TAB <time ms> TAB <level> TAB <text> LF
// so a person can read it with `cat`. The source cursor is the sender's position after the line
// (a journal offset); it grows, which is how resent lines are recognised and dropped.
// A torn last line is cut off when the file is opened for appending.
// Thread-safety: thread-safe. Limits: kMaxLogLineBytes (longer text is cut and marked),
// kMaxLogBytes per file (then one closing line, and further lines are dropped and counted).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/mutex.h"
#include "base/status.h"
#include "server/store/points.h"

namespace nibble::store {

inline constexpr size_t kMaxLogLineBytes = 8192;
inline constexpr int64_t kMaxLogBytes = int64_t{256} << 20;
inline constexpr size_t kMaxOpenLogs = 128;
inline constexpr size_t kMaxLogReadBytes = 1 << 20;

struct LogLine {
  int64_t source_cursor = 0;
  int64_t time_ms = 0;
  std::string level;  // "info", "warning", "error"
  std::string text;   // without line end; line breaks and tabs inside are kept escaped
};

struct LogPage {
  std::vector<LogLine> lines;
  int64_t next_offset = 0;  // pass it to Read to go on; equal to the asked one when nothing is new
};

class LogStore {
 public:
  static Result<std::unique_ptr<LogStore>> Open(const std::string& directory);
  ~LogStore();

  // Appends the lines that are newer than what is stored; returns how many were new.
  // RESOURCE_EXHAUSTED when the disk is full: nothing of this call is kept.
  Result<int> Append(const StreamKey& key, const std::vector<LogLine>& lines) EXCLUDES(mutex_);

  // Whole lines from file offset `offset` (0 = beginning), up to kMaxLogReadBytes. An unknown
  // stream is an empty page. OUT_OF_RANGE when the offset is past the end.
  Result<LogPage> Read(const StreamKey& key, int64_t offset) EXCLUDES(mutex_);

  // Offset of the line that begins the last `lines` lines: tail = Read(TailOffset(n)).
  Result<int64_t> TailOffset(const StreamKey& key, int lines) EXCLUDES(mutex_);

  // Ranks and attempts that have lines.
  Result<std::vector<StreamKey>> Streams(const std::string& job_id) const;

 private:
  struct File;
  explicit LogStore(std::string directory);
  Result<File*> OpenFile(const StreamKey& key) REQUIRES(mutex_);
  std::string PathOf(const StreamKey& key) const;

  const std::string directory_;
  Mutex mutex_;
  std::map<StreamKey, std::unique_ptr<File>> files_ GUARDED_BY(mutex_);
  int64_t use_counter_ GUARDED_BY(mutex_) = 0;
};

}  // namespace nibble::store
