// SPDX-License-Identifier: Apache-2.0
//
// Quantities people write in job files and read in tables. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble {

// "1073741824", "4GiB", "512 MiB", "1.5GB" to bytes; KiB.. are powers of 1024, KB.. of 1000.
// INVALID_ARGUMENT names the text and the accepted forms.
Result<int64_t> ParseBytes(std::string_view text);

// A whole number: "300", "-5", "20e9", "2.0".
// INVALID_ARGUMENT for fractions, OUT_OF_RANGE beyond 64 bits.
Result<int64_t> ParseWholeNumber(std::string_view text);

// Seconds as a duration that ParseDurationSeconds reads back: 5400 -> "1h30m", 0.25 -> "250ms".
std::string WriteDuration(double seconds);

// Age for tables: one or two units, "5s", "3m12s", "2h05m", "4d03h".
std::string FormatAge(double seconds);

}  // namespace nibble
