// SPDX-License-Identifier: Apache-2.0
#include "client/lib/client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "base/files.h"
#include "base/ids.h"
#include "nibble/v1/controller.grpc.pb.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kMaxMessageBytes = 64 << 20;
constexpr int kMaxListedJobs = 10'000;
constexpr int kMaxPages = 1000;
constexpr milliseconds kFirstBackoff{100};
constexpr milliseconds kMaxBackoff{2'000};
constexpr int64_t kMaxCaFileBytes = 1 << 20;
// Streams carry a deadline too; past it they reconnect at their cursor.
constexpr std::chrono::minutes kStreamDeadline{30};
constexpr char kErrorTrailer[] = "nibble-error-bin";

// 100 ms, 200 ms, 400 ms ... up to kMaxBackoff, each times a factor in [0.5, 1].
milliseconds Backoff(int attempt) {
  thread_local std::minstd_rand random{std::random_device{}()};
  const double factor = std::uniform_real_distribution<double>(0.5, 1.0)(random);
  const double full = static_cast<double>(kFirstBackoff.count()) * std::pow(2.0, attempt);
  const double capped = std::min(full, static_cast<double>(kMaxBackoff.count()));
  return milliseconds(static_cast<int64_t>(capped * factor));
}

}  // namespace

struct Client::Impl {
  Impl(ConnectionOptions given, Interrupt& signal) : options(std::move(given)), interrupt(signal) {}

  const ConnectionOptions options;
  Interrupt& interrupt;
  std::unique_ptr<v1::JobService::Stub> jobs;
  std::unique_ptr<v1::ClusterService::Stub> cluster;
  v1::ErrorDetail last_error;

