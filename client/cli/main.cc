// SPDX-License-Identifier: Apache-2.0
//
// nibble: the command line of the service. docs/reference/cli.md lists every subcommand.
#include <iostream>

#include "client/cli/command_line.h"

int main(int argc, char** argv) {
  nibble::Interrupt interrupt;
  nibble::SignalInterrupt signals(interrupt);
  nibble::cli::CliContext context(std::cout, std::cerr, interrupt, nibble::cli::DetectTerminal());
  return nibble::cli::RunCommandLine({argv + 1, argv + argc}, context);
}
