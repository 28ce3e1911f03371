// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/session.h"

#include <grpcpp/grpcpp.h>

#include <deque>
#include <utility>

#include "base/files.h"
#include "base/mutex.h"
#include "base/strings.h"
#include "nibble/v1/worker.grpc.pb.h"

namespace nibble::agent {
namespace {

constexpr int64_t kMaxCredentialBytes = 1 << 20;

Result<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const SessionOptions& options) {
  if (options.tls_ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.tls_ca, kMaxCredentialBytes));
  if (!options.tls_cert.empty()) {
    ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadFile(options.tls_cert, kMaxCredentialBytes));
    ASSIGN_OR_RETURN(ssl.pem_private_key, ReadFile(options.tls_key, kMaxCredentialBytes));
  }
  return grpc::SslCredentials(ssl);
}

std::shared_ptr<grpc::Channel> MakeChannel(const SessionOptions& options,
                                           std::shared_ptr<grpc::ChannelCredentials> credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // A connection of our own for each session: the agent's back-off is then the only one.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  return grpc::CreateCustomChannel(options.controller, credentials, arguments);
}

}  // namespace

// Lives from StartCall to OnDone; Session's destructor waits for the latter.
class Session::Stream : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::ControllerMessage> {
 public:
  Stream(int64_t number, SessionInbox& inbox) : number_(number), inbox_(inbox) {}

  Status Begin(const SessionOptions& options) {
    ASSIGN_OR_RETURN(auto credentials, Credentials(options));
    if (!options.token_file.empty()) {
      ASSIGN_OR_RETURN(const std::string text, ReadFile(options.token_file, kMaxCredentialBytes));
      context_.AddMetadata("authorization", "Bearer " + std::string(StrTrim(text)));
    }
    channel_ = MakeChannel(options, std::move(credentials));
    stub_ = v1::WorkerService::NewStub(channel_);
    stub_->async()->Session(&context_, this);
    AddHold();  // for writes and reads that start outside of reactions; removed by Break
    StartRead(&incoming_);
    StartCall();
    begun_ = true;
    return OkStatus();
  }

  // Cancels and waits for OnDone.
  void End() EXCLUDES(mutex_) {
    if (!begun_) return;
    context_.TryCancel();
    Break();
    MutexLock lock(mutex_);
    while (!done_) done_changed_.Wait(mutex_);
  }

  bool TrySend(v1::WorkerMessage message) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (broken_ || outbox_.size() >= kMaxOutbox) return false;
    outbox_.push_back(std::move(message));
    if (outbox_.size() == 1) StartWrite(&outbox_.front());
    return true;
  }

  bool HasRoom() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return !broken_ && outbox_.size() < kMaxOutbox;
  }

  void Continue() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (!broken_) StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override EXCLUDES(mutex_) {
    if (!ok) return Break();
    MutexLock lock(mutex_);
    outbox_.pop_front();
    if (!outbox_.empty() && !broken_) StartWrite(&outbox_.front());
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Break();
    SessionEvent event;
    event.session = number_;
    event.message = std::move(incoming_);
    inbox_.TryPush(std::move(event));  // room by construction: one message at a time
  }

  void OnDone(const grpc::Status& status) override EXCLUDES(mutex_) {
    SessionEvent event;
    event.session = number_;
    event.closed = true;
    event.status = Status(static_cast<StatusCode>(status.error_code()), status.error_message());
    if (status.ok()) event.status = UnavailableError("the controller closed the session");
    inbox_.PushDropOldest(std::move(event));
    MutexLock lock(mutex_);
    done_ = true;
    done_changed_.NotifyAll();
  }

 private:
  // No more reads and writes from outside: OnDone follows, with the status of the stream.
  void Break() EXCLUDES(mutex_) {
    {
      MutexLock lock(mutex_);
      if (broken_) return;
      broken_ = true;
    }
    RemoveHold();
  }

  const int64_t number_;
  SessionInbox& inbox_;
  std::shared_ptr<grpc::Channel> channel_;  // shared with the stub, as gRPC wants it
  std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  bool begun_ = false;
  v1::ControllerMessage incoming_;  // of the one read under way
  Mutex mutex_;
  CondVar done_changed_;
  std::deque<v1::WorkerMessage> outbox_ GUARDED_BY(mutex_);  // front is being written
  bool broken_ GUARDED_BY(mutex_) = false;
  bool done_ GUARDED_BY(mutex_) = false;
};

Session::Session() = default;

Session::~Session() {
  if (stream_ != nullptr) stream_->End();
}

Result<std::unique_ptr<Session>> Session::Open(const SessionOptions& options, int64_t number,
                                               SessionInbox& inbox) {
  std::unique_ptr<Session> session(new Session());
  session->stream_ = std::make_unique<Stream>(number, inbox);
  RETURN_IF_ERROR(session->stream_->Begin(options));
  return session;
}

bool Session::TrySend(v1::WorkerMessage message) { return stream_->TrySend(std::move(message)); }
bool Session::HasRoom() { return stream_->HasRoom(); }
void Session::Continue() { stream_->Continue(); }

}  // namespace nibble::agent
