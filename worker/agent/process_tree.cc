// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/process_tree.h"

#include <csignal>
#include <cstdint>
#include <map>
#include <string>

#include "base/files.h"
#include "base/process.h"
#include "base/strings.h"

namespace nibble::agent {
namespace {

constexpr int kMaxAncestors = 64;  // depth of a process tree that is followed
constexpr int64_t kMaxStatBytes = 4096;

struct Entry {
  pid_t parent = 0;
  pid_t session = 0;
  bool dead = false;
};

// One /proc/PID/stat: "pid (name) state ppid pgrp session ...", where name may hold anything.
bool ReadEntry(const std::string& pid, Entry& entry) {
  const Result<std::string> text = ReadFileRange("/proc/" + pid + "/stat", 0, kMaxStatBytes);
  if (!text.ok()) return false;
  const size_t close = text->rfind(')');
  if (close == std::string::npos || close + 2 >= text->size()) return false;
  const std::vector<std::string> fields = StrSplit(std::string_view(*text).substr(close + 2), ' ');
  if (fields.size() < 4) return false;
  entry.dead = fields[0] == "Z" || fields[0] == "X";
  entry.parent = static_cast<pid_t>(ParseInt(fields[1]).value_or(0));
  entry.session = static_cast<pid_t>(ParseInt(fields[3]).value_or(0));
  return true;
}

bool Descends(const std::map<pid_t, Entry>& all, pid_t pid, pid_t ancestor) {
  for (int depth = 0; depth < kMaxAncestors; ++depth) {
    const auto found = all.find(pid);
    if (found == all.end() || found->second.parent <= 1) return false;
    if (found->second.parent == ancestor) return true;
    pid = found->second.parent;
  }
  return false;
}

}  // namespace

std::vector<pid_t> SessionMembers(pid_t leader, int64_t leader_start_ticks) {
  const Result<int64_t> ticks = ProcessStartTicks(leader);
  if (ticks.ok() && *ticks != leader_start_ticks) return {};
  std::map<pid_t, Entry> all;
  for (const std::string& name : ListDirectory("/proc").value_or({})) {
    Entry entry;
    const Result<int64_t> pid = ParseInt(name);
    if (pid.ok() && ReadEntry(name, entry)) all[static_cast<pid_t>(*pid)] = entry;
  }
  std::vector<pid_t> members;
  for (const auto& [pid, entry] : all) {
    if (pid == leader || entry.dead) continue;
    if (entry.session == leader || Descends(all, pid, leader)) members.push_back(pid);
  }
  return members;
}

void KillProcesses(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) ::kill(pid, SIGKILL);
}

std::string BootId() {
  const Result<std::string> text = ReadFileRange("/proc/sys/kernel/random/boot_id", 0, 64);
  return std::string(StrTrim(text.value_or("")));
}

}  // namespace nibble::agent
