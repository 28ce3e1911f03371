// SPDX-License-Identifier: Apache-2.0
#include "worker/bench/torch_peer.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/process.h"
#include "base/strings.h"

namespace nibble::bench {
namespace {

constexpr char kScript[] = NIBBLE_SOURCE_DIR "/worker/bench/peers/llama_step.py";

// The first interpreter that imports torch: the one on PATH, then the system's.
Result<std::string> FindPython() {
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    const Result<CommandOutput> found =
        RunCommand({"/usr/bin/env", python, "-c", "import torch"}, /*merge_stderr=*/true);
    if (found.ok() && found->status.success()) return std::string(python);
  }
  return UnimplementedError("no python3 here imports torch; Debian has it as python3-torch");
}

std::string Number(int64_t value) { return StrFormat("%lld", static_cast<long long>(value)); }

}  // namespace

Result<std::unique_ptr<TorchPeer>> TorchPeer::Start(const ModelConfig& model, int64_t batch,
                                                    int64_t seq_len, int threads) {
  if (!PathExists(kScript)) {
    return UnimplementedError(std::string(kScript) +
                              " does not exist; run from a build whose "
                              "source folder is still there");
  }
  ASSIGN_OR_RETURN(const std::string python, FindPython());
  std::vector<std::string> words = {"/usr/bin/env", python, kScript, "--serve"};
  const auto flag = [&](const char* name, int64_t value) {
    words.insert(words.end(), {std::string("--") + name, Number(value)});
  };
  flag("layers", model.layers);
  flag("hidden", model.hidden_size);
  flag("heads", model.heads);
  flag("kv-heads", model.kv_heads);
  flag("ffn", model.intermediate_size);
  flag("vocab", model.vocab_size);
  flag("batch", batch);
  flag("seq", seq_len);
  flag("threads", threads);
  flag("warmup", 0);  // the caller's first round warms up
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  std::array<int, 2> to_child{}, from_child{};
  if (::pipe2(to_child.data(), O_CLOEXEC) != 0) return ErrnoError(errno, "pipe");
  if (::pipe2(from_child.data(), O_CLOEXEC) != 0) return ErrnoError(errno, "pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, to_child[0], 0);
  posix_spawn_file_actions_adddup2(&actions, from_child[1], 1);
  std::unique_ptr<TorchPeer> peer(new TorchPeer());
  const int error = ::posix_spawn(&peer->pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(to_child[0]);
  ::close(from_child[1]);
  peer->requests_ = ::fdopen(to_child[1], "w");
  peer->answers_ = ::fdopen(from_child[0], "r");
  if (error != 0) {
    peer->pid_ = -1;
    return ErrnoError(error, "start " + python);
  }
  std::signal(SIGPIPE, SIG_IGN);  // a child that dies shows as an error of the next request
  ASSIGN_OR_RETURN(const std::string line, peer->ReadLine());
  ASSIGN_OR_RETURN(const Json ready, Json::Parse(line));
  peer->version_ = ready["version"].AsString();
  return peer;
}

TorchPeer::~TorchPeer() {
  if (requests_ != nullptr) std::fclose(requests_);  // the child ends with its input
  if (answers_ != nullptr) std::fclose(answers_);
  if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
}

Result<std::string> TorchPeer::ReadLine() {
  std::string line;
  for (int c = std::fgetc(answers_); c != EOF && c != '\n'; c = std::fgetc(answers_)) {
    line.push_back(static_cast<char>(c));
  }
  if (line.empty()) return UnavailableError("llama_step.py ended; its message stands above");
  return line;
}

Result<Sample> TorchPeer::Step() {
  if (std::fputs("step\n", requests_) < 0 || std::fflush(requests_) != 0) {
    return UnavailableError("llama_step.py takes no more requests");
  }
  ASSIGN_OR_RETURN(const std::string line, ReadLine());
  ASSIGN_OR_RETURN(const Json answer, Json::Parse(line));
  return Sample{1e-3 * answer["step_ms"].AsDouble(), 1e-3 * answer["cpu_ms"].AsDouble()};
}

}  // namespace nibble::bench
