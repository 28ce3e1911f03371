// SPDX-License-Identifier: Apache-2.0
//
// Strings: formatting and parsing shared by all programs. Thread-safe, no state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble {

// printf into a string.
std::string StrFormat(const char* format, ...) __attribute__((format(printf, 1, 2)));

std::vector<std::string> StrSplit(std::string_view text, char separator);  // keeps empty parts
std::string StrJoin(const std::vector<std::string>& parts, std::string_view separator);
std::string_view StrTrim(std::string_view text);  // ASCII white space off both ends
// The longest beginning of at most `max_bytes` bytes that ends no UTF-8 character in its middle.
std::string_view Utf8Prefix(std::string_view text, size_t max_bytes);

// "1.5 GiB", "312 B".
std::string FormatBytes(double bytes);
// "1.30 M", "43.1 k": counts for people.
std::string FormatCount(double count);
// "2m03s", "1h02m", "3d04h", "0.8s".
std::string FormatDuration(double seconds);
// "2026-01-31T12:00:00.123Z".
std::string FormatUtc(int64_t wall_ms);

// "90", "90s", "90m", "1h30m", "2d", "500ms" and Slurm's "D-HH:MM:SS", "HH:MM:SS", "MM:SS" to
// seconds. INVALID_ARGUMENT names the text and the accepted forms.
Result<double> ParseDurationSeconds(std::string_view text);

// Whole-text number parsing; INVALID_ARGUMENT otherwise.
Result<int64_t> ParseInt(std::string_view text);
Result<double> ParseDouble(std::string_view text);

// The candidate nearest to `text` (Damerau-Levenshtein distance <= 1 + length/3), or "".
std::string NearestName(std::string_view text, const std::vector<std::string>& candidates);

// "unknown WHAT 'text'; known: a, b, c" with "; did you mean 'b'?" when one is near.
std::string UnknownNameMessage(std::string_view what, std::string_view text,
                               const std::vector<std::string>& candidates);

}  // namespace nibble
