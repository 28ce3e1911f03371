// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/devices.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <tuple>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/process.h"
#include "base/strings.h"

namespace nibble::agent {
namespace {

constexpr int64_t kMaxOutputBytes = 1 << 20;
constexpr size_t kShownErrorBytes = 600;

// One device of the self-test as `slots` devices that together are it.
void AddSlots(const DeviceInfo& device, int slots, std::vector<DeviceInfo>& devices) {
  const int parts = device.kind == "cpu" ? slots : 1;
  for (int part = 0; part < parts; ++part) {
    DeviceInfo slot = device;
    slot.index = static_cast<int>(devices.size());
    slot.memory_bytes /= parts;
    slot.threads = std::max(1, slot.threads / parts);
    slot.gflops /= parts;
    devices.push_back(std::move(slot));
  }
}

// What a person needs of a failed self-test: the end of what it printed.
std::string LastWords(const std::string& output, const std::string& errors) {
  std::string text(StrTrim(errors));
  if (text.empty()) text = StrTrim(output);
  if (text.empty()) return "it printed nothing";
  return text.size() <= kShownErrorBytes ? text : text.substr(text.size() - kShownErrorBytes);
}

// What several devices of one name lack for one reason.
struct Lack {
  std::string kind;
  std::string name;
  std::string why;
  std::vector<std::string> indices;
  std::vector<std::string> features;
};

void AddLacks(const DeviceInfo& device, int index, const Json& refused, std::vector<Lack>& lacks) {
  std::vector<Lack> own;
  for (const auto& [feature, why] : refused.members()) {
    const auto same = std::find_if(own.begin(), own.end(), [&why = why](const Lack& lack) {
      return lack.why == why.AsString();
    });
    Lack& lack = same != own.end() ? *same : own.emplace_back();
    lack.why = why.AsString();
    lack.features.push_back(feature);
  }
  for (Lack& lack : own) {
    lack.kind = device.kind;
    lack.name = device.name;
    const auto same = std::find_if(lacks.begin(), lacks.end(), [&lack](const Lack& other) {
      return std::tie(other.kind, other.name, other.why, other.features) ==
             std::tie(lack.kind, lack.name, lack.why, lack.features);
    });
    Lack& kept = same != lacks.end() ? *same : lacks.emplace_back(std::move(lack));
    kept.indices.push_back(std::to_string(index));
  }
}

std::string NoteOf(const Lack& lack) {
  return lack.kind + " " + StrJoin(lack.indices, ", ") + " (" + lack.name + ") has no " +
         StrJoin(lack.features, ", ") + ": " + lack.why;
}

// Within the limits that ProvedDevices promises, each one line.
std::vector<std::string> Bounded(std::vector<std::string> notes) {
  const size_t count = notes.size();
  if (count > kMaxNotes) {
    notes.resize(kMaxNotes - 1);
    notes.push_back(StrFormat("%zu more: see self-test.json in the worker's state folder",
                              count - notes.size()));
  }
  for (std::string& note : notes) {
    note.resize(Utf8Prefix(note, kMaxNoteBytes).size());
    std::replace_if(
        note.begin(), note.end(), [](char c) { return c == '\n' || c == '\r' || c == '\t'; }, ' ');
  }
  return notes;
}

}  // namespace

Result<ProvedDevices> ParseDevices(const std::string& json_text, int slots) {
  const Result<Json> json = Json::Parse(json_text);
  if (!json.ok()) {
    return DataLossError("the self-test did not print JSON: " + json.status().message());
  }
  ProvedDevices proved;
  std::vector<Lack> lacks;
  for (const Json& item : (*json)["devices"].items()) {
    DeviceInfo device;
    device.kind = item["kind"].AsString();
    device.name = item["name"].AsString();
    device.memory_bytes = item["memory_bytes"].AsInt();
    device.threads = static_cast<int>(item["threads"].AsInt());
    device.gflops = item["gflops"].AsDouble();
    for (const Json& feature : item["features"].items()) {
      device.features.push_back(feature.AsString());
    }
    device.visible = item["visible"].AsString();
    if (device.kind.empty()) return DataLossError("the self-test named a device without a kind");
    if (device.kind == "cpu" && slots > std::max(1, device.threads)) {
      return InvalidArgumentError(StrFormat("--slots %d is more than the %d threads of %s", slots,
                                            device.threads, device.name.c_str()));
    }
    AddLacks(device, static_cast<int>(proved.devices.size()), item["refused"], lacks);
    AddSlots(device, slots, proved.devices);
  }
  if (proved.devices.empty()) return DataLossError("the self-test found no device");
  for (const Json& note : (*json)["notes"].items()) proved.notes.push_back(note.AsString());
  for (const Lack& lack : lacks) proved.notes.push_back(NoteOf(lack));
  proved.notes = Bounded(std::move(proved.notes));
  return proved;
}

Result<ProvedDevices> ProveDevices(const std::string& trainer, int slots,
                                   const std::string& work_dir) {
  const std::string output_path = JoinPath(work_dir, "self-test.json");
  const std::string error_path = JoinPath(work_dir, "self-test.log");
  RETURN_IF_ERROR(RemoveTree(output_path));
  RETURN_IF_ERROR(RemoveTree(error_path));
  ProcessOptions options;
  options.argv = {trainer, "self-test", "--json"};
  options.stdout_path = output_path;
  options.stderr_path = error_path;
  ASSIGN_OR_RETURN(Process process, Process::Start(options));
  ASSIGN_OR_RETURN(const std::optional<ExitStatus> ended,
                   process.WaitFor(std::chrono::milliseconds(kSelfTestTimeoutMs)));
  if (!ended.has_value()) {
    RETURN_IF_ERROR(process.Signal(SIGKILL));
    RETURN_IF_ERROR(process.Wait().status());
    return DeadlineExceededError(StrFormat("the self-test of %s did not end in %d s",
                                           trainer.c_str(), kSelfTestTimeoutMs / 1000));
  }
  ASSIGN_OR_RETURN(const std::string output, ReadFile(output_path, kMaxOutputBytes));
  if (!ended->success()) {
    const std::string errors = ReadFile(error_path, kMaxOutputBytes).value_or("");
    return FailedPreconditionError("the self-test of " + trainer + " failed with " +
                                   ended->ToString() + ": " + LastWords(output, errors));
  }
  return ParseDevices(output, slots);
}

}  // namespace nibble::agent
