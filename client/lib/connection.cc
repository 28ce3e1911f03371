// SPDX-License-Identifier: Apache-2.0
#include "client/lib/connection.h"

#include <cstdlib>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kMaxTokenFileBytes = 64 * 1024;

Status CheckHostPort(const std::string& text, const std::string& source) {
  const size_t colon = text.rfind(':');
  const auto port =
      colon == std::string::npos ? Result<int64_t>(-1) : ParseInt(text.substr(colon + 1));
  if (colon == 0 || !port.ok() || *port < 1 || *port > 65535) {
    return InvalidArgumentError("server address '" + text + "' (from " + source +
                                ") is not HOST:PORT with a port of 1 to 65535, e.g. " +
                                kDefaultServer);
  }
  return OkStatus();
}

}  // namespace

std::string ReadEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string DefaultStateDirectory(const EnvironmentReader& env) {
  if (const std::string chosen = env("NIBBLE_STATE_DIR"); !chosen.empty()) return chosen;
  const std::string home = env("HOME");
  return JoinPath(home.empty() ? "." : home, ".nibble/local");
}

std::string AddressFileIn(const std::string& state_dir) {
  return JoinPath(state_dir, "controller/controller.address");
}

bool IsLoopback(const std::string& host_port) {
  const std::string host = host_port.substr(0, host_port.rfind(':'));
  return host.starts_with("127.") || host == "localhost" || host == "::1" || host == "[::1]";
}

Result<ConnectionOptions> ResolveConnection(const ConnectionFlags& flags,
                                            const EnvironmentReader& env) {
  ConnectionOptions options;
  const std::string from_env = env("NIBBLE_SERVER");
  const std::string address_file = AddressFileIn(DefaultStateDirectory(env));
  if (!flags.server.empty()) {
    options.server = flags.server;
    options.server_source = "--server";
  } else if (!from_env.empty()) {
    options.server = from_env;
    options.server_source = "$NIBBLE_SERVER";
  } else if (const auto text = ReadFile(address_file, 4096); text.ok()) {
    options.server = std::string(StrTrim(*text));
    options.server_source = address_file;
  }
  RETURN_IF_ERROR(CheckHostPort(options.server, options.server_source));

  if (!flags.token_file.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.token_file, kMaxTokenFileBytes));
    options.token = std::string(StrTrim(text.substr(0, text.find('\n'))));
    if (options.token.empty()) {
      return InvalidArgumentError("token file " + flags.token_file +
                                  " has no token in its first line");
    }
  } else {
    options.token = env("NIBBLE_TOKEN");
  }
  options.tls_ca = flags.tls_ca.empty() ? env("NIBBLE_TLS_CA") : flags.tls_ca;
  if (!flags.timeout.empty()) {
    ASSIGN_OR_RETURN(const double seconds, ParseDurationSeconds(flags.timeout));
    constexpr double kMaxTimeoutSeconds = 3600;
    if (!(seconds > 0) || seconds > kMaxTimeoutSeconds) {
      return InvalidArgumentError("--timeout " + flags.timeout + " is not within 1ms and 1h");
    }
    options.timeout = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000 + 0.999));
  }
  return options;
}

}  // namespace nibble
