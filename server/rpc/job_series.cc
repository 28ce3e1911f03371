// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/job_series.h"

#include <algorithm>
#include <array>
#include <utility>

namespace nibble::rpc {
namespace {

using Families = std::vector<prometheus::MetricFamily>;
using Labels = std::vector<std::pair<std::string, std::string>>;

// Families in the order they were first named, each with its help text.
class FamilySet {
 public:
  void Gauge(const char* name, const char* help, const Labels& labels, double value) {
    Metric(name, help, prometheus::MetricType::Gauge, labels).gauge.value = value;
  }
  void Counter(const char* name, const char* help, const Labels& labels, double value) {
    Metric(name, help, prometheus::MetricType::Counter, labels).counter.value = value;
  }
  void MoveTo(Families& families) {
    std::move(families_.begin(), families_.end(), std::back_inserter(families));
  }

 private:
  prometheus::ClientMetric& Metric(const char* name, const char* help, prometheus::MetricType type,
                                   const Labels& labels) {
    const auto [found, added] = index_.try_emplace(name, families_.size());
    if (added) {
      prometheus::MetricFamily& family = families_.emplace_back();
      family.name = name;
      family.help = help;
      family.type = type;
    }
    prometheus::ClientMetric& metric = families_[found->second].metric.emplace_back();
    for (const auto& [key, value] : labels) {
      prometheus::ClientMetric::Label label;
      label.name = key;
      label.value = value;
      metric.label.push_back(std::move(label));
    }
    return metric;
  }

