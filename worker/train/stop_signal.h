// SPDX-License-Identifier: Apache-2.0
//
// StopSignal: SIGTERM, SIGINT and SIGHUP become a flag that the training loop reads between steps.
// Thread-safety: Install once, before threads start; Requested from any thread.
#pragma once

namespace nibble {

class StopSignal {
 public:
  // Also ignores SIGPIPE (whoever reads stderr may go away) and SIGXFSZ (a file size limit is then
  // an error of write, as a full disk is). A second SIGINT ends the process at once.
  static void Install();
  static bool Requested();
  // "SIGTERM"; "" when none came.
  static const char* Name();
};

}  // namespace nibble
