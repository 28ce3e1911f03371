// SPDX-License-Identifier: Apache-2.0
//
// FakeController: the controller's end of worker sessions, for tests of the real worker. Keeps what
// arrives, acknowledges telemetry and ends, and sends what a test asks for. Thread-safe.
// Ownership: owns the server; one session at a time is the present one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "nibble/v1/worker.grpc.pb.h"

namespace nibble::agent {

class FakeController : public v1::WorkerService::Service {
 public:
  // On a free port.
  explicit FakeController(
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials())
      : credentials_(std::move(credentials)) {
    Start();
  }
  ~FakeController() override { Stop(); }

  // As a crash of the controller: sessions break, nothing is acknowledged. What was received stays.
  void Stop() {
    if (server_ == nullptr) return;
    {
      MutexLock lock(mutex_);
      for (grpc::ServerContext* context : contexts_) context->TryCancel();
    }
    server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }

  void Start() {
    grpc::ServerBuilder builder;
    const std::string address = "127.0.0.1:" + std::to_string(port_);
    builder.AddListeningPort(address, credentials_, &port_);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  bool running() const { return server_ != nullptr; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // Which inventory is named in Registered.keep: everything, unless a test forgets a job.
  void Forget(const std::string& job_id) {
    MutexLock lock(mutex_);
    forgotten_ = job_id;
  }
  void RequireToken(const std::string& token) {
    MutexLock lock(mutex_);
    token_ = token;
  }

  // False without a session.
  bool Send(const v1::ControllerMessage& message) {
    MutexLock lock(mutex_);
    return stream_ != nullptr && stream_->Write(message);
  }

  int registrations() const {
    MutexLock lock(mutex_);
    return registrations_;
  }
  int refusals() const {  // for want of the token
    MutexLock lock(mutex_);
    return refusals_;
  }
  int heartbeats() const {
    MutexLock lock(mutex_);
    return heartbeats_;
  }
  v1::Register last_register() const {
    MutexLock lock(mutex_);
    return register_;
  }
  std::vector<v1::AttemptReport> reports(const std::string& job_id) const {
    MutexLock lock(mutex_);
    const auto found = reports_.find(job_id);
    return found == reports_.end() ? std::vector<v1::AttemptReport>() : found->second;
  }
  // Records by seq, as a store that drops repeats keeps them.
  std::map<int64_t, v1::JournalRecord> records(const std::string& job_id) const {
    MutexLock lock(mutex_);
    const auto found = records_.find(job_id);
    return found == records_.end() ? std::map<int64_t, v1::JournalRecord>() : found->second;
  }

  grpc::Status Session(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::ControllerMessage, v1::WorkerMessage>* stream) override {
    if (!Authorized(*context)) {
      MutexLock lock(mutex_);
      ++refusals_;
      return {grpc::StatusCode::UNAUTHENTICATED, "no or wrong token"};
    }
    {
      MutexLock lock(mutex_);
      contexts_.push_back(context);
      stream_ = stream;
    }
    v1::WorkerMessage message;
    while (stream->Read(&message)) {
      MutexLock lock(mutex_);
      Receive(message, *stream);
    }
    MutexLock lock(mutex_);
    std::erase(contexts_, context);
    if (stream_ == stream) stream_ = nullptr;
    return grpc::Status::OK;
  }

 private:
  using Stream = grpc::ServerReaderWriter<v1::ControllerMessage, v1::WorkerMessage>;

  bool Authorized(const grpc::ServerContext& context) const {
    MutexLock lock(mutex_);
    if (token_.empty()) return true;
    const auto found = context.client_metadata().find("authorization");
    return found != context.client_metadata().end() && found->second == "Bearer " + token_;
  }

  void Receive(const v1::WorkerMessage& message, Stream& stream) REQUIRES(mutex_) {
    v1::ControllerMessage answer;
    if (message.has_register_()) {
      ++registrations_;
      register_ = message.register_();
      answer.mutable_registered()->set_heartbeat_ms(50);
      answer.mutable_registered()->set_lease_ms(1000);
      for (const v1::AttemptReport& report : register_.inventory()) {
        if (report.key().job_id() == forgotten_) continue;
        *answer.mutable_registered()->add_keep() = report.key();
      }
    } else if (message.has_heartbeat()) {
      ++heartbeats_;
      answer.mutable_lease()->set_sequence(message.heartbeat().sequence());
    } else if (message.has_attempt()) {
      const v1::AttemptReport& report = message.attempt();
      reports_[report.key().job_id()].push_back(report);
      if (report.state() != "ended") return;
      *answer.mutable_attempt_ack()->mutable_key() = report.key();
    } else if (message.has_telemetry()) {
      const v1::Telemetry& telemetry = message.telemetry();
      auto& stored = records_[telemetry.key().job_id()];
      for (const v1::JournalRecord& record : telemetry.records()) stored[record.seq()] = record;
      v1::TelemetryAck& ack = *answer.mutable_telemetry_ack();
      *ack.mutable_key() = telemetry.key();
      ack.set_cursor(stored.rbegin()->first);
    }
    stream.Write(answer);
  }

  const std::shared_ptr<grpc::ServerCredentials> credentials_;  // as gRPC wants it
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  mutable Mutex mutex_;
  std::vector<grpc::ServerContext*> contexts_ GUARDED_BY(mutex_);
  Stream* stream_ GUARDED_BY(mutex_) = nullptr;
  std::string forgotten_ GUARDED_BY(mutex_);
  std::string token_ GUARDED_BY(mutex_);
  int registrations_ GUARDED_BY(mutex_) = 0;
  int refusals_ GUARDED_BY(mutex_) = 0;
  int heartbeats_ GUARDED_BY(mutex_) = 0;
  v1::Register register_ GUARDED_BY(mutex_);
  std::map<std::string, std::vector<v1::AttemptReport>> reports_ GUARDED_BY(mutex_);
  std::map<std::string, std::map<int64_t, v1::JournalRecord>> records_ GUARDED_BY(mutex_);
};

}  // namespace nibble::agent
