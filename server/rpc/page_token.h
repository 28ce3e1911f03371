// SPDX-License-Identifier: Apache-2.0
//
// Page tokens: where a list goes on, opaque to the client and bound to the question asked.
// Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "base/sha256.h"
#include "base/status.h"
#include "base/strings.h"

namespace nibble::rpc {

// Precondition: position > 0.
inline std::string MakePageToken(int64_t position, const std::string& question) {
  return StrFormat("%llx.", static_cast<unsigned long long>(position)) +
         Sha256Hex(question).substr(0, 12);
}

// The position; 0 for "" (the beginning). INVALID_ARGUMENT for a token of another question.
inline Result<int64_t> ReadPageToken(const std::string& token, const std::string& question) {
  if (token.empty()) return int64_t{0};
  const size_t dot = token.find('.');
  int64_t position = 0;
  bool good = dot != std::string::npos && dot > 0 && dot <= 15;
  for (size_t i = 0; good && i < dot; ++i) {
    const char c = token[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    good = digit >= 0;
    position = position * 16 + digit;
  }
  if (!good || position <= 0 || MakePageToken(position, question) != token) {
    return InvalidArgumentError("page_token '" + token.substr(0, 80) +
                                "' is not from this list; repeat the request that gave it with "
                                "nothing changed but the token, or begin without one");
  }
  return position;
}

}  // namespace nibble::rpc
