// SPDX-License-Identifier: Apache-2.0
//
// JobService and ClusterService over gRPC's callback API.
#include "nibble/v1/controller.grpc.pb.h"
#include "server/rpc/log_source.h"
#include "server/rpc/reactors.h"
#include "server/rpc/services.h"
#include "server/rpc/watch_source.h"

namespace nibble::rpc {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

// One handler: check the caller, hand the request to the Service's method of the same name.
#define NIBBLE_UNARY(Method, Response)                                                           \
  ServerUnaryReactor* Method(CallbackServerContext* context, const v1::Method##Request* request, \
                             Response* response) override {                                      \
    return Answer(context, token_, service_->clock(), response,                                  \
                  [&](int64_t deadline, Done<Response> done) {                                   \
                    service_->Method(*request, deadline, std::move(done));                       \
                  });                                                                            \
  }

class JobServiceImpl final : public v1::JobService::CallbackService {
 public:
  JobServiceImpl(ControllerService* service, std::string token)
      : service_(service), token_(std::move(token)) {}

  NIBBLE_UNARY(SubmitJob, v1::SubmitJobResponse)
  NIBBLE_UNARY(GetJob, v1::Job)
  NIBBLE_UNARY(ListJobs, v1::ListJobsResponse)
  NIBBLE_UNARY(CancelJob, v1::Job)
  NIBBLE_UNARY(PauseJob, v1::Job)
  NIBBLE_UNARY(ResumeJob, v1::Job)
  NIBBLE_UNARY(UpdateJob, v1::Job)
  NIBBLE_UNARY(ExplainJob, v1::ExplainJobResponse)
  NIBBLE_UNARY(ListJobEvents, v1::ListJobEventsResponse)
  NIBBLE_UNARY(GetMetrics, v1::GetMetricsResponse)

  grpc::ServerWriteReactor<v1::WatchJobResponse>* WatchJob(
      CallbackServerContext* context, const v1::WatchJobRequest* request) override {
    return SourceStream<v1::WatchJobResponse>::Start(
        context, token_, [this, request](std::function<void()> wake) {
          return std::make_shared<WatchSource>(service_, *request, std::move(wake));
        });
  }

  grpc::ServerWriteReactor<v1::StreamLogsResponse>* StreamLogs(
      CallbackServerContext* context, const v1::StreamLogsRequest* request) override {
    return SourceStream<v1::StreamLogsResponse>::Start(
        context, token_, [this, request](std::function<void()> wake) {
          return std::make_shared<LogSource>(service_, *request, std::move(wake));
        });
  }

 private:
  ControllerService* const service_;
  const std::string token_;
};

class ClusterServiceImpl final : public v1::ClusterService::CallbackService {
 public:
  ClusterServiceImpl(ControllerService* service, std::string token)
      : service_(service), token_(std::move(token)) {}

  ServerUnaryReactor* ListNodes(CallbackServerContext* context, const v1::ListNodesRequest*,
                                v1::ListNodesResponse* response) override {
    return Answer(context, token_, service_->clock(), response,
                  [&](int64_t deadline, Done<v1::ListNodesResponse> done) {
                    service_->ListNodes(deadline, std::move(done));
                  });
  }
  NIBBLE_UNARY(DrainNode, v1::Node)
  NIBBLE_UNARY(UndrainNode, v1::Node)
  ServerUnaryReactor* GetServerInfo(CallbackServerContext* context, const v1::GetServerInfoRequest*,
                                    v1::ServerInfo* response) override {
    return Answer(context, token_, service_->clock(), response,
                  [&](int64_t, const Done<v1::ServerInfo>& done) {
                    done(Failure(), service_->GetServerInfo());
                  });
  }

 private:
  ControllerService* const service_;
  const std::string token_;
};

#undef NIBBLE_UNARY

}  // namespace

std::unique_ptr<grpc::Service> MakeJobService(ControllerService* service, std::string token) {
  return std::make_unique<JobServiceImpl>(service, std::move(token));
}

std::unique_ptr<grpc::Service> MakeClusterService(ControllerService* service, std::string token) {
  return std::make_unique<ClusterServiceImpl>(service, std::move(token));
}

}  // namespace nibble::rpc
