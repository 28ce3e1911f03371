// SPDX-License-Identifier: Apache-2.0
#include "base/ids.h"

#include <cstdint>
#include <cstdio>
#include <random>

namespace nibble {

std::string RandomId(std::string_view prefix) {
  std::random_device device;
  const uint64_t value = (static_cast<uint64_t>(device()) << 32) | device();
  char digits[17];
  std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(value));
  return std::string(prefix) + "-" + digits;
}

bool IsValidName(std::string_view name) {
  if (name.empty() || name.size() > 63) return false;
  const auto alphanumeric = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  for (const char c : name) {
    if (!alphanumeric(c) && c != '-') return false;
  }
  return alphanumeric(name.front()) && alphanumeric(name.back());
}

}  // namespace nibble
