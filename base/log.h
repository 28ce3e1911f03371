// SPDX-License-Identifier: Apache-2.0
//
// Log: structured lines on stderr, one event a line:
//   2026-01-31T12:00:00.123Z INFO  controller "lease expired" worker=w-1 job=j-7
//
// Warning: someone may have to look. Error: work or data lost. Nothing per step above debug.
// Thread-safety: thread-safe; a line is written with one write(2).
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace nibble {

enum class LogLevel { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };

using LogField = std::pair<std::string_view, std::string>;

// Lines below `level` are dropped; the default is kInfo, or $NIBBLE_LOG (debug|info|warning|error).
void SetLogLevel(LogLevel level);
// Shown in every line, e.g. "controller". Call once, before threads start.
void SetLogComponent(std::string_view component);

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
inline void LogDebug(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kDebug, message, fields);
}
inline void LogInfo(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}

}  // namespace nibble
