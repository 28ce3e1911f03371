// SPDX-License-Identifier: Apache-2.0
//
// Connection: which controller to talk to and as whom, from flags, environment and files.
// Thread-safety: value types and pure functions (files are read).
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "base/status.h"

namespace nibble {

inline constexpr char kDefaultServer[] = "127.0.0.1:7790";
inline constexpr char kDefaultHttp[] = "127.0.0.1:7791";
inline constexpr std::chrono::milliseconds kDefaultCallTimeout{10'000};

// As given on the command line; empty = not given.
struct ConnectionFlags {
  std::string server;
  std::string token_file;
  std::string tls_ca;
  std::string timeout;  // a duration
};

struct ConnectionOptions {
  std::string server = kDefaultServer;        // host:port
  std::string server_source = "the default";  // who said so, for error messages
  std::string token;                          // "" = none is sent
  std::string tls_ca;                         // PEM file; "" = plain text
  std::chrono::milliseconds timeout = kDefaultCallTimeout;
};

using EnvironmentReader = std::function<std::string(const char* name)>;  // "" when unset
std::string ReadEnvironment(const char* name);

// Where `nibble up` keeps its state unless told otherwise: $NIBBLE_STATE_DIR or ~/.nibble/local.
std::string DefaultStateDirectory(const EnvironmentReader& env = ReadEnvironment);
// The file in which the controller of that state directory writes its host:port.
std::string AddressFileIn(const std::string& state_dir);

// server: --server, else $NIBBLE_SERVER, else the address file of the default state directory,
// else kDefaultServer. Token: --token-file, else $NIBBLE_TOKEN. CA: --tls-ca, else $NIBBLE_TLS_CA.
// INVALID_ARGUMENT for an address that is not host:port or a bad duration; NOT_FOUND and the like
// for an unreadable token file.
Result<ConnectionOptions> ResolveConnection(const ConnectionFlags& flags,
                                            const EnvironmentReader& env = ReadEnvironment);

// True for 127.0.0.0/8, ::1 and localhost.
bool IsLoopback(const std::string& host_port);

}  // namespace nibble
