// SPDX-License-Identifier: Apache-2.0
#include "client/lib/quantities.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"

namespace nibble {
namespace {

// 2^63: the first double that no int64_t holds.
constexpr double kInt64Bound = 9223372036854775808.0;

struct Unit {
  const char* name;
  double factor;
};

constexpr Unit kByteUnits[] = {
    {"", 1},
    {"B", 1},
    {"KiB", 1024.0},
    {"MiB", 1048576.0},
    {"GiB", 1073741824.0},
    {"TiB", 1099511627776.0},
    {"KB", 1e3},
    {"MB", 1e6},
    {"GB", 1e9},
    {"TB", 1e12},
};

}  // namespace

Result<int64_t> ParseBytes(std::string_view text) {
  const Status error =
      InvalidArgumentError("'" + std::string(text) +
                           "' is not a size; write bytes or a number with KiB, MiB, GiB, TiB, KB, "
                           "MB, GB or TB, e.g. 4GiB");
  const std::string_view trimmed = StrTrim(text);
  const size_t digits = std::min(trimmed.find_first_not_of("0123456789.eE+"), trimmed.size());
  const auto number = ParseDouble(trimmed.substr(0, digits));
  if (!number.ok() || !(*number >= 0)) return error;
  const std::string_view name = StrTrim(trimmed.substr(digits));
  for (const Unit& unit : kByteUnits) {
    if (name != unit.name) continue;
    const double bytes = std::round(*number * unit.factor);
    if (!(bytes < kInt64Bound)) return error;
    return static_cast<int64_t>(bytes);
  }
  return error;
}

Result<int64_t> ParseWholeNumber(std::string_view text) {
  if (const auto exact = ParseInt(text); exact.ok()) return exact;
  const auto number = ParseDouble(text);
  if (!number.ok() || !std::isfinite(*number) || std::floor(*number) != *number) {
    return InvalidArgumentError("'" + std::string(text) + "' is not a whole number");
  }
  if (*number >= kInt64Bound || *number < -kInt64Bound) {
    return OutOfRangeError("'" + std::string(text) + "' does not fit in 64 bits");
  }
  return static_cast<int64_t>(*number);
}

std::string WriteDuration(double seconds) {
  const auto total_ms = static_cast<int64_t>(std::llround(seconds * 1000));
  if (total_ms <= 0) return "0s";
  std::string out;
  int64_t left = total_ms;
  const auto take = [&](int64_t unit_ms, const char* name) {
    if (left >= unit_ms) out += std::to_string(left / unit_ms) + name;
    left %= unit_ms;
  };
  take(86'400'000, "d");
  take(3'600'000, "h");
  take(60'000, "m");
  take(1000, "s");
  take(1, "ms");
  return out;
}

std::string FormatAge(double seconds) {
  if (!(seconds >= 0)) seconds = 0;
  if (seconds < 60) return StrFormat("%ds", static_cast<int>(seconds));
  return FormatDuration(std::floor(seconds));
}

}  // namespace nibble
