// SPDX-License-Identifier: Apache-2.0
//
// For the tests of server/rpc: a small valid spec, a temporary state directory, waiting with a
// limit, and an in-memory worker that speaks the session protocol without a network.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/files.h"
#include "base/mutex.h"
#include "kernels/recipe/recipe.h"
#include "server/rpc/service.h"

namespace nibble::rpc {

inline constexpr std::chrono::seconds kTestPatience{20};

// Polls until `condition` holds; a failed test when it does not in time.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + kTestPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

class TempDirectory {
 public:
  TempDirectory() : path_(MakeTempDirectory("nibble-rpc-test").value()) {}
  ~TempDirectory() { static_cast<void>(RemoveTree(path_)); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline v1::JobSpec SmallSpec(const std::string& name) {
  v1::JobSpec spec;
  spec.set_api_version("nibble/v1");
  spec.set_kind("TrainJob");
  spec.mutable_metadata()->set_name(name);
  v1::ModelSpec& model = *spec.mutable_model();
  model.set_vocab_size(512);
  model.set_hidden_size(64);
  model.set_intermediate_size(128);
  model.set_layers(2);
  model.set_heads(4);
  spec.mutable_data()->set_path("/data/tokens");
  spec.mutable_data()->set_seq_len(32);
  spec.mutable_schedule()->set_steps(100);
  return spec;
}

inline v1::Device CpuDevice(int index) {
  v1::Device device;
  device.set_index(index);
  device.set_kind("cpu");
  device.set_name("test CPU");
  device.set_memory_bytes(int64_t{8} << 30);
  device.add_features("e2m1");
  for (const std::string& name : BuiltInRecipeNames()) device.add_features("recipe:" + name);
  device.set_gflops(50);
  device.set_threads(2);
  return device;
}

inline v1::WorkerMessage RegisterMessage(const std::string& worker_id) {
  v1::WorkerMessage message;
  v1::Register& body = *message.mutable_register_();
  body.set_worker_id(worker_id);
  body.set_host("host-" + worker_id);
  body.set_pool("main");
  body.set_version("0.1.0");
  body.set_http_address("127.0.0.1:9");
  *body.add_devices() = CpuDevice(0);
  return message;
}

inline v1::WorkerMessage ReportMessage(const v1::AttemptKey& key, const std::string& state,
                                       int64_t step = 0) {
  v1::WorkerMessage message;
  *message.mutable_attempt()->mutable_key() = key;
  message.mutable_attempt()->set_state(state);
  message.mutable_attempt()->set_step(step);
  return message;
}

inline v1::WorkerMessage EndMessage(const v1::AttemptKey& key, const std::string& reason,
                                    int exit_code, int64_t step) {
  v1::WorkerMessage message = ReportMessage(key, "ended", step);
  message.mutable_attempt()->set_end_reason(reason);
  message.mutable_attempt()->set_exit_code(exit_code);
  return message;
}

inline v1::JournalRecord CheckpointJournalRecord(int64_t seq, int64_t step) {
  v1::JournalRecord record;
  record.set_seq(seq);
  record.set_time_ms(1'700'000'000'000 + step);
  record.mutable_checkpoint()->set_step(step);
  record.mutable_checkpoint()->set_path("/runs/c-" + std::to_string(step));
  record.mutable_checkpoint()->set_bytes(9);
  return record;
}

// A telemetry message of step records [first, last]; seq equals step.
inline v1::WorkerMessage StepsMessage(const v1::AttemptKey& key, int64_t first, int64_t last) {
  v1::WorkerMessage message;
  *message.mutable_telemetry()->mutable_key() = key;
  for (int64_t step = first; step <= last; ++step) {
    v1::JournalRecord& record = *message.mutable_telemetry()->add_records();
    record.set_seq(step);
    record.set_time_ms(1'700'000'000'000 + step);
    record.mutable_step()->set_step(step);
    record.mutable_step()->set_loss(5.0 / static_cast<double>(step));
    record.mutable_step()->set_tokens(step * 256);
    record.mutable_step()->set_step_seconds(0.5);
    record.mutable_step()->set_tokens_per_second(512);
  }
  return message;
}

// What a worker receives; thread-safe.
class Inbox {
 public:
  void Add(v1::ControllerMessage message) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    messages_.push_back(std::move(message));
  }
  void SetClosed(const std::string& why) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    closed_ = why.empty() ? "closed" : why;
  }
  std::string closed() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return closed_;
  }
  // The first message that satisfies `wanted`, waiting for it; removes it and all before it.
  v1::ControllerMessage Await(const std::function<bool(const v1::ControllerMessage&)>& wanted)
      EXCLUDES(mutex_) {
    v1::ControllerMessage found;
    const bool came = Eventually([&] {
      MutexLock lock(mutex_);
      while (!messages_.empty()) {
        v1::ControllerMessage next = std::move(messages_.front());
        messages_.pop_front();
        if (!wanted(next)) continue;
        found = std::move(next);
        return true;
      }
      return false;
    });
    EXPECT_TRUE(came) << "the message did not come";
    return found;
  }
  v1::Registered AwaitRegistered() {
    return Await([](const auto& message) { return message.has_registered(); }).registered();
  }
  v1::StartAttempt AwaitStart() {
    return Await([](const auto& message) { return message.has_start(); }).start();
  }
  v1::StopAttempt AwaitStop() {
    return Await([](const auto& message) { return message.has_stop(); }).stop();
  }
  v1::AttemptKey AwaitAttemptAck() {
    return Await([](const auto& message) { return message.has_attempt_ack(); }).attempt_ack().key();
  }
  int64_t AwaitTelemetryAck() {
    return Await([](const auto& message) { return message.has_telemetry_ack(); })
        .telemetry_ack()
        .cursor();
  }

