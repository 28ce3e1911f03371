// SPDX-License-Identifier: Apache-2.0
#include "client/cli/context.h"

#include <pwd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "base/strings.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {

Terminal DetectTerminal() {
  Terminal terminal;
  terminal.out_is_tty = ::isatty(STDOUT_FILENO) == 1;
  terminal.err_is_tty = ::isatty(STDERR_FILENO) == 1;
  const std::string term = ReadEnvironment("TERM");
  terminal.color =
      terminal.out_is_tty && ReadEnvironment("NO_COLOR").empty() && !term.empty() && term != "dumb";
  winsize size{};
  const int fd = terminal.out_is_tty ? STDOUT_FILENO : STDERR_FILENO;
  if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    terminal.width = std::clamp<int>(size.ws_col, 40, 400);
  }
  return terminal;
}

Result<Client*> CliContext::client() {
  if (client_ == nullptr) {
    ASSIGN_OR_RETURN(const ConnectionOptions options, ResolveConnection(connection));
    if (!options.token.empty() && options.tls_ca.empty() && !IsLoopback(options.server)) {
      Note("warning: the token goes to " + options.server + " unencrypted; use --tls-ca");
    }
    ASSIGN_OR_RETURN(client_, Client::Connect(options, interrupt));
  }
  return client_.get();
}

int CliContext::Fail(const Status& status) {
  if (status.ok()) return kExitOk;
  if (status.code() == StatusCode::kCancelled && interrupt.requested()) return kExitInterrupted;
  Note(status.message());
  if (client_ != nullptr && status.code() == StatusCode::kInvalidArgument) {
    for (const v1::FieldViolation& violation : client_->last_error().violations()) {
      if (status.message().find(violation.description()) != std::string::npos) continue;
      err << "  " << violation.field() << ": " << violation.description() << "\n";
    }
  }
  err.flush();
  return ExitCodeFor(status);
}

int CliContext::FailSpec(const Status& status) {
  const int code = Fail(status);
  return status.code() == StatusCode::kInvalidArgument ? kExitSpecRejected : code;
}

void CliContext::Note(std::string_view text) { err << "nibble: " << text << std::endl; }

bool CliContext::PrintStructured(const Json& json) {
  if (output == OutputFormat::kJson) {
    out << json.Dump(2) << "\n";
  } else if (output == OutputFormat::kYaml) {
    out << JsonToYaml(json);
  } else if (output == OutputFormat::kJsonl) {
    if (json.is_array()) {
      for (const Json& item : json.items()) out << item.Dump() << "\n";
    } else {
      out << json.Dump() << "\n";
    }
  } else {
    return false;
  }
  out.flush();
  return true;
}

std::string CurrentUser() {
  if (const std::string user = ReadEnvironment("USER"); !user.empty()) return user;
  const passwd* entry = ::getpwuid(::getuid());
  return entry == nullptr ? "unknown" : entry->pw_name;
}

}  // namespace nibble::cli
