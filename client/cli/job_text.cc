// SPDX-License-Identifier: Apache-2.0
#include "client/cli/job_text.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/strings.h"
#include "client/lib/proto_json.h"
#include "client/lib/quantities.h"
#include "worker/spec/feature_text.h"

namespace nibble::cli {
namespace {

int64_t ToMillis(const google::protobuf::Timestamp& time) {
  return time.seconds() * 1000 + time.nanos() / 1'000'000;
}

// Slots the job holds or wants.
int SlotCount(const v1::JobSpec& spec) {
  const v1::Resources& resources = spec.resources();
  return std::max(1, resources.nodes()) * std::max(1, resources.slots_per_node());
}

const v1::Attempt* LastAttempt(const v1::Job& job) {
  return job.attempts_size() == 0 ? nullptr : &job.attempts(job.attempts_size() - 1);
}

std::string AgeCell(const v1::Job& job, int64_t now_ms) {
  if (!job.has_submit_time()) return "";
  return FormatAge(SecondsSince(job.submit_time(), now_ms));
}

}  // namespace

double SecondsSince(const google::protobuf::Timestamp& time, int64_t now_ms) {
  return static_cast<double>(now_ms - ToMillis(time)) / 1000;
}

std::string TimeText(const google::protobuf::Timestamp& time) {
  return time.seconds() == 0 ? "" : FormatUtc(ToMillis(time));
}

std::string LossText(double loss) {
  if (std::isnan(loss)) return "NaN";
  return StrFormat("%.4f", loss);
}

std::string StepText(const v1::Progress& progress) {
  if (progress.steps_total() == 0) return "";
  return StrFormat("%lld/%lld", static_cast<long long>(progress.step()),
                   static_cast<long long>(progress.steps_total()));
}

std::string EtaText(const v1::Job& job) {
  if (IsTerminal(job.state()) || job.progress().eta_seconds() <= 0) return "";
  return FormatAge(job.progress().eta_seconds());
}

Table JobTable(const std::vector<v1::Job>& jobs, bool wide, int64_t now_ms) {
  std::vector<std::string> columns = {"ID",    "NAME",      "USER",  "QUEUE", ">PRI",
                                      "STATE", ">GPUS",     ">STEP", ">LOSS", ">TOK/S",
                                      ">ETA",  ">RESTARTS", ">AGE",  "REASON"};
  if (wide) columns.insert(columns.end(), {"NODES", ">ATTEMPT", ">CKPT", "RECIPE"});
  Table table(columns);
  for (const v1::Job& job : jobs) {
    const v1::Progress& progress = job.progress();
    const bool stepped = progress.step() > 0;
    std::vector<std::string> row = {
        job.id(),
        job.spec().metadata().name(),
        job.user(),
        job.spec().queue(),
        std::to_string(job.spec().priority()),
        JobStateName(job.state()),
        std::to_string(SlotCount(job.spec())),
        StepText(progress),
        stepped ? LossText(progress.loss()) : "",
        stepped ? FormatCount(std::round(progress.tokens_per_second())) : "",
        EtaText(job),
        std::to_string(std::max(0, job.attempts_size() - 1)),
        AgeCell(job, now_ms),
        job.reason()};
    if (wide) {
      const v1::Attempt* attempt = LastAttempt(job);
      const bool placed = attempt != nullptr && !IsTerminal(job.state());
      row.insert(row.end(), {placed ? attempt->worker_id() : "",
                             attempt == nullptr ? "" : std::to_string(attempt->number()),
                             job.checkpoint_step() > 0 ? std::to_string(job.checkpoint_step()) : "",
                             job.spec().precision().recipe()});
    }
    table.AddRow(std::move(row));
  }
  return table;
}

Table NodeTable(const std::vector<v1::Node>& nodes, bool wide, int64_t now_ms) {
  std::vector<std::string> columns = {"ID",    "HOST",    "POOL",     "STATE", ">DEVICES",
                                      ">FREE", ">MEMORY", "FEATURES", "JOBS",  ">HEARTBEAT"};
  if (wide) columns.insert(columns.end(), {"VERSION", ">GFLOP/S", ">THREADS", "DRAIN"});
  Table table(columns);
  for (const v1::Node& node : nodes) {
    int free = 0, threads = 0;
    double memory = 0, gflops = 0;
    std::set<std::string> features;
    for (const v1::Device& device : node.devices()) {
      free += device.job_id().empty();
      memory += static_cast<double>(device.memory_bytes());
      gflops += device.gflops();
      threads += device.threads();
      features.insert(device.features().begin(), device.features().end());
    }
    std::vector<std::string> row = {
        node.worker_id(),
        node.host(),
        node.pool(),
        node.state(),
        std::to_string(node.devices_size()),
        std::to_string(free),
        FormatBytes(memory),
        FeatureText({features.begin(), features.end()}),
        StrJoin({node.running().begin(), node.running().end()}, ","),
        node.has_last_heartbeat() ? FormatAge(SecondsSince(node.last_heartbeat(), now_ms)) : ""};
    if (wide) {
      const std::string drain =
          node.drain_reason().empty() ? "" : node.drain_reason() + " (" + node.drain_actor() + ")";
      row.insert(row.end(),
                 {node.version(), StrFormat("%.1f", gflops), std::to_string(threads), drain});
    }
    table.AddRow(std::move(row));
  }
  return table;
}

std::vector<std::pair<std::string, int64_t>> OrderedMemory(const MemoryClasses& bytes) {
  static const std::vector<std::string> kFirst = {"weights", "gradients", "optimizer",
                                                  "activations", "quantized"};
  std::vector<std::pair<std::string, int64_t>> ordered;
  for (const std::string& name : kFirst) {
    if (const auto found = bytes.find(name); found != bytes.end()) ordered.push_back(*found);
  }
  int64_t total = 0;
  for (const auto& entry : bytes) {
    if (entry.first == "total" || entry.first == "peak_rss" || entry.first == "host") continue;
    total += entry.second;
    if (std::find(kFirst.begin(), kFirst.end(), entry.first) == kFirst.end()) {
      ordered.push_back(entry);
    }
  }
  if (ordered.empty()) return ordered;
  const auto given = bytes.find("total");
  ordered.emplace_back("total", given == bytes.end() ? total : given->second);
  for (const char* const apart : {"host", "peak_rss"}) {
    if (const auto found = bytes.find(apart); found != bytes.end()) ordered.push_back(*found);
  }
  return ordered;
}

std::string MemoryText(const google::protobuf::Map<std::string, int64_t>& bytes) {
  std::vector<std::string> parts;
  for (const auto& [name, size] : OrderedMemory({bytes.begin(), bytes.end()})) {
    parts.push_back(name + " " + FormatBytes(static_cast<double>(size)));
  }
  return StrJoin(parts, ", ");
}

}  // namespace nibble::cli
