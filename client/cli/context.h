// SPDX-License-Identifier: Apache-2.0
//
// CliContext: what every subcommand needs: flags shared by all, streams, terminal, connection.
//
// Thread-safety: one thread. Ownership: owns the Client; borrows streams and the Interrupt.
// Data goes to `out`, everything else to `err`.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "client/lib/client.h"
#include "client/lib/connection.h"
#include "client/lib/exit_code.h"
#include "client/lib/interrupt.h"

namespace nibble::cli {

enum class OutputFormat { kTable, kWide, kJson, kYaml, kName, kCsv, kJsonl };

struct Terminal {
  bool out_is_tty = false;
  bool err_is_tty = false;
  bool color = false;  // stdout is a terminal and NO_COLOR is unset
  int width = 100;     // columns
};
Terminal DetectTerminal();

class CliContext {
 public:
  CliContext(std::ostream& out_stream, std::ostream& err_stream, Interrupt& signal,
             const Terminal& where)
      : out(out_stream), err(err_stream), interrupt(signal), terminal(where) {}

  std::ostream& out;
  std::ostream& err;
  Interrupt& interrupt;
  Terminal terminal;
  ConnectionFlags connection;
  OutputFormat output = OutputFormat::kTable;
  bool headers = true;

  // Resolves the flags and connects on first use.
  Result<Client*> client();

  // Prints "nibble: message" with the server's field violations and returns the exit code.
  int Fail(const Status& status);
  // As Fail for a rejected spec: INVALID_ARGUMENT becomes kExitSpecRejected.
  int FailSpec(const Status& status);
  // A line for people, on stderr.
  void Note(std::string_view text);

  // Prints json or yaml as asked; false when the format is for people (nothing printed).
  bool PrintStructured(const Json& json);

 private:
  std::unique_ptr<Client> client_;
};

// The user as shown in USER columns and events: $USER, else the account's name, else "unknown".
std::string CurrentUser();

}  // namespace nibble::cli
