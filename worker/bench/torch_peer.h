// SPDX-License-Identifier: Apache-2.0
//
// TorchPeer: a training step of the same model in PyTorch, in a child process that runs one step
// per request (peers/llama_step.py --serve), so that it can take turns with ours.
// Thread-safety: one thread. Ownership: owns the child, which ends with it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "base/status.h"
#include "worker/bench/measure.h"
#include "worker/spec/run_config.h"

namespace nibble::bench {

class TorchPeer {
 public:
  // UNIMPLEMENTED when no Python here has PyTorch, or the script is not where this build put it.
  static Result<std::unique_ptr<TorchPeer>> Start(const ModelConfig& model, int64_t batch,
                                                  int64_t seq_len, int threads);
  ~TorchPeer();
  TorchPeer(const TorchPeer&) = delete;
  TorchPeer& operator=(const TorchPeer&) = delete;

  // One step by the child's own clocks.
  Result<Sample> Step();
  const std::string& version() const { return version_; }

 private:
  TorchPeer() = default;
  Result<std::string> ReadLine();

  pid_t pid_ = -1;
  std::FILE* requests_ = nullptr;
  std::FILE* answers_ = nullptr;
  std::string version_;
};

}  // namespace nibble::bench
