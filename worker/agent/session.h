// SPDX-License-Identifier: Apache-2.0
//
// Session: one stream to the controller, from its opening to its end.
//
// Purpose: hides the gRPC callback API. What arrives goes to an inbox; what is sent waits in a
// bounded outbox. Nothing here is retried: the agent sends again what was not acknowledged.
// Thread-safety: thread-safe; gRPC's threads fill the inbox. Ownership: owns the stream; the
// destructor cancels it and waits for its end. Limits: one message from the controller waits in
// the inbox at a time (the next is read when Continue is called), kMaxOutbox messages wait to be
// written.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bounded_queue.h"
#include "base/status.h"
#include "nibble/v1/worker.pb.h"

namespace nibble::agent {

inline constexpr size_t kMaxOutbox = 64;
inline constexpr int kMaxMessageBytes = 8 * 1024 * 1024;  // a batch of telemetry is below 1 MiB
inline constexpr int kConnectTimeoutMs = 5'000;

struct SessionOptions {
  std::string controller;  // host:port
  std::string token_file;  // "" = no token; read again for each session
  std::string tls_ca;      // PEM file; "" = no TLS
  std::string tls_cert;    // PEM files of this worker for mutual TLS; both or neither
  std::string tls_key;
};

struct SessionEvent {
  int64_t session = 0;
  bool closed = false;  // the last event of a session, with the reason in `status`
  Status status;
  v1::ControllerMessage message;
};

// What a session tells its owner: at most one message and one closing at a time.
using SessionInbox = BoundedQueue<SessionEvent>;
inline constexpr size_t kInboxCapacity = 16;

class Session {
 public:
  // Opens the stream; failing to connect is told by a closing event. INVALID_ARGUMENT or
  // NOT_FOUND for credentials that cannot be read.
  static Result<std::unique_ptr<Session>> Open(const SessionOptions& options, int64_t number,
                                               SessionInbox& inbox);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // False when the outbox is full or the stream has ended; nothing is kept then.
  bool TrySend(v1::WorkerMessage message);
  // True while TrySend would take a message.
  bool HasRoom();
  // Reads the next message. Call once for each message event handled.
  void Continue();

 private:
  class Stream;
  Session();
  std::unique_ptr<Stream> stream_;
};

}  // namespace nibble::agent