  Families families_;
  std::map<std::string, size_t> index_;
};

void AddTraining(const LiveValues& live, const Labels& job, FamilySet& set) {
  const v1::Progress& progress = live.progress;
  if (live.has_step) {
    set.Gauge("nibble_train_step", "Last finished step.", job,
              static_cast<double>(progress.step()));
    set.Gauge("nibble_train_loss", "Training loss of the last step, nats per token.", job,
              progress.loss());
    set.Gauge("nibble_train_learning_rate", "Learning rate of the last step.", job,
              progress.learning_rate());
    set.Gauge("nibble_train_grad_norm", "Global gradient norm before clipping.", job,
              progress.grad_norm());
    set.Counter("nibble_train_tokens_total",
                "Tokens of every step accepted since the controller started.", job,
                static_cast<double>(live.tokens_counted));
    set.Gauge("nibble_train_tokens_per_second", "Tokens of the last step by its time.", job,
              progress.tokens_per_second());
    set.Gauge("nibble_train_step_seconds", "Wall time of the last step.", job, live.step_seconds);
  }
  if (live.has_validation) {
    set.Gauge("nibble_train_validation_loss", "Last validation loss, nats per token.", job,
              progress.validation_loss());
  }
  static const std::array<std::string, 7> kMemoryClasses = {
      "weights", "gradients", "optimizer", "activations", "quantized", "host", "peak_rss"};
  for (const std::string& name : kMemoryClasses) {
    const auto found = progress.memory_bytes().find(name);
    if (found == progress.memory_bytes().end()) continue;
    Labels labels = job;
    labels.emplace_back("class", name);
    set.Gauge("nibble_memory_bytes", "Measured memory of the trainer.", labels,
              static_cast<double>(found->second));
  }
}

void AddCheckpoints(const JobRow& row, const LiveValues* live, int64_t wall_ms, const Labels& job,
                    FamilySet& set) {
  int64_t step = row.checkpoint_step;
  if (live != nullptr) step = std::max(step, live->checkpoint_step);
  set.Gauge("nibble_checkpoint_step", "Step of the last complete checkpoint.", job,
            static_cast<double>(step));
  set.Gauge("nibble_checkpoint_interval_steps", "Steps between checkpoints as asked.", job,
            static_cast<double>(row.checkpoint_interval_steps));
  if (live == nullptr || live->checkpoint_time_ms == 0) return;
  set.Gauge("nibble_checkpoint_age_seconds", "Time since the last complete checkpoint.", job,
            static_cast<double>(std::max<int64_t>(0, wall_ms - live->checkpoint_time_ms)) / 1e3);
  set.Gauge("nibble_checkpoint_save_seconds", "How long the last save took.", job,
            live->checkpoint_save_seconds);
  set.Gauge("nibble_checkpoint_size_bytes", "Size of the last checkpoint on disk.", job,
            static_cast<double>(live->checkpoint_bytes));
}

void AddHealth(const LiveValues& live, const Labels& job, FamilySet& set) {
  for (const auto& [name, point] : live.health) {
    Labels labels = job;
    labels.emplace_back("tensor_class", name);
    set.Gauge("nibble_quant_underflow_ratio", "Share of non-zero inputs that became zero.", labels,
              point.underflow_ratio());
    set.Gauge("nibble_quant_saturation_ratio", "Share of inputs beyond the largest code.", labels,
              point.saturation_ratio());
    set.Gauge("nibble_quant_mse", "Mean squared error of the quantized tensor.", labels,
              point.mse());
    set.Gauge("nibble_quant_snr_db", "Signal to quantization noise in decibel.", labels,
              point.snr_db());
    set.Gauge("nibble_quant_cosine_ratio", "Cosine between a tensor and its quantized form.",
              labels, point.cosine());
    set.Gauge("nibble_quant_scale_min", "Smallest multiplier before rounding.", labels,
              point.scale_min());
    set.Gauge("nibble_quant_scale_max", "Largest multiplier before rounding.", labels,
              point.scale_max());
    set.Gauge("nibble_quant_nonfinite_groups", "Scale groups whose largest value was not finite.",
              labels, static_cast<double>(point.nonfinite_amax()));
    if (point.grad_noise_ratio() <= 0) continue;
    set.Gauge("nibble_quant_grad_noise_ratio",
              "Norm of the gradient by the norm of its quantization noise.", labels,
              point.grad_noise_ratio());
  }
}

}  // namespace

void AddClusterSeries(const Snapshot& snapshot, const std::map<std::string, WorkerFacts>& workers,
                      int64_t wall_ms, int64_t steady_ms, Families& families) {
  FamilySet set;
  for (const auto& [key, count] : snapshot.jobs) {
    set.Gauge("nibble_jobs", "Jobs known to the controller.",
              {{"queue", key.first}, {"state", std::string(core::Name(key.second))}}, count);
  }
  // A queue where nothing waits reads 0; absence would look like a broken exporter.
  std::map<std::string, double> head_waits;
  for (const auto& [key, count] : snapshot.jobs) head_waits[key.first] = 0;
  for (const auto& [key, count] : snapshot.devices) head_waits[std::get<0>(key)] = 0;
  for (const auto& [queue, since_ms] : snapshot.queue_head_since_ms) {
    head_waits[queue] = static_cast<double>(std::max<int64_t>(0, wall_ms - since_ms)) / 1e3;
  }
  for (const auto& [queue, seconds] : head_waits) {
    set.Gauge("nibble_queue_head_wait_seconds",
              "How long the first job of the queue that may run has waited; 0 when none waits.",
              {{"queue", queue}}, seconds);
  }
  for (const auto& [worker, up] : snapshot.workers_up) {
    set.Gauge("nibble_worker_up", "1 while the lease is in time.", {{"worker", worker}},
              up ? 1 : 0);
  }
  for (const auto& [worker, facts] : workers) {
    set.Gauge(
        "nibble_worker_heartbeat_age_seconds", "Time since the last heartbeat arrived.",
        {{"worker", worker}},
        static_cast<double>(std::max<int64_t>(0, steady_ms - facts.last_heard_steady_ms)) / 1e3);
  }
  for (const auto& [key, count] : snapshot.devices) {
    set.Gauge("nibble_devices", "Device slots.",
              {{"pool", std::get<0>(key)}, {"kind", std::get<1>(key)}, {"state", std::get<2>(key)}},
              count);
  }
  set.MoveTo(families);
}

void AddJobSeries(const Snapshot& snapshot, const LiveJobs& live, int64_t wall_ms,
                  int64_t steady_ms, Families& families) {
  FamilySet set;
  for (const JobRow& row : snapshot.rows) {
    const Labels job = {{"job_id", row.id}};
    set.Gauge("nibble_job_info", "Always 1; the labels describe the job.",
              {{"job_id", row.id},
               {"name", row.name},
               {"user", row.user},
               {"queue", row.queue},
               {"recipe", row.recipe},
               {"project", row.project}},
              1);
    set.Gauge("nibble_job_attempt", "Number of the current or last attempt.", job, row.attempt);
    set.Gauge("nibble_job_stall_timeout_seconds", "Longest time without a step as asked.", job,
              row.stall_timeout_seconds);
    set.Gauge("nibble_train_steps_target", "Steps after which the job is done.", job,
              static_cast<double>(row.steps_target));
    const std::optional<LiveValues> values = live.Find(row.id);
    AddCheckpoints(row, values.has_value() ? &*values : nullptr, wall_ms, job, set);
    if (!values.has_value()) continue;
    if (row.running) {
      set.Gauge(
          "nibble_train_progress_age_seconds", "Time since the last new step arrived.", job,
          static_cast<double>(std::max<int64_t>(0, steady_ms - values->last_step_steady_ms)) / 1e3);
    }
    AddTraining(*values, job, set);
    AddHealth(*values, job, set);
  }
  set.MoveTo(families);
}

void AddDiskSeries(double free_bytes, Families& families) {
  FamilySet set;
  set.Gauge("nibble_state_disk_free_bytes", "Free space where the state directory lies.", {},
            free_bytes);
  set.MoveTo(families);
}

}  // namespace nibble::rpc
