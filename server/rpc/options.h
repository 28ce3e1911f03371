// SPDX-License-Identifier: Apache-2.0
//
// Options of the controller: addresses, credentials, timings, and the rules that tie them.
//
// Thread-safety: value types and pure functions; LoadToken reads one file.
// Invariant: what CheckOptions accepts never exposes the API beyond this machine without a token,
// nor without TLS unless that was asked for by name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::rpc {

inline constexpr char kDefaultListen[] = "127.0.0.1:7790";
inline constexpr char kDefaultHttp[] = "127.0.0.1:7791";
// File in the state directory that names the address the API is served on.
inline constexpr char kAddressFile[] = "controller.address";
inline constexpr size_t kMinTokenBytes = 8;
inline constexpr int64_t kMaxTokenFileBytes = 4096;

struct HostPort {
  std::string host;              // without brackets
  int port = 0;                  // 0 = any free port
  std::string ToString() const;  // "[::1]:80" for an IPv6 host
};

// "HOST:PORT", "[::1]:PORT". INVALID_ARGUMENT names the text and `flag`.
Result<HostPort> ParseHostPort(std::string_view text, std::string_view flag);

// True for localhost, 127.0.0.0/8 and ::1.
bool IsLoopback(std::string_view host);

struct ControllerOptions {
  std::string listen = kDefaultListen;
  std::string http = kDefaultHttp;
  std::string state_dir;
  std::string token;     // "" = no token asked for
  std::string tls_cert;  // PEM files; both or neither
  std::string tls_key;
  std::string tls_ca;  // with it, workers must show a certificate that it signed
  bool insecure = false;
  bool reflection = true;  // gRPC server reflection
  std::string version;
  int64_t heartbeat_ms = 5'000;
  int64_t suspect_after_ms = 30'000;
  int64_t lease_ms = 120'000;
  int64_t job_series_grace_ms = 600'000;
};

// INVALID_ARGUMENT or FAILED_PRECONDITION naming the flag to give.
Status CheckOptions(const ControllerOptions& options);

// The token in a file, without white space around it. INVALID_ARGUMENT when it is too short.
Result<std::string> LoadToken(const std::string& path);

// OK, or UNAUTHENTICATED, for the value of an "authorization" header. Takes the same time for
// every wrong token of one length. An empty `expected` accepts everything.
Status CheckAuthorization(std::string_view expected, std::string_view header);

}  // namespace nibble::rpc
