// SPDX-License-Identifier: Apache-2.0
//
// The scheduling half of a spec: what queue, how important, how many devices, how often again.
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/ids.h"
#include "base/strings.h"
#include "server/rpc/spec.h"

namespace nibble::rpc {
namespace {

constexpr int kMaxPriority = 1000;
constexpr int kMaxThreads = 1024;
constexpr int kMaxEnv = 128;
constexpr int64_t kMaxDurationSeconds = int64_t{366} * 86'400;
constexpr size_t kMaxLabelBytes = 63;

struct PriorityClass {
  const char* name;
  int priority;
};
constexpr std::array<PriorityClass, 4> kPriorityClasses = {
    {{"low", -100}, {"normal", 0}, {"high", 100}, {"urgent", 500}}};

void Add(std::vector<FieldError>& errors, std::string field, std::string description) {
  errors.push_back({std::move(field), std::move(description)});
}

void CheckName(const std::string& field, const std::string& value,
               std::vector<FieldError>& errors) {
  if (IsValidName(value)) return;
  Add(errors, field,
      (value.empty() ? "is missing" : "'" + value.substr(0, 80) + "' is not a name") +
          "; use 1 to 63 characters of a-z, 0-9 and '-', with a letter or digit at both ends");
}

void CheckHeader(const v1::JobSpec& spec, std::vector<FieldError>& errors) {
  if (spec.api_version() != "nibble/v1") {
    Add(errors, "apiVersion",
        "'" + spec.api_version() + "' is not known; this release reads nibble/v1");
  }
  if (spec.kind() != "TrainJob") {
    Add(errors, "kind", "'" + spec.kind() + "' is not known; write TrainJob");
  }
  CheckName("metadata.name", spec.metadata().name(), errors);
  if (!spec.metadata().project().empty()) {
    CheckName("metadata.project", spec.metadata().project(), errors);
  }
  if (spec.metadata().labels_size() > core::kMaxLabels) {
    Add(errors, "metadata.labels",
        StrFormat("%d labels; at most %d", spec.metadata().labels_size(), core::kMaxLabels));
  }
  for (const auto& [key, value] : spec.metadata().labels()) {
    if (key.empty() || key.size() > kMaxLabelBytes || value.size() > kMaxLabelBytes ||
        key.find_first_of("=, \t\n") != std::string::npos) {
      Add(errors, "metadata.labels." + key.substr(0, 80),
          StrFormat("a label is key: value of at most %zu characters each, the key without '=', "
                    "',' and spaces",
                    kMaxLabelBytes));
    }
  }
  if (!spec.queue().empty()) CheckName("queue", spec.queue(), errors);
}

void CheckPriority(const v1::JobSpec& spec, std::vector<FieldError>& errors) {
  if (std::abs(spec.priority()) > kMaxPriority) {
    Add(errors, "priority",
        StrFormat("%d is out of range; use -%d (last) to %d (first)", spec.priority(), kMaxPriority,
                  kMaxPriority));
  }
  if (spec.priority_class().empty()) return;
  const Result<int> known = PriorityOfClass(spec.priority_class());
  if (!known.ok()) {
    Add(errors, "priorityClass", known.status().message());
  } else if (spec.priority() != 0 && spec.priority() != *known) {
    Add(errors, "priorityClass",
        StrFormat("'%s' stands for %d, but priority says %d; give one of the two",
                  spec.priority_class().c_str(), *known, spec.priority()));
  }
}

void CheckResources(const v1::JobSpec& spec, std::vector<FieldError>& errors) {
  const v1::Resources& resources = spec.resources();
  const auto check_one = [&errors](const char* field, int value, const char* what) {
    if (value >= 0 && value <= 1) return;
    Add(errors, field,
        StrFormat("%d %s: this release trains on one device (it has no communicator between "
                  "ranks); use 1",
                  value, what));
  };
  check_one("resources.nodes", resources.nodes(), "nodes");
  check_one("resources.slotsPerNode", resources.slots_per_node(), "slots per node");
  static const std::vector<std::string> kDevices = {"any", "cpu", "cuda"};
  if (!resources.device().empty() &&
      std::find(kDevices.begin(), kDevices.end(), resources.device()) == kDevices.end()) {
    Add(errors, "resources.device",
        UnknownNameMessage("device kind", resources.device(), kDevices));
  }
  if (resources.memory_bytes() < 0) {
    Add(errors, "resources.memoryBytes",
        StrFormat("%lld is negative; give bytes, or 0 for the estimate",
                  static_cast<long long>(resources.memory_bytes())));
  }
  if (resources.threads() < 0 || resources.threads() > kMaxThreads) {
    Add(errors, "resources.threads",
        StrFormat("%d is out of range; use 1 to %d, or 0 for all of the slot", resources.threads(),
                  kMaxThreads));
  }
  for (const std::string& worker : spec.placement().exclude()) {
    CheckName("placement.exclude", worker, errors);
    if (worker == spec.placement().required()) {
      Add(errors, "placement.required", "'" + worker + "' is also excluded; remove it from one");
    }
  }
  if (!spec.placement().required().empty()) {
    CheckName("placement.required", spec.placement().required(), errors);
  }
}

void CheckTimesAndRetry(const v1::JobSpec& spec, std::vector<FieldError>& errors) {
  const auto duration = [&errors](const char* field, bool given,
                                  const google::protobuf::Duration& value) {
    if (given && (value.seconds() < 0 || value.nanos() < 0 || value.nanos() > 999'999'999 ||
                  value.seconds() > kMaxDurationSeconds)) {
      Add(errors, field,
          StrFormat("%lld s is out of range; use 0 to %lld s (366 days)",
                    static_cast<long long>(value.seconds()),
                    static_cast<long long>(kMaxDurationSeconds)));
    }
  };
  duration("timeLimit", spec.has_time_limit(), spec.time_limit());
  duration("startTimeout", spec.has_start_timeout(), spec.start_timeout());
  duration("stallTimeout", spec.has_stall_timeout(), spec.stall_timeout());
  const auto retries = [&errors](const char* field, int value) {
    if (value < 0 || value > core::kMaxRetries) {
      Add(errors, field, StrFormat("%d is out of range; use 0 to %d", value, core::kMaxRetries));
    }
  };
  retries("retry.user", spec.retry().user());
  retries("retry.infra", spec.retry().infra());
}

bool IsEnvironmentName(const std::string& name) {
  if (name.empty() || name.size() > 128 || std::isdigit(static_cast<unsigned char>(name[0]))) {
    return false;
  }
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return c < 128 && (std::isalnum(c) != 0 || c == '_'); });
}

