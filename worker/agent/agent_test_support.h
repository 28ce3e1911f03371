// SPDX-License-Identifier: Apache-2.0
//
// What the worker's tests share: a state folder with the fake trainer, requests, and waiting for
// something to become true (never for a fixed time). One thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>

#include "base/files.h"
#include "base/process.h"
#include "worker/agent/messages.h"
#include "worker/agent/run_folder.h"

namespace nibble::agent {

inline constexpr std::chrono::seconds kTestPatience{60};

// Polls `condition` until it holds; false when it does not in kTestPatience.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kTestPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

inline std::string FakeTrainer() {
  return std::string(NIBBLE_BINARY_DIR) + "/worker/agent/agent_fake_trainer";
}

class StateDir {
 public:
  StateDir() : path_(MakeTempDirectory("nibble-worker").value()) {}
  ~StateDir() { EXPECT_TRUE(RemoveTree(path_).ok()); }
  StateDir(const StateDir&) = delete;
  StateDir& operator=(const StateDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

inline StartRequest StartOf(const std::string& job, int attempt, int64_t epoch, int device,
                            std::map<std::string, std::string> env) {
  StartRequest request;
  request.key = {job, attempt, epoch};
  request.run_json = R"({"apiVersion":"nibble/v1","metadata":{"name":"test"}})";
  request.devices = {device};
  request.env = std::move(env);
  return request;
}

inline bool ProcessAlive(pid_t pid) { return ProcessStartTicks(pid).ok(); }

}  // namespace nibble::agent
