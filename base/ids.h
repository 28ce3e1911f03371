// SPDX-License-Identifier: Apache-2.0
//
// Ids: random identifiers for jobs, workers, sessions and requests. Thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

// `prefix`-"<16 hex digits>" from the system's random source, e.g. "req-3f9a...".
std::string RandomId(std::string_view prefix);

// True for 1..63 characters of [a-z0-9-], starting and ending with a letter or digit (RFC 1123
// label): the rule for job, worker, queue and project names.
bool IsValidName(std::string_view name);

}  // namespace nibble
