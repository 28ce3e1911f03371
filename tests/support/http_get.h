// SPDX-License-Identifier: Apache-2.0
//
// HttpGet: a small HTTP/1.0 client for tests that read /metrics, /sd and the Prometheus API.
//
// It connects to 127.0.0.1 only, so that no test can leave the machine. Thread-safe.
// Limits: kMaxHttpResponseBytes per answer, `timeout` for the whole exchange.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::testing {

inline constexpr int64_t kMaxHttpResponseBytes = int64_t{64} << 20;

struct HttpResponse {
  int code = 0;              // 200, 404, ...
  std::string content_type;  // as sent, "" when absent
  std::string body;
};

// GET `target` ("/metrics", "/api/v1/query?query=up") of the server at 127.0.0.1:`port`.
// UNAVAILABLE when nobody listens, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED above the limit, DATA_LOSS
// for what is not HTTP or shorter than its Content-Length. Any status code is an OK result.
Result<HttpResponse> HttpGet(int port, std::string_view target,
                             std::chrono::milliseconds timeout = std::chrono::seconds(10));

// Percent-encodes everything but letters, digits and "-._~".
std::string UrlEncode(std::string_view text);

// A port of 127.0.0.1 that was free a moment ago. For programs that cannot report what port 0 gave
// them; callers try again with another port when it was taken meanwhile.
Result<int> FreeLoopbackPort();

}  // namespace nibble::testing
