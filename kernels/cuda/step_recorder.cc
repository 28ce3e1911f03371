// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/step_recorder.h"

namespace nibble::cuda {

StepRecorder::~StepRecorder() { Forget(); }

void StepRecorder::Forget() {
  for (void* const piece : pieces_) api_.DestroyExecutable(piece);
  pieces_.clear();
}

Status StepRecorder::BeginStep() {
  if (in_step_) return FailedPreconditionError("a step begins inside a step");
  in_step_ = true;
  next_ = 0;
  rebuilt_ = records_ = false;
  if (warm_steps_ < kWarmUpSteps) {
    ++warm_steps_;
    return OkStatus();
  }
  records_ = !gave_up_;
  return Resume();
}

Status StepRecorder::EndStep() {
  if (!in_step_) return OkStatus();
  in_step_ = false;
  const bool recorded = records_;
  RETURN_IF_ERROR(Pause());
  records_ = false;
  if (!recorded) return OkStatus();
  rebuilt_steps_ = rebuilt_ ? rebuilt_steps_ + 1 : 0;
  if (rebuilt_steps_ < kMostRebuiltSteps) return OkStatus();
  gave_up_ = true;
  Forget();
  return OkStatus();
}

Status StepRecorder::Pause() {
  if (!recording_) return OkStatus();
  recording_ = false;
  const Result<GraphApi::Graph> ended = api_.End();
  if (!ended.ok()) {
    // What was recorded is lost: the caller's step fails, later ones do without.
    gave_up_ = true;
    records_ = false;
    return ended.status();
  }
  const GraphApi::Graph graph = *ended;
  const Status launched = graph.nodes > 0 ? LaunchPiece(graph) : OkStatus();
  api_.DestroyGraph(graph);
  return launched;
}

Status StepRecorder::Resume() {
  if (!in_step_ || !records_ || recording_) return OkStatus();
  recording_ = api_.Begin().ok();
  // A device that cannot record runs launch by launch.
  if (!recording_) gave_up_ = true;
  records_ = recording_;
  return OkStatus();
}

Status StepRecorder::LaunchPiece(const GraphApi::Graph& graph) {
  const size_t piece = next_++;
  if (piece < pieces_.size() && api_.Update(pieces_[piece], graph)) {
    ++launched_;
    return api_.Launch(pieces_[piece]);
  }
  ASSIGN_OR_RETURN(void* const executable, api_.Instantiate(graph));
  rebuilt_ = true;
  ++instantiated_;
  if (piece < pieces_.size()) {
    api_.DestroyExecutable(pieces_[piece]);
    pieces_[piece] = executable;
  } else {
    pieces_.push_back(executable);
  }
  ++launched_;
  return api_.Launch(executable);
}

}  // namespace nibble::cuda
