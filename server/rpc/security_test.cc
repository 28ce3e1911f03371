// SPDX-License-Identifier: Apache-2.0
//
// Who may call, over what, and what else the server promises to programs: tokens, TLS, refusals at
// the start, health, deadlines, HTTP.
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>

#include <string>

#include "base/process.h"
#include "base/strings.h"
#include "server/rpc/server_test_support.h"
#include "tests/support/http_get.h"

namespace nibble::rpc {
namespace {

constexpr char kToken[] = "0123456789abcdef";

grpc::StatusCode ListCode(const std::shared_ptr<grpc::Channel>& channel, const std::string& token) {
  Context context(token);
  v1::ListJobsResponse response;
  return v1::JobService::NewStub(channel)->ListJobs(context, {}, &response).error_code();
}

// HealthCheckRequest{service = 1} by hand: Debian ships no health.proto.
std::string Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  std::string request;
  if (!service.empty()) {
    request = std::string("\x0a") + static_cast<char>(service.size()) + service;
  }
  const grpc::Slice slice(request);
  const grpc::ByteBuffer in(&slice, 1);
  grpc::ByteBuffer out;
  Context context;
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                         grpc::internal::RpcMethod::NORMAL_RPC);
  const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      channel.get(), method, context, in, &out);
  if (!status.ok()) return StatusCodeName(static_cast<StatusCode>(status.error_code()));
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(out.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return bytes == "\x08\x01" ? "SERVING" : "NOT_SERVING";
}

// "200 text/plain; version=0.0.4 <body>", or why there was no answer.
std::string Fetch(const std::string& address, const std::string& path) {
  const int64_t port = ParseInt(address.substr(address.rfind(':') + 1)).value_or(0);
  const auto response = testing::HttpGet(static_cast<int>(port), path);
  if (!response.ok()) return response.status().ToString();
  return std::to_string(response->code) + " " + response->content_type + " " + response->body;
}

bool HasProgram(const char* path) { return PathExists(path); }

