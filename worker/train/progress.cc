// SPDX-License-Identifier: Apache-2.0
#include "worker/train/progress.h"

#include <unistd.h>

#include <cmath>

#include "base/strings.h"

namespace nibble {

void ProgressPrinter::Print(const std::string& line) const {
  const std::string text = line + "\n";
  // Nobody may be reading any more; the run goes on.
  [[maybe_unused]] const ssize_t written = ::write(fd_, text.data(), text.size());
  if (sink_ != nullptr) sink_(line);
}

void ProgressPrinter::Start(const StartRecord& record, const std::string& details) {
  std::string paths;
  for (const auto& [gemm, path] : record.paths) paths += " " + gemm + "=" + path;
  Print(StrFormat("%s parameters, recipe %s, %lld steps of %lld tokens",
                  FormatCount(static_cast<double>(record.parameters)).c_str(),
                  record.recipe.c_str(), static_cast<long long>(record.steps_total),
                  static_cast<long long>(record.tokens_per_step)));
  Print(details);
  Print("paths:" + paths);
  if (record.resumed_from_step > 0) {
    Print(StrFormat("resumed after step %lld", static_cast<long long>(record.resumed_from_step)));
  }
}

void ProgressPrinter::Step(const StepRecord& record, int64_t steps_total) {
  seconds_ += record.step_seconds;
  ++steps_;
  const int64_t now = clock_.SteadyMillis();
  const bool last = record.step == steps_total;
  if (printed_ms_ >= 0 && now - printed_ms_ < interval_ms_ && !last) return;
  printed_ms_ = now;
  const double mean_seconds = seconds_ / static_cast<double>(steps_);
  const double left = static_cast<double>(steps_total - record.step) * mean_seconds;
  Print(StrFormat("step %6lld/%lld  loss %.4f  grad norm %.3f  lr %.2e  %.0f tokens/s  %s left",
                  static_cast<long long>(record.step), static_cast<long long>(steps_total),
                  record.loss, record.grad_norm, record.learning_rate, record.tokens_per_second,
                  FormatDuration(left).c_str()));
}

void ProgressPrinter::Validation(const ValidationRecord& record) {
  Print(StrFormat("step %6lld  validation loss %.4f  perplexity %.2f",
                  static_cast<long long>(record.step), record.loss, std::exp(record.loss)));
}

void ProgressPrinter::Checkpoint(const CheckpointRecord& record) {
  Print(StrFormat("step %6lld  saved %s (%s in %.2f s%s)", static_cast<long long>(record.step),
                  record.path.c_str(), FormatBytes(static_cast<double>(record.bytes)).c_str(),
                  record.save_seconds, record.best ? ", best so far" : ""));
}

void ProgressPrinter::Memory(const MemoryRecord& record) {
  std::string text = "memory:";
  for (const auto& [name, bytes] : record.bytes) {
    text += " " + name + " " + FormatBytes(static_cast<double>(bytes));
  }
  Print(text);
}

void ProgressPrinter::End(const EndRecord& record) {
  Print(record.reason + (record.message.empty() ? "" : ": " + record.message));
}

}  // namespace nibble
