// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/run_folder.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "base/strings.h"

namespace nibble::agent {
namespace {

constexpr char kRecordFile[] = "attempt.json";
constexpr char kRunsFolder[] = "runs";
constexpr char kCheckpointsFolder[] = "checkpoints";
constexpr char kManifestFile[] = "manifest.json";  // last file of a whole checkpoint
constexpr int64_t kMaxRecordBytes = 64 * 1024;
constexpr int kDefaultMasterPort = 29500;  // torchrun's

// A TCP port nobody listens on at the moment.
int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return kDefaultMasterPort;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  int port = kDefaultMasterPort;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    port = ntohs(address.sin_port);
  }
  ::close(fd);
  return port;
}

bool HasCheckpoint(const std::string& checkpoints) {
  for (const std::string& name : ListDirectory(checkpoints).value_or({})) {
    if (PathExists(JoinPath(JoinPath(checkpoints, name), kManifestFile))) return true;
  }
  return false;
}

// Own checkpoints of the job go before a folder named by the spec or the controller: they are
// newer than either, and the trainer falls back among them when one is damaged.
std::string ChooseResumeFrom(const StartRequest& request, const std::string& checkpoints,
                             const std::string& from_spec) {
  if (HasCheckpoint(checkpoints)) return "";
  if (request.resume_from.empty()) return from_spec;
  if (PathExists(request.resume_from)) return request.resume_from;
  LogWarning("the checkpoint of an earlier attempt is not on this host; starting without it",
             {{"job", request.key.job_id}, {"checkpoint", request.resume_from}});
  return from_spec;
}

int64_t Threads(const RunSettings& settings, const StartRequest& request, const Json& spec) {
  const int64_t asked = spec["resources"]["threads"].AsInt();
  if (asked > 0) return asked;
  int64_t threads = 0;
  for (const int index : request.devices) threads += settings.devices[index].threads;
  return threads;
}

// All devices of an attempt are of one kind.
std::string BackendOf(const RunSettings& settings, const StartRequest& request) {
  const bool cuda =
      !request.devices.empty() && settings.devices[request.devices.front()].kind == "cuda";
  return cuda ? "cuda" : "cpu";
}

std::map<std::string, std::string> Environment(const RunSettings& settings,
                                               const StartRequest& request,
                                               const std::string& checkpoints,
                                               const std::string& resume_from) {
  const AttemptKey& key = request.key;
  std::map<std::string, std::string> env = request.env;
  const std::pair<const char*, std::string> ours[] = {
      {"RANK", "0"},
      {"WORLD_SIZE", std::to_string(request.world_size)},
      {"LOCAL_RANK", "0"},
      {"LOCAL_WORLD_SIZE", std::to_string(request.world_size)},
      {"GROUP_RANK", "0"},
      {"MASTER_ADDR", "127.0.0.1"},
      {"MASTER_PORT", std::to_string(FreePort())},
      {"TORCHELASTIC_RESTART_COUNT", std::to_string(key.attempt - 1)},
      {"TORCHELASTIC_RUN_ID", key.job_id},
      {"NIBBLE_JOB_ID", key.job_id},
      {"NIBBLE_ATTEMPT", std::to_string(key.attempt)},
      {"NIBBLE_EPOCH", std::to_string(key.epoch)},
      {"NIBBLE_CHECKPOINT_DIR", checkpoints},
      {"NIBBLE_RESUME_FROM", resume_from},
  };
  for (const auto& [name, value] : ours) env[name] = value;
  std::vector<std::string> visible;
  for (const int index : request.devices) {
    if (!settings.devices[index].visible.empty()) {
      visible.push_back(settings.devices[index].visible);
    }
  }
  if (!visible.empty()) env["CUDA_VISIBLE_DEVICES"] = StrJoin(visible, ",");
  return env;
}

Status LinkCheckpoints(const std::string& run_dir) {
  const std::string link = JoinPath(run_dir, kCheckpointsFolder);
  const std::string target = std::string("../") + kCheckpointsFolder;
  if (::symlink(target.c_str(), link.c_str()) == 0 || errno == EEXIST) return OkStatus();
  return ErrnoError(errno, "cannot create " + link);
}

}  // namespace