  void Prepare(grpc::ClientContext& context, steady_clock::duration deadline) const {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::duration_cast<std::chrono::system_clock::duration>(deadline));
    if (!options.token.empty()) {
      context.AddMetadata("authorization", "Bearer " + options.token);
    }
  }

  // grpc::Status to ours; keeps the details and says where the server was looked for.
  Status Convert(const grpc::Status& status, const grpc::ClientContext& context) {
    last_error.Clear();
    if (status.ok()) return OkStatus();
    const auto& trailers = context.GetServerTrailingMetadata();
    if (const auto found = trailers.find(kErrorTrailer); found != trailers.end()) {
      const std::string bytes(found->second.data(), found->second.size());
      if (!last_error.ParseFromString(bytes)) last_error.Clear();
    }
    if (interrupt.requested()) return CancelledError("interrupted");
    std::string message = status.error_message();
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      message = "cannot reach a controller at " + options.server + " (from " +
                options.server_source + "): " + message +
                "; start one with 'nibble up' or name another with --server";
    } else if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      message = "the controller at " + options.server + " did not answer within " +
                std::to_string(options.timeout.count()) + " ms; raise --timeout";
    } else if (status.error_code() == grpc::StatusCode::UNAUTHENTICATED) {
      message += "; give a token with --token-file or $NIBBLE_TOKEN";
    }
    return Status(static_cast<StatusCode>(status.error_code()), message);
  }

  template <typename Stub, typename Request, typename Response>
  Result<Response> Call(const std::unique_ptr<Stub>& stub,
                        grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                     Response*),
                        const Request& request) {
    const auto end = steady_clock::now() + options.timeout;
    for (int attempt = 0;; ++attempt) {
      grpc::ClientContext context;
      Prepare(context, end - steady_clock::now());
      Response response;
      grpc::Status result;
      {
        Interrupt::Registration on_interrupt(interrupt, [&context] { context.TryCancel(); });
        result = (stub.get()->*method)(&context, request, &response);
      }
      const Status status = Convert(result, context);
      if (status.ok()) return response;
      const milliseconds wait =
          std::max(Backoff(attempt), milliseconds(last_error.retry_after_ms()));
      if (status.code() != StatusCode::kUnavailable || attempt + 1 >= kMaxCallAttempts ||
          steady_clock::now() + wait >= end) {
        return status;
      }
      if (interrupt.WaitFor(wait)) return CancelledError("interrupted");
    }
  }

  // Opens `method` again and again until the server ends the stream well, `handler` has enough or
  // the reconnections are spent. `handler` updates `request` so that it resumes.
  template <typename Stub, typename Request, typename Response>
  Status Stream(const std::unique_ptr<Stub>& stub,
                std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*,
                                                                              const Request&),
                const Request& request, const std::function<void()>& on_open,
                const std::function<bool(const Response&)>& handler) {
    int failures = 0;
    bool ever_streamed = false;
    while (true) {
      on_open();
      grpc::ClientContext context;
      Prepare(context, kStreamDeadline);
      grpc::Status result;
      {
        Interrupt::Registration on_interrupt(interrupt, [&context] { context.TryCancel(); });
        const auto reader = (stub.get()->*method)(&context, request);
        Response response;
        while (reader->Read(&response)) {
          failures = 0;
          ever_streamed = true;
          if (!handler(response)) {
            context.TryCancel();
            reader->Finish();
            return interrupt.requested() ? CancelledError("interrupted") : OkStatus();
          }
        }
        result = reader->Finish();
      }
      const Status status = Convert(result, context);
      if (status.ok()) return status;
      const bool lost = status.code() == StatusCode::kUnavailable;
      if (!lost && status.code() != StatusCode::kDeadlineExceeded) return status;
      // A first connection that fails is like any other call; an established one is worth waiting.
      if (lost && ++failures >= (ever_streamed ? kMaxStreamReconnects : kMaxCallAttempts)) {
        return status;
      }
      if (interrupt.WaitFor(Backoff(failures))) return CancelledError("interrupted");
    }
  }
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::Connect(const ConnectionOptions& options,
                                                Interrupt& interrupt) {
  auto impl = std::make_unique<Impl>(options, interrupt);
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  if (options.tls_ca.empty()) {
    credentials = grpc::InsecureChannelCredentials();
  } else {
    grpc::SslCredentialsOptions ssl;
    ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.tls_ca, kMaxCaFileBytes));
    credentials = grpc::SslCredentials(ssl);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // the retries are ours
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(kFirstBackoff.count()));
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, static_cast<int>(kFirstBackoff.count()));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(kMaxBackoff.count()));
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto channel = grpc::CreateCustomChannel(options.server, credentials, arguments);
  impl->jobs = v1::JobService::NewStub(channel);
  impl->cluster = v1::ClusterService::NewStub(channel);
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

const v1::ErrorDetail& Client::last_error() const { return impl_->last_error; }
const ConnectionOptions& Client::options() const { return impl_->options; }

Result<v1::SubmitJobResponse> Client::SubmitJob(v1::SubmitJobRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomId("req"));
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::SubmitJob, request);
}

Result<v1::Job> Client::GetJob(const std::string& job) {
  v1::GetJobRequest request;
  request.set_job(job);
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::GetJob, request);
}

Result<std::vector<v1::Job>> Client::ListJobs(v1::ListJobsRequest request, int limit) {
  const int wanted = limit > 0 ? std::min(limit, kMaxListedJobs) : kMaxListedJobs;
  std::vector<v1::Job> jobs;
  for (int page = 0; page < kMaxPages; ++page) {
    request.set_page_size(std::min(1000, wanted - static_cast<int>(jobs.size())));
    ASSIGN_OR_RETURN(v1::ListJobsResponse response,
                     impl_->Call(impl_->jobs, &v1::JobService::Stub::ListJobs, request));
    for (v1::Job& job : *response.mutable_jobs()) jobs.push_back(std::move(job));
    if (response.next_page_token().empty() || static_cast<int>(jobs.size()) >= wanted) break;
    request.set_page_token(response.next_page_token());
  }
  return jobs;
}

Result<v1::Job> Client::CancelJob(v1::CancelJobRequest request) {
  if (request.request_id().empty()) request.set_request_id(RandomId("req"));
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::CancelJob, request);
}

