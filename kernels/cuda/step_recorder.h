// SPDX-License-Identifier: Apache-2.0
//
// StepRecorder: the operations of a training step gathered into command graphs.
//
// Purpose: a step is thousands of short launches. Recorded, they reach the device as a few graphs;
// between steps only their arguments change (random counters, learning rate), so each step is
// recorded anew and the graph of the step before is updated in place. Where the host needs the
// device (a copy, a wait), the piece recorded so far is launched and a new one begins: results and
// their order are those of single launches, whatever a step does. Steps that never repeat
// themselves end the recording for good. Thread-safety: thread-compatible. Ownership: owns the
// graphs it instantiated; borrows the api.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace nibble::cuda {

// What the recorder asks of a device; the stream is the implementation's.
class GraphApi {
 public:
  struct Graph {
    void* handle = nullptr;
    int64_t nodes = 0;
  };
  virtual ~GraphApi() = default;
  virtual Status Begin() = 0;  // launches are gathered from now on
  virtual Result<Graph> End() = 0;
  virtual Result<void*> Instantiate(const Graph& graph) = 0;
  // False when the graph has another shape; the executable is then unchanged or useless.
  virtual bool Update(void* executable, const Graph& graph) = 0;
  virtual Status Launch(void* executable) = 0;
  virtual void DestroyGraph(const Graph& graph) = 0;
  virtual void DestroyExecutable(void* executable) = 0;
};

class StepRecorder {
 public:
  // Steps that run launch by launch first: workspaces grow, libraries load their kernels.
  static constexpr int kWarmUpSteps = 2;
  // Steps in a row that instantiate graphs anew before the recorder gives up.
  static constexpr int kMostRebuiltSteps = 4;

  explicit StepRecorder(GraphApi* api) : api_(*api) {}
  ~StepRecorder();
  StepRecorder(const StepRecorder&) = delete;
  StepRecorder& operator=(const StepRecorder&) = delete;

  Status BeginStep();
  Status EndStep();
  // Around work of the host with the device: launches what was recorded; goes on recording.
  Status Pause();
  Status Resume();

  bool recording() const { return recording_; }
  bool gave_up() const { return gave_up_; }
  int64_t launched() const { return launched_; }          // graphs, since construction
  int64_t instantiated() const { return instantiated_; }  // of them built, not updated

 private:
  Status LaunchPiece(const GraphApi::Graph& graph);
  void Forget();

  GraphApi& api_;
  std::vector<void*> pieces_;  // executables in the order of the step
  size_t next_ = 0;            // piece of this step
  int warm_steps_ = 0;
  int rebuilt_steps_ = 0;
  bool in_step_ = false;
  bool records_ = false;    // this step
  bool recording_ = false;  // at this moment
  bool rebuilt_ = false;    // in this step
  bool gave_up_ = false;
  int64_t launched_ = 0, instantiated_ = 0;
};

}  // namespace nibble::cuda
