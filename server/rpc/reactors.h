// SPDX-License-Identifier: Apache-2.0
//
// Reactors: how gRPC's callback API meets the Service. Two shapes: a unary call answered once, and
// a server stream fed by a StreamSource.
//
// Ownership: a stream holds itself until gRPC is done with it; callbacks hold it weakly.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <utility>

#include "base/mutex.h"
#include "server/rpc/errors.h"
#include "server/rpc/service.h"
#include "server/rpc/stream_source.h"

namespace nibble::rpc {

// Calls `begin(deadline, done)` unless the caller is refused, and finishes with what `done` gets.
template <typename Response, typename Begin>
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const std::string& token,
                                 const Clock& clock, Response* response, Begin begin) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const Status allowed = CheckCaller(*context, token);
  if (!allowed.ok()) {
    reactor->Finish(ToGrpc(allowed, context));
    return reactor;
  }
  const int64_t deadline = DeadlineSteadyMs(*context, clock.SteadyMillis(), kDefaultCallMs);
  begin(deadline, [context, reactor, response](const Failure& failure, Response answer) {
    *response = std::move(answer);
    reactor->Finish(ToGrpc(failure, context));
  });
  return reactor;
}

template <typename Message>
class SourceStream : public grpc::ServerWriteReactor<Message>,
                     public std::enable_shared_from_this<SourceStream<Message>> {
 public:
  using MakeSource =
      std::function<std::shared_ptr<StreamSource<Message>>(std::function<void()> wake)>;

  static grpc::ServerWriteReactor<Message>* Start(grpc::CallbackServerContext* context,
                                                  const std::string& token,
                                                  const MakeSource& make_source) {
    auto stream = std::make_shared<SourceStream>(context);
    stream->self_ = stream;
    const Status allowed = CheckCaller(*context, token);
    if (!allowed.ok()) {
      stream->End(allowed);
      return stream.get();
    }
    stream->source_ = make_source([weak = stream->weak_from_this()] {
      if (const auto alive = weak.lock()) alive->Kick();
    });
    stream->Kick();
    return stream.get();
  }

  explicit SourceStream(grpc::CallbackServerContext* context) : context_(context) {}

  void OnWriteDone(bool ok) override {
    if (!ok) return End(CancelledError("the client went away"));
    if (end_after_write_) return End(failure_);
    Fetch();
  }
  void OnCancel() override {
    {
      MutexLock lock(mutex_);
      cancelled_ = true;
    }
    Kick();
  }
  void OnDone() override { self_.reset(); }

 private:
  // Begins to fetch unless something is under way, which then looks again when it is through.
  void Kick() {
    {
      MutexLock lock(mutex_);
      if (finished_) return;
      again_ = true;
      if (busy_) return;
      busy_ = true;
    }
    Fetch();
  }

  // Precondition: busy_, and nothing else runs for this stream.
  void Fetch() {
    bool cancelled = false;
    {
      MutexLock lock(mutex_);
      again_ = false;
      cancelled = cancelled_;
    }
    if (cancelled) return End(CancelledError("the call was cancelled"));
    source_->Fetch([stream = this->shared_from_this()](StreamItem<Message> item) {
      stream->OnItem(std::move(item));
    });
  }

  void OnItem(StreamItem<Message> item) {
    if (item.message.has_value()) {
      message_ = std::move(*item.message);
      end_after_write_ = item.end;
      failure_ = item.failure;
      return this->StartWrite(&message_);
    }
    if (item.end) return End(item.failure);
    {
      MutexLock lock(mutex_);
      if (!again_) {
        busy_ = false;
        return;
      }
    }
    Fetch();
  }

  void End(const Failure& failure) {
    {
      MutexLock lock(mutex_);
      if (finished_) return;
      finished_ = true;
    }
    this->Finish(ToGrpc(failure, context_));
  }

  grpc::CallbackServerContext* const context_;
  std::shared_ptr<SourceStream> self_;
  std::shared_ptr<StreamSource<Message>> source_;
  // Of the fetch or write under way.
  Message message_;
  bool end_after_write_ = false;
  Failure failure_;

  Mutex mutex_;
  bool busy_ GUARDED_BY(mutex_) = false;
  bool again_ GUARDED_BY(mutex_) = false;
  bool cancelled_ GUARDED_BY(mutex_) = false;
  bool finished_ GUARDED_BY(mutex_) = false;
};

}  // namespace nibble::rpc
