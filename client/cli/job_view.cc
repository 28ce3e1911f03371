// SPDX-License-Identifier: Apache-2.0
#include "client/cli/job_view.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"
#include "client/cli/job_text.h"
#include "client/cli/screen.h"
#include "client/lib/proto_json.h"
#include "client/lib/quantities.h"

namespace nibble::cli {
namespace {

constexpr int kCurveHeight = 10;
constexpr int kMaxCurveWidth = 90;
constexpr int kLabelColumns = 10;  // y labels and axis of DrawCurve
constexpr int kBarWidth = 24;

Color StateColor(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_RUNNING:
    case v1::JOB_STATE_SUCCEEDED:
      return Color::kGreen;
    case v1::JOB_STATE_FAILED:
    case v1::JOB_STATE_TIMED_OUT:
    case v1::JOB_STATE_REJECTED:
      return Color::kRed;
    default:
      return Color::kYellow;
  }
}

// One line per class; the count of non-finite groups only where there is one.
std::vector<std::string> HealthTable(const char* title,
                                     const std::map<std::string, v1::HealthPoint>& health) {
  if (health.empty()) return {};
  const bool finite = std::all_of(health.begin(), health.end(), [](const auto& entry) {
    return entry.second.nonfinite_amax() == 0;
  });
  std::vector<std::string> titles = {title,     ">STEP",       ">UNDERFLOW", ">SATURATION", ">SNR",
                                     ">COSINE", ">GRAD/NOISE", ">SCALE MIN", ">MAX"};
  if (!finite) titles.emplace_back(">NOT FINITE");
  Table table(titles);
  for (const auto& [name, point] : health) {
    const bool gradient = name.starts_with("gradient");
    std::vector<std::string> cells = {name,
                                      std::to_string(point.step()),
                                      StrFormat("%.2f %%", 100 * point.underflow_ratio()),
                                      StrFormat("%.3f %%", 100 * point.saturation_ratio()),
                                      StrFormat("%.1f dB", point.snr_db()),
                                      StrFormat("%.4f", point.cosine()),
                                      gradient ? StrFormat("%.2f", point.grad_noise_ratio()) : "",
                                      StrFormat("%.3g", point.scale_min()),
                                      StrFormat("%.3g", point.scale_max())};
    if (!finite) cells.push_back(std::to_string(point.nonfinite_amax()));
    table.AddRow(std::move(cells));
  }
  return table.Lines(true);
}

// Each value of `kept` becomes the worse of the two.
void KeepWorst(const v1::HealthPoint& point, v1::HealthPoint* kept) {
  kept->set_step(std::max(kept->step(), point.step()));
  kept->set_underflow_ratio(std::max(kept->underflow_ratio(), point.underflow_ratio()));
  kept->set_saturation_ratio(std::max(kept->saturation_ratio(), point.saturation_ratio()));
  kept->set_snr_db(std::min(kept->snr_db(), point.snr_db()));
  kept->set_cosine(std::min(kept->cosine(), point.cosine()));
  kept->set_grad_noise_ratio(std::min(kept->grad_noise_ratio(), point.grad_noise_ratio()));
  kept->set_scale_min(std::min(kept->scale_min(), point.scale_min()));
  kept->set_scale_max(std::max(kept->scale_max(), point.scale_max()));
  kept->set_nonfinite_amax(kept->nonfinite_amax() + point.nonfinite_amax());
}

std::vector<CurvePoint> Points(const std::map<int64_t, double>& values) {
  std::vector<CurvePoint> points;
  for (const auto& [step, value] : values) points.push_back({static_cast<double>(step), value});
  return points;
}

}  // namespace

void JobView::Apply(const v1::WatchJobResponse& message) {
  if (message.has_job()) job_ = message.job();
  for (const v1::MetricRecord& record : message.records()) ApplyRecord(record);
}