TEST(Security, TokenIsDemandedOnEveryCallAlsoOnLoopback) {
  ControllerOptions options = FastOptions("");
  options.token = kToken;
  TestServer server(options);
  EXPECT_EQ(ListCode(server.Channel(), ""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(ListCode(server.Channel(), "wrong-token-here"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(ListCode(server.Channel(), kToken), grpc::StatusCode::OK);
  {
    StreamWorker worker(server.Channel());
    EXPECT_EQ(worker.AwaitEnd().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  StreamWorker worker(server.Channel(), kToken);
  worker.Send(RegisterMessage("w-1"));
  worker.inbox().AwaitRegistered();
  Context context;
  v1::WatchJobRequest watch;
  auto reader = server.Jobs()->WatchJob(context, watch);
  v1::WatchJobResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(context.Detail().reason(), "Unauthenticated");
}

TEST(Security, NonLoopbackAddressWithoutTokenOrTlsIsRefused) {
  TempDirectory directory;
  ControllerOptions options = FastOptions(directory.path());
  options.listen = "0.0.0.0:0";
  auto started = ControllerServer::Start(options, Clock::Real());
  ASSERT_FALSE(started.ok());
  EXPECT_NE(started.status().message().find("--token-file"), std::string::npos);
  options.token = kToken;
  started = ControllerServer::Start(options, Clock::Real());
  ASSERT_FALSE(started.ok());
  EXPECT_NE(started.status().message().find("--insecure"), std::string::npos);
}

// A certificate authority, and a certificate it signed for `name`.
void MakeCertificate(const std::string& directory, const std::string& name) {
  const auto at = [&directory](const std::string& file) { return JoinPath(directory, file); };
  const auto run = [](const std::vector<std::string>& argv) {
    const auto output = RunCommand(argv);
    ASSERT_TRUE(output.ok() && output->status.success())
        << (output.ok() ? output->output : output.status().ToString());
  };
  const std::string openssl = "/usr/bin/openssl";
  if (!PathExists(at("ca.crt"))) {
    run({openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", at("ca.key"), "-out", at("ca.crt"), "-days", "2", "-subj",
         "/CN=test authority"});
  }
  ASSERT_TRUE(AtomicWriteFile(at("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").ok());
  run({openssl, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
       at(name + ".key"), "-out", at(name + ".csr"), "-subj", "/CN=" + name});
  run({openssl, "x509", "-req", "-in", at(name + ".csr"), "-CA", at("ca.crt"), "-CAkey",
       at("ca.key"), "-CAcreateserial", "-out", at(name + ".crt"), "-days", "2", "-extfile",
       at("san")});
}

TEST(Security, TlsServesPeopleWithTokenAndWorkersWithCertificate) {
  if (!HasProgram("/usr/bin/openssl")) GTEST_SKIP() << "openssl is not installed";
  TempDirectory keys;
  MakeCertificate(keys.path(), "server");
  MakeCertificate(keys.path(), "worker");
  ControllerOptions options = FastOptions("");
  options.token = kToken;
  options.tls_cert = JoinPath(keys.path(), "server.crt");
  options.tls_key = JoinPath(keys.path(), "server.key");
  options.tls_ca = JoinPath(keys.path(), "ca.crt");
  TestServer server(options);
  EXPECT_EQ(ListCode(server.Channel(), kToken), grpc::StatusCode::UNAVAILABLE);  // clear text
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = ReadFile(options.tls_ca).value();
  const auto people = server.Channel(grpc::SslCredentials(ssl));
  EXPECT_EQ(ListCode(people, ""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(ListCode(people, kToken), grpc::StatusCode::OK);
  {
    StreamWorker worker(people, kToken);
    EXPECT_EQ(worker.AwaitEnd().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  ssl.pem_cert_chain = ReadFile(JoinPath(keys.path(), "worker.crt")).value();
  ssl.pem_private_key = ReadFile(JoinPath(keys.path(), "worker.key")).value();
  StreamWorker worker(server.Channel(grpc::SslCredentials(ssl)), kToken);
  worker.Send(RegisterMessage("w-1"));
  worker.inbox().AwaitRegistered();
}

TEST(Security, MissingCertificateFileIsNamed) {
  TempDirectory directory;
  ControllerOptions options = FastOptions(directory.path());
  options.tls_cert = "/no/such/server.crt";
  options.tls_key = "/no/such/server.key";
  const auto started = ControllerServer::Start(options, Clock::Real());
  ASSERT_FALSE(started.ok());
  EXPECT_NE(started.status().message().find("/no/such/server.crt"), std::string::npos);
}

TEST(Server, SecondControllerOnTheSameStateDirectoryIsRefused) {
  TestServer server;
  const auto second = ControllerServer::Start(FastOptions(server.state_dir()), Clock::Real());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(second.status().message().find(server.state_dir()), std::string::npos);
}

TEST(Server, PortInUseIsNamedForBothPorts) {
  TestServer server;
  TempDirectory directory;
  ControllerOptions options = FastOptions(directory.path());
  options.listen = server.server().address();
  auto second = ControllerServer::Start(options, Clock::Real());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find(server.server().address()), std::string::npos);
  options = FastOptions(directory.path());
  options.http = server.server().http_address();
  second = ControllerServer::Start(options, Clock::Real());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("--http"), std::string::npos);
}

TEST(Server, AddressFileNamesTheRealPort) {
  TestServer server;
  EXPECT_EQ(ReadFile(JoinPath(server.state_dir(), kAddressFile)).value(),
            server.server().address() + "\n");
}

TEST(Server, HealthServiceAnswersPerService) {
  TestServer server;
  EXPECT_EQ(Health(server.Channel(), ""), "SERVING");
  EXPECT_EQ(Health(server.Channel(), "nibble.v1.JobService"), "SERVING");
  EXPECT_EQ(Health(server.Channel(), "nibble.v1.WorkerService"), "SERVING");
  EXPECT_EQ(Health(server.Channel(), "nibble.v1.Nothing"), "NOT_FOUND");
}

TEST(Server, ExpiredDeadlineIsReportedToTheCaller) {
  TestServer server;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
  v1::ListJobsResponse response;
  EXPECT_EQ(server.Jobs()->ListJobs(&context, {}, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST(Server, TooLargeMessageIsRefused) {
  TestServer server;
  v1::SubmitJobRequest request;
  *request.mutable_spec() = SmallSpec("large");
  (*request.mutable_spec()->mutable_metadata()->mutable_annotations())["a"] =
      std::string(17 << 20, 'x');
  Context context;
  v1::SubmitJobResponse response;
  EXPECT_EQ(server.Jobs()->SubmitJob(context, request, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Server, HttpServesMetricsDiscoveryHealthAndReadiness) {
  TestServer server;
  const std::string address = server.server().http_address();
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  worker.inbox().AwaitRegistered();
  EXPECT_EQ(ListCode(server.Channel(), ""), grpc::StatusCode::OK);
  EXPECT_TRUE(Eventually([&] {
    return Fetch(address, "/metrics").find("nibble_worker_up{worker=\"w-1\"} 1") !=
           std::string::npos;
  }));
  const std::string metrics = Fetch(address, "/metrics");
  EXPECT_NE(metrics.find("text/plain; version=0.0.4"), std::string::npos);
  EXPECT_NE(metrics.find("nibble_devices{pool=\"main\",kind=\"cpu\",state=\"free\"} 1"),
            std::string::npos);
  EXPECT_NE(metrics.find("nibble_rpc_duration_seconds_count{code=\"OK\",method=\"ListJobs\"} 1"),
            std::string::npos);
  EXPECT_NE(Fetch(address, "/sd").find(R"([{"targets":["127.0.0.1:9"])"), std::string::npos);
  EXPECT_EQ(Fetch(address, "/healthz").find("200 "), 0u);
  EXPECT_EQ(Fetch(address, "/readyz").find("200 "), 0u);
  EXPECT_NE(Fetch(address, "/nothing").find("/healthz /metrics /readyz /sd"), std::string::npos);
}

}  // namespace
}  // namespace nibble::rpc
