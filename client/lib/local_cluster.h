// SPDX-License-Identifier: Apache-2.0
//
// LocalCluster: a controller and a worker on this machine, the same programs a cluster runs.
//
// Behind `nibble up`, `nibble quickstart` and tests. A program that dies is started again, at most
// kMaxRestarts times; then the cluster gives up and says so. Stop (and the destructor) ends both
// and every trainer, so nothing stays behind; if this process is killed, both programs get SIGTERM.
//
// Everything lives below the state directory: controller/, worker/, logs/, up.lock.
// Thread-safety: one thread; status() may be called from any. Ownership: owns both processes.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "client/lib/connection.h"
#include "client/lib/interrupt.h"

namespace nibble {

inline constexpr int kMaxRestarts = 5;  // of each program

struct LocalClusterOptions {
  std::string bin_dir;    // where the programs lie; "" = beside the running program
  std::string state_dir;  // made when missing
  int slots = 1;
  std::string listen = kDefaultServer;  // loopback; port 0 = any free one
  std::string http = kDefaultHttp;
  std::string pool;        // "" = the worker's default
  std::string token_file;  // "" = no token
  std::chrono::milliseconds ready_timeout{60'000};
  std::chrono::milliseconds stop_grace{60'000};  // for trainers to save
  std::function<void(const std::string&)> note;  // restarts and the like, for people; any thread
  std::function<void()> on_give_up;              // the cluster cannot go on; any thread
};

// Makes the folder when it is missing; its absolute path, free of links.
Result<std::string> MakeAbsoluteDirectory(const std::string& path);

class LocalCluster {
 public:
  // Returns when the controller answers and the worker is registered. NOT_FOUND: a program is
  // missing. FAILED_PRECONDITION: the state directory is in use. UNAVAILABLE: a program ended or is
  // not ready in time, with the end of its log. CANCELLED: interrupted.
  static Result<std::unique_ptr<LocalCluster>> Start(const LocalClusterOptions& options,
                                                     Interrupt& interrupt);
  ~LocalCluster();

  const std::string& server() const;        // host:port of the API
  const std::string& http_address() const;  // of /metrics
  const std::string& state_dir() const;
  ConnectionFlags connection() const;
  Status status() const;  // OK while both programs run or are being started again
  // Worker first (its trainers save), then the controller. A second interrupt shortens the wait.
  Status Stop();

 private:
  class Impl;
  explicit LocalCluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