void CheckEnvironment(const v1::JobSpec& spec, std::vector<FieldError>& errors) {
  static const std::vector<std::string> kReserved = {
      "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"};
  if (spec.env_size() > kMaxEnv) {
    Add(errors, "env", StrFormat("%d variables; at most %d", spec.env_size(), kMaxEnv));
  }
  for (const auto& [name, value] : spec.env()) {
    if (!IsEnvironmentName(name)) {
      Add(errors, "env." + name.substr(0, 80),
          "is not a variable name; use letters, digits and '_', not starting with a digit");
    } else if (name.rfind("NIBBLE_", 0) == 0 ||
               std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end()) {
      Add(errors, "env." + name, "is set by the worker itself; choose another name");
    } else if (value.find('\0') != std::string::npos) {
      Add(errors, "env." + name, "holds a zero byte; no program can read it");
    }
  }
}

}  // namespace

Result<int> PriorityOfClass(const std::string& name) {
  std::vector<std::string> known;
  for (const PriorityClass& entry : kPriorityClasses) {
    if (name == entry.name) return entry.priority;
    known.emplace_back(entry.name);
  }
  return NotFoundError(UnknownNameMessage("priority class", name, known));
}

void CheckSchedulingFields(const v1::JobSpec& spec, std::vector<FieldError>& errors) {
  CheckHeader(spec, errors);
  CheckPriority(spec, errors);
  CheckResources(spec, errors);
  CheckTimesAndRetry(spec, errors);
  CheckEnvironment(spec, errors);
}

}  // namespace nibble::rpc
