// SPDX-License-Identifier: Apache-2.0
#include "worker/train/rendezvous.h"

#include <unistd.h>

#include <random>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"

namespace nibble {
namespace {

using Steady = std::chrono::steady_clock;

constexpr char kRankFile[] = "rank";
constexpr char kLateFile[] = "late";
constexpr char kWordFile[] = "word.json";
constexpr int64_t kMaxFileBytes = 1 << 20;

std::string Hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) text += StrFormat("%02x", static_cast<unsigned char>(byte));
  return text;
}

Result<std::string> Bytes(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    const auto digit = [&](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    bytes += static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1]));
  }
  if (bytes.empty() || Hex(bytes) != hex) return DataLossError("the published word is damaged");
  return bytes;
}

// Unlike that of any other process.
std::string FreshWord() {
  std::random_device random;
  return StrFormat("%d-%08x%08x", static_cast<int>(getpid()), random(), random());
}

}  // namespace

std::string RankNames(const std::vector<int>& ranks) {
  if (ranks.empty()) return "no rank";
  std::vector<std::string> names;
  for (const int rank : ranks) names.push_back(std::to_string(rank));
  return (ranks.size() == 1 ? "rank " : "ranks ") + StrJoin(names, ", ");
}

Rendezvous::Rendezvous(Options options) : options_(std::move(options)), word_(FreshWord()) {}

std::string Rendezvous::PathOf(const char* kind, int rank) const {
  return JoinPath(options_.folder, StrFormat("%s-%d", kind, rank));
}

Status Rendezvous::Announce() {
  RETURN_IF_ERROR(MakeDirectories(options_.folder));
  return AtomicWriteFile(PathOf(kRankFile, options_.rank), word_);
}

std::vector<int> Rendezvous::Absent() const {
  std::vector<int> absent;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    if (!PathExists(PathOf(kRankFile, rank))) absent.push_back(rank);
  }
  return absent;
}

Status Rendezvous::TimeOut(const std::vector<int>& absent) const {
  return UnavailableError(StrFormat(
      "rank %d of %d waited %lld s: %s did not come to %s; start all ranks with the same run.dir "
      "and "
      "run.attempt",
      options_.rank, options_.world_size, static_cast<long long>(options_.timeout.count() / 1000),
      RankNames(absent).c_str(), options_.folder.c_str()));
}

Result<std::string> Rendezvous::Publish(const std::function<Result<std::string>()>& make) {
  // What is left of an earlier run; a rank that was quicker announces itself again.
  RETURN_IF_ERROR(RemoveTree(JoinPath(options_.folder, kWordFile)));
  for (int rank = 0; rank < options_.world_size; ++rank) {
    RETURN_IF_ERROR(RemoveTree(PathOf(kRankFile, rank)));
    RETURN_IF_ERROR(RemoveTree(PathOf(kLateFile, rank)));
  }
  RETURN_IF_ERROR(Announce());
  const auto end = Steady::now() + options_.timeout;
  for (std::vector<int> absent = Absent(); !absent.empty(); absent = Absent()) {
    if (Steady::now() > end) return TimeOut(absent);
    std::this_thread::sleep_for(options_.poll);
  }
  Json ranks = Json::Array();
  for (int rank = 0; rank < options_.world_size; ++rank) {
    ASSIGN_OR_RETURN(const std::string word, ReadFile(PathOf(kRankFile, rank), kMaxFileBytes));
    ranks.Append(word);
  }
  ASSIGN_OR_RETURN(const std::string bytes, make());
  const Json word = Json::Object({{"ranks", std::move(ranks)}, {"word", Hex(bytes)}});
  RETURN_IF_ERROR(AtomicWriteFile(JoinPath(options_.folder, kWordFile), word.Dump()));
  return bytes;
}

Result<std::string> Rendezvous::Receive() {
  const std::string path = JoinPath(options_.folder, kWordFile);
  const auto end = Steady::now() + options_.timeout;
  for (;;) {
    // Rank 0 may have cleared the folder at any time.
    if (!PathExists(PathOf(kRankFile, options_.rank))) (void)Announce().ok();
    const Result<std::string> text = ReadFile(path, kMaxFileBytes);
    const Result<Json> json = text.ok() ? Json::Parse(*text) : text.status();
    if (json.ok()) {
      const std::vector<Json>& ranks = (*json)["ranks"].items();
      const auto at = static_cast<size_t>(options_.rank);
      if (ranks.size() == static_cast<size_t>(options_.world_size) &&
          ranks[at].AsString() == word_) {
        return Bytes((*json)["word"].AsString());
      }
    }
    if (Steady::now() > end) break;
    std::this_thread::sleep_for(options_.poll);
  }
  // A word that is for others is of an earlier run: rank 0 would have cleared it.
  const std::vector<int> absent = Absent();
  return TimeOut(absent.empty() || PathExists(path) ? std::vector<int>{0} : absent);
}

Result<std::string> Rendezvous::Exchange(const std::function<Result<std::string>()>& make) {
  if (options_.world_size == 1) return make();
  if (options_.folder.empty()) {
    return InvalidArgumentError("ranks need a folder to meet in; give run.dir");
  }
  if (options_.rank == 0) return Publish(make);
  RETURN_IF_ERROR(Announce());
  return Receive();
}

std::string Rendezvous::Late(int64_t collective) const {
  const std::string mine = std::to_string(collective);
  const bool said =
      options_.folder.empty() || AtomicWriteFile(PathOf(kLateFile, options_.rank), mine).ok();
  const auto end = Steady::now() + options_.grace;
  std::vector<int> behind;
  do {
    behind.clear();
    for (int rank = 0; rank < options_.world_size; ++rank) {
      if (rank == options_.rank) continue;
      const Result<std::string> theirs = ReadFile(PathOf(kLateFile, rank), kMaxFileBytes);
      if (!theirs.ok() || *theirs != mine) behind.push_back(rank);
    }
    if (behind.empty()) break;
    std::this_thread::sleep_for(options_.poll);
  } while (Steady::now() < end);
  return RankNames(behind) + (said ? "" : " (nothing could be written to " + options_.folder + ")");
}

}  // namespace nibble
