// SPDX-License-Identifier: Apache-2.0
#include "server/core/types.h"

#include "base/ids.h"
#include "base/strings.h"

namespace nibble::core {
namespace {

Status CheckName(const char* field, const std::string& value) {
  if (IsValidName(value)) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s '%.80s' is not a valid name: use 1 to 63 characters of a-z, 0-9 and '-', "
                "beginning and ending with a letter or digit",
                field, value.c_str()));
}

Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return OkStatus();
  return InvalidArgumentError(StrFormat("%s is %lld; it must be %lld to %lld", field,
                                        static_cast<long long>(value), static_cast<long long>(low),
                                        static_cast<long long>(high)));
}

Status CheckText(const char* field, const std::string& value) {
  if (value.size() <= kMaxTextBytes) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s has %zu bytes; at most %zu", field, value.size(), kMaxTextBytes));
}

Status CheckTexts(const char* field, const std::vector<std::string>& values, size_t limit) {
  if (values.size() > limit) {
    return InvalidArgumentError(
        StrFormat("%s has %zu entries; at most %zu", field, values.size(), limit));
  }
  for (const std::string& value : values) RETURN_IF_ERROR(CheckText(field, value));
  return OkStatus();
}

constexpr int64_t kMaxDurationMs = int64_t{10} * 365 * 24 * 3600 * 1000;  // ten years

Status CheckRetry(const RetryPolicy& retry) {
  RETURN_IF_ERROR(CheckRange("retry.user", retry.user, 0, kMaxRetries));
  RETURN_IF_ERROR(CheckRange("retry.infra", retry.infra_per_day, 0, kMaxRetries));
  RETURN_IF_ERROR(CheckRange("retry.backoff.max (ms)", retry.backoff_max_ms, 0, kMaxDurationMs));
  RETURN_IF_ERROR(
      CheckRange("retry.backoff.base (ms)", retry.backoff_base_ms, 0, retry.backoff_max_ms));
  if (retry.on_exit_codes.size() > 255) {
    return InvalidArgumentError("retry.onExitCodes has more than 255 entries");
  }
  for (const int code : retry.on_exit_codes) {
    RETURN_IF_ERROR(CheckRange("retry.onExitCodes entry", code, 1, 255));
  }
  return OkStatus();
}

}  // namespace

Status JobSpec::Validate() const {
  RETURN_IF_ERROR(CheckName("metadata.name", name));
  RETURN_IF_ERROR(CheckName("metadata.project", project));
  RETURN_IF_ERROR(CheckName("queue", queue));
  RETURN_IF_ERROR(CheckText("user", user));
  RETURN_IF_ERROR(CheckText("priorityClass", priority_class));
  RETURN_IF_ERROR(CheckText("spec hash", spec_hash));
  RETURN_IF_ERROR(CheckRange("priority", priority, -1'000'000, 1'000'000));
  RETURN_IF_ERROR(CheckRange("resources.nodes", resources.nodes, 1, kMaxNodesPerJob));
  RETURN_IF_ERROR(
      CheckRange("resources slots per node", resources.slots_per_node, 1, kMaxSlotsPerNode));
  RETURN_IF_ERROR(CheckRange("memory estimate per device (bytes)",
                             resources.memory_bytes_per_device, 0, int64_t{1} << 50));
  RETURN_IF_ERROR(CheckTexts("resources.requires", resources.required_features, 64));
  RETURN_IF_ERROR(CheckTexts("placement.exclude", resources.exclude_workers, kMaxNodesPerJob));
  RETURN_IF_ERROR(CheckRetry(retry));
  RETURN_IF_ERROR(CheckRange("timeLimit (ms)", time_limit_ms, 0, kMaxDurationMs));
  RETURN_IF_ERROR(CheckRange("startTimeout (ms)", start_timeout_ms, 0, kMaxDurationMs));
  RETURN_IF_ERROR(CheckRange("stallTimeout (ms)", stall_timeout_ms, 0, kMaxDurationMs));
  RETURN_IF_ERROR(CheckRange("stop grace (ms)", stop_grace_ms, 0, int64_t{24} * 3600 * 1000));
  if (labels.size() > kMaxLabels) {
    return InvalidArgumentError(
        StrFormat("metadata.labels has %zu entries; at most %d", labels.size(), kMaxLabels));
  }
  for (const auto& [key, value] : labels) {
    RETURN_IF_ERROR(CheckText("metadata.labels key", key));
    RETURN_IF_ERROR(CheckText("metadata.labels value", value));
  }
  if (spec_json.size() > kMaxSpecBytes) {
    return InvalidArgumentError(
        StrFormat("the spec has %zu bytes; at most %zu", spec_json.size(), kMaxSpecBytes));
  }
  return OkStatus();
}

const Share* Attempt::FindShare(const std::string& worker_id) const {
  for (const Share& share : shares) {
    if (share.worker_id == worker_id) return &share;
  }
  return nullptr;
}

Share* Attempt::FindShare(const std::string& worker_id) {
  return const_cast<Share*>(static_cast<const Attempt*>(this)->FindShare(worker_id));
}

const Attempt* Job::live_attempt() const {
  return attempts.empty() || attempts.back().ended() ? nullptr : &attempts.back();
}

Attempt* Job::live_attempt() {
  return attempts.empty() || attempts.back().ended() ? nullptr : &attempts.back();
}

const Attempt* Job::FindAttempt(int attempt_number) const {
  for (const Attempt& attempt : attempts) {
    if (attempt.number == attempt_number) return &attempt;
  }
  return nullptr;
}

}  // namespace nibble::core