void JobView::ApplyRecord(const v1::MetricRecord& record) {
  if (record.rank() != 0 || record.attempt() < attempt_) return;
  const v1::JournalRecord& event = record.record();
  if (record.attempt() > attempt_) {
    attempt_ = record.attempt();
    newest_.reset();
  }
  switch (event.event_case()) {
    case v1::JournalRecord::kStart:
      steps_total_ = event.start().steps_total();
      // What the earlier attempt did after its last checkpoint is trained again.
      losses_.erase(losses_.upper_bound(event.start().resumed_from_step()), losses_.end());
      validation_.erase(validation_.upper_bound(event.start().resumed_from_step()),
                        validation_.end());
      break;
    case v1::JournalRecord::kStep:
      newest_ = event.step();
      losses_[event.step().step()] = event.step().loss();
      if (losses_.size() > kMaxCurvePoints) {
        bool drop = false;
        std::erase_if(losses_, [&drop](const auto&) { return drop = !drop; });
      }
      break;
    case v1::JournalRecord::kValidation:
      validation_[event.validation().step()] = event.validation().loss();
      break;
    case v1::JournalRecord::kHealth:
      health_[event.health().tensor_class()] = event.health();
      break;
    case v1::JournalRecord::kMemory:
      for (const auto& [name, bytes] : event.memory().bytes()) memory_bytes_[name] = bytes;
      break;
    default:
      break;
  }
}

bool JobView::ended() const { return IsTerminal(job_.state()); }

int64_t JobView::step() const {
  return newest_.has_value() ? newest_->step() : job_.progress().step();
}

int64_t JobView::steps_total() const {
  if (job_.progress().steps_total() > 0) return job_.progress().steps_total();
  return steps_total_ > 0 ? steps_total_ : job_.spec().schedule().steps();
}

double JobView::tokens_per_second() const {
  return newest_.has_value() ? newest_->tokens_per_second() : job_.progress().tokens_per_second();
}

std::string JobView::HeaderLine(const Terminal& terminal) const {
  std::string line = Paint(terminal, StateColor(job_.state()), JobStateName(job_.state())) + "  " +
                     job_.spec().metadata().name() + "  " + job_.id() + "  recipe " +
                     job_.spec().precision().recipe();
  if (job_.attempts_size() > 0) {
    const v1::Attempt& attempt = job_.attempts(job_.attempts_size() - 1);
    line += "  on " + attempt.worker_id();
    if (attempt.number() > 1) line += StrFormat("  attempt %d", attempt.number());
  }
  if (!job_.reason().empty()) line += "  " + job_.reason();
  return line;
}

std::string JobView::ProgressLine(int bar_width) const {
  const int64_t total = steps_total(), done = step();
  const double fraction = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
  std::string line =
      StrFormat("step %lld/%lld ", static_cast<long long>(done), static_cast<long long>(total));
  if (bar_width > 0) line += "▕" + ProgressBar(fraction, bar_width) + "▏ ";
  line += StrFormat("%3.0f %%", 100 * fraction);
  if (!losses_.empty()) line += "  loss " + LossText(losses_.rbegin()->second);
  if (!validation_.empty()) line += "  val " + LossText(validation_.rbegin()->second);
  if (tokens_per_second() > 0) line += "  " + FormatCount(tokens_per_second()) + " tok/s";
  if (newest_.has_value() && !ended() && newest_->tokens_per_second() > 0 && total > done) {
    line += "  ETA " + FormatAge(newest_->step_seconds() * static_cast<double>(total - done));
  }
  return line;
}

std::vector<std::string> JobView::HealthLines() const {
  return HealthTable("QUANTIZATION HEALTH", health_);
}

std::vector<std::string> JobView::WorstHealthLines() const {
  std::map<std::string, v1::HealthPoint> worst;
  for (const auto& [name, point] : health_) {
    const std::string part = name.substr(0, name.rfind('_'));
    const auto [entry, added] = worst.try_emplace(part, point);
    if (!added) KeepWorst(point, &entry->second);
  }
  return HealthTable("WORST QUANTIZATION", worst);
}

std::vector<std::string> JobView::Render(const Terminal& terminal) const {
  std::vector<std::string> lines = {HeaderLine(terminal), ProgressLine(kBarWidth)};
  if (losses_.empty() && validation_.empty()) {
    if (!job_.message().empty()) lines.push_back(job_.message());
    return lines;
  }
  CurveOptions options;
  options.width = std::clamp(terminal.width - kLabelColumns - 1, 20, kMaxCurveWidth);
  options.height = kCurveHeight;
  options.x_min = 0;
  options.x_max = static_cast<double>(std::max<int64_t>(steps_total(), 1));
  options.x_label = "step";
  lines.push_back("loss (o = validation)");
  for (std::string& line : DrawCurve(Points(losses_), Points(validation_), options)) {
    lines.push_back(std::move(line));
  }
  for (std::string& line : WorstHealthLines()) lines.push_back(std::move(line));
  return lines;
}

}  // namespace nibble::cli
