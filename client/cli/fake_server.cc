// SPDX-License-Identifier: Apache-2.0
#include "client/cli/fake_server.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <thread>

#include "nibble/v1/controller.grpc.pb.h"

namespace nibble::cli {

struct FakeServer::Impl : public v1::JobService::Service, public v1::ClusterService::Service {
  using Context = grpc::ServerContext;

  mutable Mutex mutex;
  FakeBehaviour behaviour GUARDED_BY(mutex);
  FakeRecord record GUARDED_BY(mutex);
  bool stream_broken GUARDED_BY(mutex) = false;
  std::string address;
  std::unique_ptr<grpc::Server> server;

  FakeBehaviour Now() const {
    MutexLock lock(mutex);
    return behaviour;
  }

  // Counts the call and fails it when the test says so.
  grpc::Status Enter(Context* context) {
    int delay_ms = 0;
    {
      MutexLock lock(mutex);
      ++record.calls;
      const auto& metadata = context->client_metadata();
      const auto found = metadata.find("authorization");
      record.authorization.push_back(
          found == metadata.end() ? "" : std::string(found->second.data(), found->second.size()));
      if (behaviour.unavailable > 0) {
        --behaviour.unavailable;
        return {grpc::StatusCode::UNAVAILABLE, "busy"};
      }
      if (!behaviour.status.ok()) {
        context->AddTrailingMetadata("nibble-error-bin", behaviour.detail.SerializeAsString());
        return {static_cast<grpc::StatusCode>(behaviour.status.code()), behaviour.status.message()};
      }
      delay_ms = behaviour.delay_ms;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(delay_ms);
    while (std::chrono::steady_clock::now() < end && !context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return grpc::Status::OK;
  }

  grpc::Status AnswerJob(Context* context, const std::string& name, v1::Job* response) {
    const grpc::Status entered = Enter(context);
    if (!entered.ok()) return entered;
    for (const v1::Job& job : Now().jobs) {
      if (job.id() != name && job.spec().metadata().name() != name) continue;
      *response = job;
      return grpc::Status::OK;
    }
    return {grpc::StatusCode::NOT_FOUND, "job '" + name + "' does not exist"};
  }

  grpc::Status SubmitJob(Context* context, const v1::SubmitJobRequest* request,
                         v1::SubmitJobResponse* response) override {
    const grpc::Status entered = Enter(context);
    MutexLock lock(mutex);
    record.submit = *request;
    if (!entered.ok()) return entered;
    *response->mutable_estimate() = behaviour.estimate;
    if (!request->dry_run()) {
      v1::Job& job = *response->mutable_job();
      job.set_id("job-1");
      job.set_state(v1::JOB_STATE_PENDING);
      *job.mutable_spec() = request->spec();
    }
    return grpc::Status::OK;
  }

  grpc::Status GetJob(Context* context, const v1::GetJobRequest* request,
                      v1::Job* response) override {
    return AnswerJob(context, request->job(), response);
  }

  // Pages of one job, so that clients have to follow tokens.
  grpc::Status ListJobs(Context* context, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override {
    const grpc::Status entered = Enter(context);
    if (!entered.ok()) return entered;
    MutexLock lock(mutex);
    record.list = *request;
    const size_t at = request->page_token().empty() ? 0 : std::stoul(request->page_token());
    if (at < behaviour.jobs.size()) *response->add_jobs() = behaviour.jobs[at];
    if (at + 1 < behaviour.jobs.size()) response->set_next_page_token(std::to_string(at + 1));
    return grpc::Status::OK;
  }

  grpc::Status CancelJob(Context* context, const v1::CancelJobRequest* request,
                         v1::Job* response) override {
    {
      MutexLock lock(mutex);
      record.cancel = *request;
    }
    return AnswerJob(context, request->job(), response);
  }

  grpc::Status PauseJob(Context* context, const v1::PauseJobRequest* request,
                        v1::Job* response) override {
    return AnswerJob(context, request->job(), response);
  }

  grpc::Status ResumeJob(Context* context, const v1::ResumeJobRequest* request,
                         v1::Job* response) override {
    return AnswerJob(context, request->job(), response);
  }

  grpc::Status UpdateJob(Context* context, const v1::UpdateJobRequest* request,
                         v1::Job* response) override {
    {
      MutexLock lock(mutex);
      record.update = *request;
    }
    return AnswerJob(context, request->job(), response);
  }

  grpc::Status ExplainJob(Context* context, const v1::ExplainJobRequest*,
                          v1::ExplainJobResponse* response) override {
    const grpc::Status entered = Enter(context);
    *response = Now().explain;
    return entered;
  }

  grpc::Status ListJobEvents(Context* context, const v1::ListJobEventsRequest*,
                             v1::ListJobEventsResponse* response) override {
    const grpc::Status entered = Enter(context);
    for (const v1::JobEvent& event : Now().events) *response->add_events() = event;
    return entered;
  }

  grpc::Status GetMetrics(Context* context, const v1::GetMetricsRequest*,
                          v1::GetMetricsResponse* response) override {
    const grpc::Status entered = Enter(context);
    *response = Now().metrics;
    return entered;
  }

  // Sends the wanted messages; breaks once when the test says so.
  template <typename Message, typename Wanted>
  grpc::Status SendAll(Context* context, const std::vector<Message>& messages, Wanted wanted,
                       grpc::ServerWriter<Message>* writer) {
    const FakeBehaviour now = Now();
    if (!now.status.ok()) {
      return {static_cast<grpc::StatusCode>(now.status.code()), now.status.message()};
    }
    int sent = 0;
    for (const Message& message : messages) {
      if (!wanted(message)) continue;
      writer->Write(message);
      MutexLock lock(mutex);
      if (++sent == now.break_stream_after && !stream_broken) {
        stream_broken = true;
        return {grpc::StatusCode::UNAVAILABLE, "going away"};
      }
    }
    while (now.hold_stream && !context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return grpc::Status::OK;
  }

  grpc::Status WatchJob(Context* context, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::WatchJobResponse>* writer) override {
    {
      MutexLock lock(mutex);
      record.watches.push_back(*request);
    }
    const auto wanted = [&](const v1::WatchJobResponse& message) {
      return message.cursor() > request->cursor();
    };
    return SendAll(context, Now().watch, wanted, writer);
  }

  grpc::Status StreamLogs(Context* context, const v1::StreamLogsRequest* request,
                          grpc::ServerWriter<v1::StreamLogsResponse>* writer) override {
    {
      MutexLock lock(mutex);
      record.logs.push_back(*request);
    }
    const auto wanted = [&](const v1::StreamLogsResponse& line) {
      return line.time_ms() >= request->since_ms();
    };
    return SendAll(context, Now().logs, wanted, writer);
  }

  grpc::Status ListNodes(Context* context, const v1::ListNodesRequest*,
                         v1::ListNodesResponse* response) override {
    const grpc::Status entered = Enter(context);
    for (const v1::Node& node : Now().nodes) *response->add_nodes() = node;
    return entered;
  }

  grpc::Status DrainNode(Context* context, const v1::DrainNodeRequest* request,
                         v1::Node* response) override {
    {
      MutexLock lock(mutex);
      record.drain = *request;
    }
    response->set_worker_id(request->worker_id());
    response->set_state("draining");
    return Enter(context);
  }

  grpc::Status UndrainNode(Context* context, const v1::UndrainNodeRequest* request,
                           v1::Node* response) override {
    response->set_worker_id(request->worker_id());
    response->set_state("up");
    return Enter(context);
  }

  grpc::Status GetServerInfo(Context* context, const v1::GetServerInfoRequest*,
                             v1::ServerInfo* response) override {
    response->set_version("9.9.9");
    response->set_http_address("127.0.0.1:7791");
    return Enter(context);
  }
};

FakeServer::FakeServer() : impl_(std::make_unique<Impl>()) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(static_cast<v1::JobService::Service*>(impl_.get()));
  builder.RegisterService(static_cast<v1::ClusterService::Service*>(impl_.get()));
  impl_->server = builder.BuildAndStart();
  impl_->address = "127.0.0.1:" + std::to_string(port);
}

FakeServer::~FakeServer() {
  impl_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
}

const std::string& FakeServer::address() const { return impl_->address; }

void FakeServer::Set(const FakeBehaviour& behaviour) {
  MutexLock lock(impl_->mutex);
  impl_->behaviour = behaviour;
  impl_->record = {};
  impl_->stream_broken = false;
}

FakeRecord FakeServer::record() const {
  MutexLock lock(impl_->mutex);
  return impl_->record;
}

}  // namespace nibble::cli