Result<v1::Job> Client::PauseJob(const v1::PauseJobRequest& request) {
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::PauseJob, request);
}

Result<v1::Job> Client::ResumeJob(const v1::ResumeJobRequest& request) {
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::ResumeJob, request);
}

Result<v1::Job> Client::UpdateJob(const v1::UpdateJobRequest& request) {
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::UpdateJob, request);
}

Result<v1::ExplainJobResponse> Client::ExplainJob(const std::string& job) {
  v1::ExplainJobRequest request;
  request.set_job(job);
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::ExplainJob, request);
}

Result<std::vector<v1::JobEvent>> Client::ListJobEvents(const std::string& job) {
  v1::ListJobEventsRequest request;
  request.set_job(job);
  std::vector<v1::JobEvent> events;
  for (int page = 0; page < kMaxPages; ++page) {
    ASSIGN_OR_RETURN(v1::ListJobEventsResponse response,
                     impl_->Call(impl_->jobs, &v1::JobService::Stub::ListJobEvents, request));
    for (v1::JobEvent& event : *response.mutable_events()) events.push_back(std::move(event));
    if (response.next_page_token().empty()) break;
    request.set_page_token(response.next_page_token());
  }
  return events;
}

Result<v1::GetMetricsResponse> Client::GetMetrics(const v1::GetMetricsRequest& request) {
  return impl_->Call(impl_->jobs, &v1::JobService::Stub::GetMetrics, request);
}

Result<std::vector<v1::Node>> Client::ListNodes() {
  ASSIGN_OR_RETURN(
      v1::ListNodesResponse response,
      impl_->Call(impl_->cluster, &v1::ClusterService::Stub::ListNodes, v1::ListNodesRequest()));
  return std::vector<v1::Node>(response.nodes().begin(), response.nodes().end());
}

Result<v1::Node> Client::DrainNode(const v1::DrainNodeRequest& request) {
  return impl_->Call(impl_->cluster, &v1::ClusterService::Stub::DrainNode, request);
}

Result<v1::Node> Client::UndrainNode(const v1::UndrainNodeRequest& request) {
  return impl_->Call(impl_->cluster, &v1::ClusterService::Stub::UndrainNode, request);
}

Result<v1::ServerInfo> Client::GetServerInfo() {
  return impl_->Call(impl_->cluster, &v1::ClusterService::Stub::GetServerInfo,
                     v1::GetServerInfoRequest());
}

Status Client::WatchJob(v1::WatchJobRequest request,
                        const std::function<bool(const v1::WatchJobResponse&)>& handler) {
  const std::function<bool(const v1::WatchJobResponse&)> resume =
      [&](const v1::WatchJobResponse& response) {
        request.set_cursor(std::max(request.cursor(), response.cursor()));
        return handler(response);
      };
  return impl_->Stream(
      impl_->jobs, &v1::JobService::Stub::WatchJob, request, [] {}, resume);
}

Status Client::StreamLogs(v1::StreamLogsRequest request,
                          const std::function<bool(const v1::StreamLogsResponse&)>& handler) {
  // A reconnection asks for lines from the newest line's time on; of the lines that bear that very
  // time, `handled` came before and are skipped once.
  int64_t newest_ms = 0, handled = 0, skip = 0;
  const auto on_open = [&] { skip = handled; };
  const std::function<bool(const v1::StreamLogsResponse&)> resume =
      [&](const v1::StreamLogsResponse& line) {
        if (skip > 0 && line.time_ms() == newest_ms) {
          --skip;
          return true;
        }
        handled = line.time_ms() == newest_ms ? handled + 1 : 1;
        newest_ms = line.time_ms();
        request.set_since_ms(newest_ms);
        request.set_attempt(line.attempt());
        request.set_tail(0);
        return handler(line);
      };
  return impl_->Stream(impl_->jobs, &v1::JobService::Stub::StreamLogs, request, on_open, resume);
}

}  // namespace nibble
