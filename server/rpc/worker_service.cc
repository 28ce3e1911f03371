// SPDX-License-Identifier: Apache-2.0
//
// WorkerService.Session over gRPC's callback API: one stream per worker.
//
// A session reads one message at a time and writes from a bounded queue. It ends when the worker
// goes away, when a newer session of the worker replaces it, or when the worker reads too slowly.
#include <deque>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "nibble/v1/worker.grpc.pb.h"
#include "server/rpc/errors.h"
#include "server/rpc/services.h"

namespace nibble::rpc {
namespace {

class SessionStream final
    : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::ControllerMessage>,
      public Outbox,
      public std::enable_shared_from_this<SessionStream> {
 public:
  SessionStream(ControllerService* service, grpc::CallbackServerContext* context)
      : service_(service), context_(context), session_(RandomId("s")) {}

  void Begin() {
    self_ = shared_from_this();
    StartRead(&incoming_);
  }
  void Refuse(const Status& why) {
    self_ = shared_from_this();
    End(why);
  }

  void Send(v1::ControllerMessage message) override {
    bool overflow = false;
    {
      MutexLock lock(mutex_);
      if (ending_) return;
      overflow = outgoing_.size() >= kMaxOutbox;
      if (!overflow) outgoing_.push_back(std::move(message));
    }
    if (overflow) return End(AbortedError("the worker reads too slowly; register again"));
    WriteNext();
  }
  void Close(const Status& why) override { End(why); }

  void OnReadDone(bool ok) override {
    if (!ok) return End(OkStatus());
    if (worker_id_.empty()) {
      if (!incoming_.has_register_() || !IsValidName(incoming_.register_().worker_id())) {
        return End(InvalidArgumentError(
            "the first message of a session must be Register with a worker_id of a-z, 0-9, '-'"));
      }
      worker_id_ = incoming_.register_().worker_id();
    } else if (incoming_.has_register_()) {
      return End(FailedPreconditionError("a session registers once; open a new one"));
    }
    service_->OnWorkerMessage(session_, worker_id_, std::move(incoming_), shared_from_this());
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mutex_);
      writing_ = false;
      if (!ok) outgoing_.clear();
    }
    if (!ok) return End(OkStatus());
    WriteNext();
  }

  void OnCancel() override { End(CancelledError("the worker went away")); }

  void OnDone() override {
    if (!worker_id_.empty()) service_->OnSessionClosed(session_, worker_id_);
    self_.reset();
  }

 private:
  // Starts the next write, or finishes the stream when it is ending and nothing is left to write.
  void WriteNext() {
    bool finish = false;
    {
      MutexLock lock(mutex_);
      if (writing_ || finished_) return;
      if (ending_) {
        finish = finished_ = true;
      } else if (outgoing_.empty()) {
        return;
      } else {
        writing_ = true;
        message_ = std::move(outgoing_.front());
        outgoing_.pop_front();
      }
    }
    if (finish) return Finish(ToGrpc(Failure(end_status_), context_));
    StartWrite(&message_);
  }

  void End(const Status& status) {
    {
      MutexLock lock(mutex_);
      if (ending_) return;
      ending_ = true;
      end_status_ = status;
      outgoing_.clear();
    }
    WriteNext();
  }

  ControllerService* const service_;
  grpc::CallbackServerContext* const context_;
  const std::string session_;
  std::shared_ptr<SessionStream> self_;
  v1::WorkerMessage incoming_;     // reading reactions only
  std::string worker_id_;          // reading reactions, then OnDone
  v1::ControllerMessage message_;  // of the write under way

  Mutex mutex_;
  std::deque<v1::ControllerMessage> outgoing_ GUARDED_BY(mutex_);
  bool writing_ GUARDED_BY(mutex_) = false;
  bool ending_ GUARDED_BY(mutex_) = false;
  bool finished_ GUARDED_BY(mutex_) = false;
  Status end_status_;  // set once with ending_
};

class WorkerServiceImpl final : public v1::WorkerService::CallbackService {
 public:
  WorkerServiceImpl(ControllerService* service, std::string token, bool demand_certificate)
      : service_(service), token_(std::move(token)), demand_certificate_(demand_certificate) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::ControllerMessage>* Session(
      grpc::CallbackServerContext* context) override {
    auto stream = std::make_shared<SessionStream>(service_, context);
    Status allowed = CheckCaller(*context, token_);
    if (allowed.ok() && demand_certificate_ && !context->auth_context()->IsPeerAuthenticated()) {
      allowed = UnauthenticatedError(
          "this controller was started with --tls-ca: a worker must show a certificate that the "
          "authority signed");
    }
    if (allowed.ok()) {
      stream->Begin();
    } else {
      stream->Refuse(allowed);
    }
    return stream.get();
  }

 private:
  ControllerService* const service_;
  const std::string token_;
  const bool demand_certificate_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(ControllerService* service, std::string token,
                                                 bool demand_certificate) {
  return std::make_unique<WorkerServiceImpl>(service, std::move(token), demand_certificate);
}

}  // namespace nibble::rpc