Status SaveAttemptRecord(const std::string& run_dir, const AttemptRecord& record) {
  Json devices = Json::Array();
  for (const int index : record.devices) devices.Append(index);
  const Json json = Json::Object({{"jobId", record.key.job_id},
                                  {"attempt", record.key.attempt},
                                  {"epoch", record.key.epoch},
                                  {"devices", std::move(devices)},
                                  {"done", record.done},
                                  {"running", record.running},
                                  {"step", record.step},
                                  {"ackedSeq", record.acked_seq},
                                  {"ackedOffset", record.acked_offset}});
  return AtomicWriteFile(JoinPath(run_dir, kRecordFile), json.Dump() + "\n");
}

Result<AttemptRecord> LoadAttemptRecord(const std::string& run_dir) {
  const std::string path = JoinPath(run_dir, kRecordFile);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxRecordBytes));
  const Result<Json> json = Json::Parse(text);
  if (!json.ok()) return DataLossError(path + ": " + json.status().message());
  AttemptRecord record;
  record.key = {(*json)["jobId"].AsString(), static_cast<int>((*json)["attempt"].AsInt()),
                (*json)["epoch"].AsInt()};
  for (const Json& index : (*json)["devices"].items()) {
    record.devices.push_back(static_cast<int>(index.AsInt()));
  }
  record.done = (*json)["done"].AsBool();
  record.running = (*json)["running"].AsBool();
  record.step = (*json)["step"].AsInt();
  record.acked_seq = (*json)["ackedSeq"].AsInt();
  record.acked_offset = (*json)["ackedOffset"].AsInt();
  if (record.key.job_id.empty()) return DataLossError(path + ": jobId is missing");
  return record;
}

std::string RunDir(const std::string& state_dir, const AttemptKey& key) {
  const std::string job = JoinPath(JoinPath(state_dir, kRunsFolder), key.job_id);
  return JoinPath(job, "attempt-" + std::to_string(key.attempt));
}

std::vector<std::string> ListRunDirs(const std::string& state_dir) {
  std::vector<std::string> run_dirs;
  const std::string runs = JoinPath(state_dir, kRunsFolder);
  for (const std::string& job : ListDirectory(runs).value_or({})) {
    const std::string job_dir = JoinPath(runs, job);
    for (const std::string& name : ListDirectory(job_dir).value_or({})) {
      const std::string run_dir = JoinPath(job_dir, name);
      if (PathExists(JoinPath(run_dir, kRecordFile))) run_dirs.push_back(run_dir);
    }
  }
  return run_dirs;
}

Result<TrainerProcess::Launch> PrepareRun(const RunSettings& settings,
                                          const StartRequest& request) {
  Result<Json> spec = Json::Parse(request.run_json);
  if (!spec.ok() || !spec->is_object()) {
    return InvalidArgumentError("the spec of " + request.key.ToString() +
                                " is not a JSON object: " + spec.status().message());
  }
  const std::string run_dir = RunDir(settings.state_dir, request.key);
  const std::string checkpoints = JoinPath(DirName(run_dir), kCheckpointsFolder);
  RETURN_IF_ERROR(MakeDirectories(run_dir));
  RETURN_IF_ERROR(MakeDirectories(checkpoints));
  RETURN_IF_ERROR(LinkCheckpoints(run_dir));

  const std::string from_spec = (*spec)["checkpoint"]["resumeFrom"].AsString();
  const std::string resume_from = ChooseResumeFrom(request, checkpoints, from_spec);
  if (resume_from != from_spec) {
    Json checkpoint = (*spec)["checkpoint"];
    spec->Set("checkpoint", checkpoint.Set("resumeFrom", resume_from));
  }
  spec->Set("run", Json::Object({{"dir", run_dir},
                                 {"jobId", request.key.job_id},
                                 {"attempt", request.key.attempt},
                                 {"epoch", request.key.epoch},
                                 {"rank", 0},
                                 {"worldSize", request.world_size},
                                 {"threads", Threads(settings, request, *spec)},
                                 {"backend", BackendOf(settings, request)},
                                 {"journal", true}}));
  const std::string config = JoinPath(run_dir, "run.json");
  RETURN_IF_ERROR(AtomicWriteFile(config, spec->Dump(2) + "\n"));

  TrainerProcess::Launch launch;
  launch.supervisor = settings.supervisor;
  launch.run_dir = run_dir;
  launch.command = {settings.trainer, "--config", config};
  launch.env = Environment(settings, request, checkpoints, resume_from);
  launch.log_path = JoinPath(run_dir, "trainer.log");
  return launch;
}

}  // namespace nibble::agent
