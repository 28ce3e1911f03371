// SPDX-License-Identifier: Apache-2.0
//
// Data for the quickstart: corpus, tokenizer and token shards below one folder, made by nibble-data
// and used again while their inputs are the same. One thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "client/lib/interrupt.h"

namespace nibble::cli {

struct QuickstartData {
  std::string folder;             // everything below it
  std::string bin_dir;            // of nibble-data
  std::vector<std::string> text;  // the user's files; empty = Perl's documentation
  int vocab_size = 4096;
  std::function<void(const std::string&)> note;

  std::string corpus_path() const;
  std::string tokenizer_path() const;
  std::string tokens_path() const;  // what data.path of the spec names
};

// Makes what is missing. Errors carry the end of the tool's output.
Status PrepareQuickstartData(const QuickstartData& data, Interrupt& interrupt);

// Runs a program with --json and reads the object it prints; what it writes to stderr goes to
// `log_path`. CANCELLED when interrupted (the program is ended), INTERNAL with the log's end when
// it fails.
Result<Json> RunJsonTool(const std::vector<std::string>& argv, const std::string& log_path,
                         Interrupt& interrupt);

}  // namespace nibble::cli
