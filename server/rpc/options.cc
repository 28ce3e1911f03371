// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/options.h"

#include "base/files.h"
#include "base/strings.h"

namespace nibble::rpc {

std::string HostPort::ToString() const {
  const bool ipv6 = host.find(':') != std::string::npos;
  return (ipv6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<HostPort> ParseHostPort(std::string_view text, std::string_view flag) {
  const Status bad = InvalidArgumentError(
      StrFormat("%s '%s' is not an address; write HOST:PORT, e.g. 127.0.0.1:7790 or [::1]:7790, "
                "with a port from 0 (any free one) to 65535",
                std::string(flag).c_str(), std::string(text).c_str()));
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return bad;
  HostPort result;
  std::string_view host = text.substr(0, colon);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return bad;
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad;
  }
  const Result<int64_t> port = ParseInt(text.substr(colon + 1));
  if (!port.ok() || *port < 0 || *port > 65535) return bad;
  result.host = std::string(host);
  result.port = static_cast<int>(*port);
  return result;
}

bool IsLoopback(std::string_view host) {
  return host == "localhost" || host == "::1" || host.substr(0, 4) == "127.";
}

Status CheckOptions(const ControllerOptions& options) {
  if (options.state_dir.empty()) return InvalidArgumentError("--state-dir must name a folder");
  ASSIGN_OR_RETURN(const HostPort listen, ParseHostPort(options.listen, "--listen"));
  RETURN_IF_ERROR(ParseHostPort(options.http, "--http").status());
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return InvalidArgumentError("--tls-cert and --tls-key belong together; only one was given");
  }
  if (!options.tls_ca.empty() && options.tls_cert.empty()) {
    return InvalidArgumentError("--tls-ca needs --tls-cert and --tls-key");
  }
  if (options.heartbeat_ms < 10 || options.suspect_after_ms <= options.heartbeat_ms ||
      options.lease_ms <= options.suspect_after_ms) {
    return InvalidArgumentError(StrFormat(
        "timings must grow: --heartbeat %lld ms (at least 10) < --suspect-after %lld ms < "
        "--lease %lld ms",
        static_cast<long long>(options.heartbeat_ms),
        static_cast<long long>(options.suspect_after_ms),
        static_cast<long long>(options.lease_ms)));
  }
  if (options.job_series_grace_ms < 0) {
    return InvalidArgumentError("--job-series-grace must not be negative");
  }
  if (IsLoopback(listen.host)) return OkStatus();
  if (options.token.empty()) {
    return FailedPreconditionError("--listen " + options.listen +
                                   " is reachable from other machines and would let anyone run "
                                   "programs; give a token with --token-file FILE");
  }
  if (options.tls_cert.empty() && !options.insecure) {
    return FailedPreconditionError(
        "--listen " + options.listen +
        " is reachable from other machines and would send the token in clear text; give "
        "--tls-cert FILE --tls-key FILE, or say --insecure");
  }
  return OkStatus();
}

Result<std::string> LoadToken(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokenFileBytes));
  std::string token(StrTrim(text));
  if (token.size() < kMinTokenBytes) {
    return InvalidArgumentError(
        StrFormat("token file %s holds %zu characters; a token has at least %zu (e.g. `openssl "
                  "rand -hex 32 > FILE`)",
                  path.c_str(), token.size(), kMinTokenBytes));
  }
  for (const char c : token) {
    if (c <= ' ' || c > '~') {
      return InvalidArgumentError("token file " + path +
                                  " holds more than one word of printable ASCII; write the token "
                                  "alone on one line");
    }
  }
  return token;
}

Status CheckAuthorization(std::string_view expected, std::string_view header) {
  if (expected.empty()) return OkStatus();
  constexpr std::string_view kScheme = "Bearer ";
  if (header.empty()) {
    return UnauthenticatedError(
        "this controller asks for a token: send 'authorization: Bearer TOKEN' (NIBBLE_TOKEN or "
        "--token-file on the command line)");
  }
  const bool scheme = header.substr(0, kScheme.size()) == kScheme;
  const std::string_view given = scheme ? header.substr(kScheme.size()) : std::string_view();
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^
                  static_cast<unsigned char>(expected[i % expected.size()]);
  }
  if (difference != 0) return UnauthenticatedError("the token is not this controller's");
  return OkStatus();
}

}  // namespace nibble::rpc
