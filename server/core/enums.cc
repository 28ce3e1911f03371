// SPDX-License-Identifier: Apache-2.0
#include "server/core/enums.h"

#include <array>
#include <cctype>
#include <string>

namespace nibble::core {
namespace {

// Indexed by the enum's value; each table has as many names as its enum has values.
constexpr std::array<std::string_view, 14> kJobStateNames = {
    "PENDING",    "HELD",     "SCHEDULED", "STARTING", "RUNNING",   "SUSPECT",   "PREEMPTING",
    "RECOVERING", "STOPPING", "SUCCEEDED", "FAILED",   "CANCELLED", "TIMED_OUT", "REJECTED"};
constexpr std::array<std::string_view, 20> kPendingReasonNames = {"HeldByUser",
                                                                  "HeldByAdmin",
                                                                  "InvalidSpec",
                                                                  "NoMatchingPool",
                                                                  "CapabilityNotProved",
                                                                  "ExceedsPoolCapacity",
                                                                  "MemoryEstimateTooLarge",
                                                                  "BeginTime",
                                                                  "Dependency",
                                                                  "DependencyNeverSatisfied",
                                                                  "QueueStopped",
                                                                  "QuotaExceeded",
                                                                  "RetryBackoff",
                                                                  "ExcludedNodesOnly",
                                                                  "Fragmented",
                                                                  "WaitingForPreemption",
                                                                  "Priority",
                                                                  "Resources",
                                                                  "ReservedFor",
                                                                  "PendingEvaluation"};
constexpr std::array<std::string_view, 19> kEndReasonNames = {"",
                                                              "Completed",
                                                              "UserError",
                                                              "OutOfMemoryGpu",
                                                              "OutOfMemoryHost",
                                                              "Diverged",
                                                              "Stalled",
                                                              "StartTimeout",
                                                              "TimeLimit",
                                                              "Deadline",
                                                              "Preempted",
                                                              "NodeLost",
                                                              "GpuFault",
                                                              "CheckpointUnreadable",
                                                              "DataUnreadable",
                                                              "CancelledByUser",
                                                              "CancelledByAdmin",
                                                              "RetryBudgetSpent",
                                                              "ControllerBug"};
constexpr std::array<std::string_view, 3> kChargeNames = {"none", "user", "infra"};
constexpr std::array<std::string_view, 9> kStopCauseNames = {
    "",        "Cancel",     "Pause", "Requeue", "TimeLimit", "StartTimeout",
    "Stalled", "PeerFailed", "Drain"};
constexpr std::array<std::string_view, 2> kStopModeNames = {"save", "kill"};
constexpr std::array<std::string_view, 4> kSharePhaseNames = {"assigned", "started", "running",
                                                              "ended"};
constexpr std::array<std::string_view, 4> kOutcomeKindNames = {"exited", "start_failed",
                                                               "never_started", "lost"};
constexpr std::array<std::string_view, 3> kWorkerStateNames = {"ACTIVE", "SUSPECT", "LOST"};
constexpr std::array<std::string_view, 3> kDeviceKindNames = {"any", "cpu", "cuda"};

constexpr const auto& Names(JobState) { return kJobStateNames; }
constexpr const auto& Names(PendingReason) { return kPendingReasonNames; }
constexpr const auto& Names(EndReason) { return kEndReasonNames; }
constexpr const auto& Names(Charge) { return kChargeNames; }
constexpr const auto& Names(StopCause) { return kStopCauseNames; }
constexpr const auto& Names(StopMode) { return kStopModeNames; }
constexpr const auto& Names(SharePhase) { return kSharePhaseNames; }
constexpr const auto& Names(OutcomeKind) { return kOutcomeKindNames; }
constexpr const auto& Names(WorkerState) { return kWorkerStateNames; }
constexpr const auto& Names(DeviceKind) { return kDeviceKindNames; }

static_assert(kJobStateNames.size() == static_cast<size_t>(JobState::kRejected) + 1);
static_assert(kPendingReasonNames.size() ==
              static_cast<size_t>(PendingReason::kPendingEvaluation) + 1);
static_assert(kEndReasonNames.size() == static_cast<size_t>(EndReason::kControllerBug) + 1);
static_assert(kStopCauseNames.size() == static_cast<size_t>(StopCause::kDrain) + 1);

// "out_of_memory_host" and "OutOfMemoryHost" both become "outofmemoryhost".
std::string Folded(std::string_view name) {
  std::string folded;
  for (const char c : name) {
    if (c != '_') folded += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return folded;
}

}  // namespace

template <typename Enum>
std::optional<Enum> FromName(std::string_view name) {
  const auto& names = Names(Enum{});
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  return std::nullopt;
}

std::string_view Name(JobState value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(PendingReason value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(EndReason value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(Charge value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(StopCause value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(StopMode value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(SharePhase value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(OutcomeKind value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(WorkerState value) { return Names(value)[static_cast<size_t>(value)]; }
std::string_view Name(DeviceKind value) { return Names(value)[static_cast<size_t>(value)]; }

template std::optional<JobState> FromName<JobState>(std::string_view);
template std::optional<PendingReason> FromName<PendingReason>(std::string_view);
template std::optional<EndReason> FromName<EndReason>(std::string_view);
template std::optional<Charge> FromName<Charge>(std::string_view);
template std::optional<StopCause> FromName<StopCause>(std::string_view);
template std::optional<StopMode> FromName<StopMode>(std::string_view);
template std::optional<SharePhase> FromName<SharePhase>(std::string_view);
template std::optional<OutcomeKind> FromName<OutcomeKind>(std::string_view);
template std::optional<WorkerState> FromName<WorkerState>(std::string_view);
template std::optional<DeviceKind> FromName<DeviceKind>(std::string_view);

std::optional<EndReason> EndReasonFromJournal(std::string_view name) {
  if (name.empty()) return std::nullopt;
  const std::string folded = Folded(name);
  for (size_t i = 1; i < kEndReasonNames.size(); ++i) {
    if (Folded(kEndReasonNames[i]) == folded) return static_cast<EndReason>(i);
  }
  return EndReason::kUserError;
}

}  // namespace nibble::core
