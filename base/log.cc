// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "base/clock.h"
#include "base/json.h"
#include "base/strings.h"

namespace nibble {
namespace {

LogLevel LevelFromEnvironment() {
  const char* value = std::getenv("NIBBLE_LOG");
  const std::string_view text = value != nullptr ? value : "";
  if (text == "debug") return LogLevel::kDebug;
  if (text == "warning") return LogLevel::kWarning;
  if (text == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

std::atomic<LogLevel>& CurrentLevel() {
  static std::atomic<LogLevel> level{LevelFromEnvironment()};
  return level;
}

std::string& Component() {
  static std::string component = "nibble";
  return component;
}

bool NeedsQuotes(std::string_view value) {
  return value.empty() || value.find_first_of(" \"\\=\n\t") != std::string_view::npos;
}

}  // namespace

void SetLogLevel(LogLevel level) { CurrentLevel() = level; }

void SetLogComponent(std::string_view component) { Component() = component; }

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (level < CurrentLevel().load()) return;
  static constexpr const char* kLevels[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
  std::string line = FormatUtc(Clock::Real().WallMillis());
  line.append(" ").append(kLevels[static_cast<int>(level)]).append(" ").append(Component());
  line.append(" ").append(JsonQuote(message));
  for (const LogField& field : fields) {
    line.append(" ").append(field.first).append("=");
    line.append(NeedsQuotes(field.second) ? JsonQuote(field.second) : field.second);
  }
  line += '\n';
  // A log that cannot be written must not stop the program.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace nibble
