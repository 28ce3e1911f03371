// SPDX-License-Identifier: Apache-2.0
#include "base/strings.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <iterator>

namespace nibble {
namespace {

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<int>> d(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = static_cast<int>(i);
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substitute = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, substitute});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

// "D-HH:MM:SS", "HH:MM:SS" or "MM:SS"; negative when `text` has another form.
double ParseClockForm(std::string_view text) {
  double days = 0;
  if (const size_t dash = text.find('-'); dash != std::string_view::npos) {
    const auto parsed = ParseInt(text.substr(0, dash));
    if (!parsed.ok() || *parsed < 0) return -1;
    days = static_cast<double>(*parsed);
    text.remove_prefix(dash + 1);
  }
  double seconds = 0;
  const std::vector<std::string> parts = StrSplit(text, ':');
  if (parts.size() < 2 || parts.size() > 3) return -1;
  for (const std::string& part : parts) {
    const auto value = ParseInt(part);
    if (!value.ok() || *value < 0) return -1;
    seconds = seconds * 60 + static_cast<double>(*value);
  }
  return days * 86400 + seconds;
}

}  // namespace

std::string StrFormat(const char* format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  const int length = std::vsnprintf(nullptr, 0, format, args);
  va_end(args);
  std::string out(static_cast<size_t>(std::max(length, 0)), '\0');
  std::vsnprintf(out.data(), out.size() + 1, format, again);
  va_end(again);
  return out;
}

std::vector<std::string> StrSplit(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::string StrJoin(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out += separator;
    out += parts[i];
  }
  return out;
}

std::string_view StrTrim(std::string_view text) {
  static constexpr std::string_view kSpace = " \t\r\n\v\f";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string_view Utf8Prefix(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

std::string FormatBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (std::abs(bytes) >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
}

std::string FormatCount(double count) {
  static constexpr const char* kUnits[] = {"", " k", " M", " B", " T", " P"};
  size_t unit = 0;
  while (std::abs(count) >= 1000 && unit + 1 < std::size(kUnits)) {
    count /= 1000;
    ++unit;
  }
  return StrFormat(unit == 0 ? "%.0f%s" : "%.2f%s", count, kUnits[unit]);
}

std::string FormatDuration(double seconds) {
  if (!(seconds >= 0)) return "?";
  if (seconds < 10) return StrFormat("%.1fs", seconds);
  const int64_t total = static_cast<int64_t>(seconds + 0.5);
  if (total < 60) return StrFormat("%llds", static_cast<long long>(total));
  const auto two = [](int64_t big, char big_unit, int64_t small, char small_unit) {
    return StrFormat("%lld%c%02lld%c", static_cast<long long>(big), big_unit,
                     static_cast<long long>(small), small_unit);
  };
  if (total < 3600) return two(total / 60, 'm', total % 60, 's');
  if (total < 86400) return two(total / 3600, 'h', total % 3600 / 60, 'm');
  return two(total / 86400, 'd', total % 86400 / 3600, 'h');
}

std::string FormatUtc(int64_t wall_ms) {
  const std::time_t seconds = static_cast<std::time_t>(wall_ms / 1000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  return StrFormat("%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", utc.tm_year + 1900, utc.tm_mon + 1,
                   utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                   static_cast<int>(wall_ms % 1000));
}

Result<double> ParseDurationSeconds(std::string_view text) {
  const Status error = InvalidArgumentError(
      "'" + std::string(text) + "' is not a duration; write 90s, 90m, 1h30m, 2d or D-HH:MM:SS");
  if (text.empty()) return error;
  if (text.find(':') != std::string_view::npos) {
    const double seconds = ParseClockForm(text);
    if (seconds < 0) return error;
    return seconds;
  }
  double total = 0;
  std::string_view rest = text;
  while (!rest.empty()) {
    double value = 0;
    const auto parsed = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (parsed.ec != std::errc() || !(value >= 0) || !std::isfinite(value)) return error;
    rest.remove_prefix(static_cast<size_t>(parsed.ptr - rest.data()));
    const size_t unit_length = std::min(rest.find_first_of("0123456789."), rest.size());
    const std::string_view unit = rest.substr(0, unit_length);
    rest.remove_prefix(unit_length);
    double factor = 0;
    if (unit.empty() || unit == "s") factor = 1;
    if (unit == "ms") factor = 0.001;
    if (unit == "m") factor = 60;
    if (unit == "h") factor = 3600;
    if (unit == "d") factor = 86400;
    if (factor == 0) return error;
    total += value * factor;
  }
  return total;
}

Result<int64_t> ParseInt(std::string_view text) {
  int64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || text.empty()) {
    return InvalidArgumentError("'" + std::string(text) + "' is not a whole number");
  }
  return value;
}

Result<double> ParseDouble(std::string_view text) {
  double value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || text.empty()) {
    return InvalidArgumentError("'" + std::string(text) + "' is not a number");
  }
  return value;
}

std::string NearestName(std::string_view text, const std::vector<std::string>& candidates) {
  std::string best;
  int best_distance = 2 + static_cast<int>(text.size()) / 3;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(text, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string UnknownNameMessage(std::string_view what, std::string_view text,
                               const std::vector<std::string>& candidates) {
  std::string message = "unknown " + std::string(what) + " '" + std::string(text) +
                        "'; known: " + StrJoin(candidates, ", ");
  const std::string nearest = NearestName(text, candidates);
  if (!nearest.empty()) message += "; did you mean '" + nearest + "'?";
  return message;
}

}  // namespace nibble
