// SPDX-License-Identifier: Apache-2.0
//
// For the tests over gRPC: a server in this process on a free port, its stubs, and a worker that
// holds a real session stream.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "nibble/v1/controller.grpc.pb.h"
#include "nibble/v1/errors.pb.h"
#include "nibble/v1/worker.grpc.pb.h"
#include "server/rpc/errors.h"
#include "server/rpc/server.h"
#include "server/rpc/test_support.h"

namespace nibble::rpc {

inline ControllerOptions FastOptions(const std::string& state_dir) {
  ControllerOptions options;
  options.listen = "127.0.0.1:0";
  options.http = "127.0.0.1:0";
  options.state_dir = state_dir;
  options.version = "0.1.0-test";
  options.heartbeat_ms = 100;
  return options;
}

// A context with a deadline and, when given, a token.
class Context {
 public:
  explicit Context(const std::string& token = "") {
    context_.set_deadline(std::chrono::system_clock::now() + kTestPatience);
    if (!token.empty()) context_.AddMetadata("authorization", "Bearer " + token);
  }
  operator grpc::ClientContext*() { return &context_; }  // NOLINT(google-explicit-constructor)
  grpc::ClientContext* operator->() { return &context_; }

  // The ErrorDetail of a failed call; empty when it has none.
  v1::ErrorDetail Detail() const {
    v1::ErrorDetail detail;
    const auto& trailers = context_.GetServerTrailingMetadata();
    const auto found = trailers.find(kErrorTrailer);
    if (found != trailers.end()) {
      detail.ParseFromArray(found->second.data(), static_cast<int>(found->second.size()));
    }
    return detail;
  }

 private:
  grpc::ClientContext context_;
};

class TestServer {
 public:
  TestServer() { Start(FastOptions(directory_.path())); }
  explicit TestServer(ControllerOptions options) {
    options.state_dir = directory_.path();
    Start(options);
  }

  void Restart() {
    server_.reset();
    Start(options_);
  }

  const std::string& state_dir() const { return directory_.path(); }
  ControllerServer& server() { return *server_; }
  std::shared_ptr<grpc::Channel> Channel(const std::shared_ptr<grpc::ChannelCredentials>&
                                             credentials = grpc::InsecureChannelCredentials()) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server_->address(), credentials, arguments);
  }
  std::unique_ptr<v1::JobService::Stub> Jobs() { return v1::JobService::NewStub(Channel()); }

 private:
  void Start(const ControllerOptions& options) {
    options_ = options;
    Result<std::unique_ptr<ControllerServer>> server =
        ControllerServer::Start(options, Clock::Real());
    if (!server.ok()) {
      ADD_FAILURE() << server.status().ToString();
      std::abort();
    }
    server_ = std::move(*server);
  }

  TempDirectory directory_;
  ControllerOptions options_;
  std::unique_ptr<ControllerServer> server_;
};

// A worker's end of a session stream, read by a thread of its own.
class StreamWorker {
 public:
  explicit StreamWorker(const std::shared_ptr<grpc::Channel>& channel,
                        const std::string& token = "")
      : stub_(v1::WorkerService::NewStub(channel)) {
    if (!token.empty()) context_.AddMetadata("authorization", "Bearer " + token);
    stream_ = stub_->Session(&context_);
    reader_ = std::thread([this] {
      v1::ControllerMessage message;
      while (stream_->Read(&message)) inbox_.Add(message);
      inbox_.SetClosed("stream ended");
    });
  }
  ~StreamWorker() {
    if (reader_.joinable()) Finish();
  }

  void Send(const v1::WorkerMessage& message) { stream_->Write(message); }
  Inbox& inbox() { return inbox_; }
  // Ends the stream from this side unless the server did, and returns how it ended.
  grpc::Status Finish() {
    stream_->WritesDone();
    reader_.join();
    return stream_->Finish();
  }
  // Waits for the server to end the stream.
  grpc::Status AwaitEnd() {
    EXPECT_TRUE(Eventually([this] { return !inbox_.closed().empty(); }));
    return Finish();
  }

 private:
  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::ControllerMessage>> stream_;
  Inbox inbox_;
  std::thread reader_;
};

}  // namespace nibble::rpc