 private:
  mutable Mutex mutex_;
  std::deque<v1::ControllerMessage> messages_ GUARDED_BY(mutex_);
  std::string closed_ GUARDED_BY(mutex_);
};

// A session without a network: what gRPC does for a real one.
class DirectWorker {
 public:
  DirectWorker(ControllerService* service, std::string worker_id, std::string session)
      : service_(service),
        worker_id_(std::move(worker_id)),
        session_(std::move(session)),
        outbox_(std::make_shared<DirectOutbox>()) {}

  void Send(v1::WorkerMessage message) {
    service_->OnWorkerMessage(session_, worker_id_, std::move(message), outbox_);
  }
  void Disconnect() { service_->OnSessionClosed(session_, worker_id_); }
  Inbox& inbox() { return outbox_->inbox; }

 private:
  struct DirectOutbox : Outbox {
    void Send(v1::ControllerMessage message) override { inbox.Add(std::move(message)); }
    void Close(const Status& why) override { inbox.SetClosed(why.message()); }
    Inbox inbox;
  };
  ControllerService* const service_;
  const std::string worker_id_;
  const std::string session_;
  const std::shared_ptr<DirectOutbox> outbox_;
};

template <typename Response>
struct Answered {
  Failure failure;
  Response response;
};

// Calls a method of the service and waits for its answer.
template <typename Response, typename Begin>
Answered<Response> Await(Begin begin) {
  auto promise = std::make_shared<std::promise<Answered<Response>>>();
  auto answer = promise->get_future();
  begin([promise](const Failure& failure, Response response) {
    promise->set_value({failure, std::move(response)});
  });
  if (answer.wait_for(kTestPatience) != std::future_status::ready) {
    ADD_FAILURE() << "no answer in time";
    return {InternalError("no answer in time"), {}};
  }
  return answer.get();
}

// A service on a temporary directory with short timings.
class ServiceHarness {
 public:
  ServiceHarness() { Open(); }
  explicit ServiceHarness(const ControllerOptions& options) : options_(options) { Open(); }
  ControllerService& operator*() { return *service_; }
  ControllerService* operator->() { return service_.get(); }
  ControllerService* get() { return service_.get(); }

  // Stops the service and opens another one on the same directory.
  void Restart() {
    service_.reset();
    Open();
  }

  Answered<v1::SubmitJobResponse> Submit(const v1::SubmitJobRequest& request) {
    return Await<v1::SubmitJobResponse>(
        [&](auto done) { service_->SubmitJob(request, 0, std::move(done)); });
  }
  std::string SubmitNamed(const std::string& name) {
    v1::SubmitJobRequest request;
    *request.mutable_spec() = SmallSpec(name);
    request.set_user("tester");
    const auto answered = Submit(request);
    EXPECT_TRUE(answered.failure.ok()) << answered.failure.status.ToString();
    return answered.response.job().id();
  }
  v1::Job Get(const std::string& job) {
    v1::GetJobRequest request;
    request.set_job(job);
    return Await<v1::Job>([&](auto done) { service_->GetJob(request, 0, std::move(done)); })
        .response;
  }
  bool EventuallyState(const std::string& job, v1::JobState state) {
    return Eventually([&] { return Get(job).state() == state; });
  }

 private:
  void Open() {
    options_.state_dir = directory_.path();
    options_.version = "0.1.0-test";
    options_.heartbeat_ms = 100;
    Result<std::unique_ptr<ControllerService>> service =
        ControllerService::Open(options_, Clock::Real());
    if (!service.ok()) {
      ADD_FAILURE() << service.status().ToString();
      std::abort();
    }
    service_ = std::move(*service);
    service_->Start();
  }

  TempDirectory directory_;
  ControllerOptions options_;
  std::unique_ptr<ControllerService> service_;
};

}  // namespace nibble::rpc
