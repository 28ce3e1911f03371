// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/support/server_interceptor.h>

#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "server/rpc/http_server.h"
#include "server/rpc/service.h"
#include "server/rpc/services.h"

namespace nibble::rpc {
namespace {

constexpr int kMaxReceiveBytes = 16 << 20;
constexpr int kMaxSendBytes = 64 << 20;
constexpr size_t kMemoryQuotaBytes = size_t{512} << 20;
constexpr int kMaxStreamsPerConnection = 1000;
constexpr int kKeepaliveTimeMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinClientPingMs = 10'000;
constexpr int64_t kMaxPemBytes = 1 << 20;

// Times unary calls from arrival to answer.
class CallTimer : public grpc::experimental::Interceptor {
 public:
  CallTimer(Metrics* metrics, grpc::experimental::ServerRpcInfo* info)
      : metrics_(metrics),
        unary_(info->type() == grpc::experimental::ServerRpcInfo::Type::UNARY),
        method_(info->method()),
        start_(std::chrono::steady_clock::now()) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (unary_ && methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start_;
      const auto code = static_cast<StatusCode>(methods->GetSendStatus().error_code());
      metrics_->ObserveCall(method_.substr(method_.rfind('/') + 1),
                            code == StatusCode::kOk ? "OK" : StatusCodeName(code), took.count());
    }
    methods->Proceed();
  }

 private:
  Metrics* const metrics_;
  const bool unary_;
  const std::string method_;
  const std::chrono::steady_clock::time_point start_;
};

class CallTimerFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CallTimerFactory(Metrics* metrics) : metrics_(metrics) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new CallTimer(metrics_, info);
  }

 private:
  Metrics* const metrics_;
};

Result<std::shared_ptr<grpc::ServerCredentials>> Credentials(const ControllerOptions& options) {
  if (options.tls_cert.empty()) return grpc::InsecureServerCredentials();
  ASSIGN_OR_RETURN(const std::string cert, ReadFile(options.tls_cert, kMaxPemBytes));
  ASSIGN_OR_RETURN(const std::string key, ReadFile(options.tls_key, kMaxPemBytes));
  grpc::SslServerCredentialsOptions ssl(options.tls_ca.empty()
                                            ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                            : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_key_cert_pairs.push_back({key, cert});
  if (!options.tls_ca.empty()) {
    ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.tls_ca, kMaxPemBytes));
  }
  return grpc::SslServerCredentials(ssl);
}

void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder.SetMaxSendMessageSize(kMaxSendBytes);
  builder.SetResourceQuota(grpc::ResourceQuota("controller").Resize(kMemoryQuotaBytes));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second controller must notice
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingMs);
}

}  // namespace

struct ControllerServer::Impl {
  ControllerOptions options;
  std::unique_ptr<ControllerService> service;
  std::unique_ptr<grpc::Service> jobs;
  std::unique_ptr<grpc::Service> cluster;
  std::unique_ptr<grpc::Service> workers;
  std::unique_ptr<grpc::Server> grpc;
  std::unique_ptr<HttpServer> http;
  std::string address;
  std::string http_address;

  Status StartHttp();
  Status StartGrpc();
};

Status ControllerServer::Impl::StartHttp() {
  ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(options.http, "--http"));
  std::map<std::string, HttpServer::Handler> pages;
  pages["/metrics"] = [this] {
    return HttpResponse{200, "text/plain; version=0.0.4; charset=utf-8", service->RenderMetrics()};
  };
  pages["/sd"] = [this] {
    return HttpResponse{200, "application/json", service->RenderServiceDiscovery()};
  };
  pages["/healthz"] = [] { return HttpResponse{200, "text/plain", "ok\n"}; };
  pages["/readyz"] = [this] {
    const Status ready = service->Ready();
    return HttpResponse{ready.ok() ? 200 : 503, "text/plain", ready.ToString() + "\n"};
  };
  ASSIGN_OR_RETURN(http, HttpServer::Start(wanted, std::move(pages)));
  http_address = http->address().ToString();
  service->set_http_address(http_address);
  return OkStatus();
}

Status ControllerServer::Impl::StartGrpc() {
  ASSIGN_OR_RETURN(HostPort listen, ParseHostPort(options.listen, "--listen"));
  ASSIGN_OR_RETURN(const auto credentials, Credentials(options));
  grpc::EnableDefaultHealthCheckService(true);
  if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetLimits(builder);
  int port = 0;
  builder.AddListeningPort(listen.ToString(), credentials, &port);
  jobs = MakeJobService(service.get(), options.token);
  cluster = MakeClusterService(service.get(), options.token);
  workers = MakeWorkerService(service.get(), options.token, !options.tls_ca.empty());
  for (grpc::Service* one : {jobs.get(), cluster.get(), workers.get()}) {
    builder.RegisterService(one);
  }
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<CallTimerFactory>(&service->metrics()));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  grpc = builder.BuildAndStart();
  if (grpc == nullptr || port == 0) {
    return FailedPreconditionError("cannot listen on " + options.listen +
                                   ": the address is in use or not this machine's, or the "
                                   "certificate is not usable; choose another with --listen "
                                   "HOST:PORT (port 0 = any free)");
  }
  listen.port = port;
  address = listen.ToString();
  auto* health = grpc->GetHealthCheckService();
  for (const char* name :
       {"nibble.v1.JobService", "nibble.v1.ClusterService", "nibble.v1.WorkerService"}) {
    health->SetServingStatus(name, true);
  }
  return AtomicWriteFile(JoinPath(options.state_dir, kAddressFile), address + "\n");
}

ControllerServer::ControllerServer() : impl_(std::make_unique<Impl>()) {}

Result<std::unique_ptr<ControllerServer>> ControllerServer::Start(const ControllerOptions& options,
                                                                  const Clock& clock) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<ControllerServer> server(new ControllerServer());
  Impl& impl = *server->impl_;
  impl.options = options;
  ASSIGN_OR_RETURN(impl.service, ControllerService::Open(options, clock));
  impl.service->Start();
  RETURN_IF_ERROR(impl.StartHttp());
  RETURN_IF_ERROR(impl.StartGrpc());
  LogInfo("listening",
          {{"grpc", impl.address}, {"http", impl.http_address}, {"state_dir", options.state_dir}});
  return server;
}

ControllerServer::~ControllerServer() { Shutdown(std::chrono::milliseconds(0)); }

const std::string& ControllerServer::address() const { return impl_->address; }
const std::string& ControllerServer::http_address() const { return impl_->http_address; }

void ControllerServer::Shutdown(std::chrono::milliseconds patience) {
  if (impl_->service != nullptr) impl_->service->BeginStop();
  if (impl_->grpc != nullptr) {
    impl_->grpc->Shutdown(std::chrono::system_clock::now() + patience);
    impl_->grpc->Wait();
    impl_->grpc.reset();
  }
  impl_->http.reset();
  if (impl_->service != nullptr) impl_->service->Stop();
}

}  // namespace nibble::rpc
