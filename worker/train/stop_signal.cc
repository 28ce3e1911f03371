// SPDX-License-Identifier: Apache-2.0
#include "worker/train/stop_signal.h"

#include <csignal>
#include <initializer_list>

namespace nibble {
namespace {

volatile std::sig_atomic_t stop_signal = 0;

void OnSignal(int number) { stop_signal = number; }

}  // namespace

void StopSignal::Install() {
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
    struct sigaction action = {};
    action.sa_handler = OnSignal;
    action.sa_flags = number == SIGINT ? static_cast<int>(SA_RESETHAND) : SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

bool StopSignal::Requested() { return stop_signal != 0; }

const char* StopSignal::Name() {
  switch (stop_signal) {
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "";
  }
}

}  // namespace nibble
