// SPDX-License-Identifier: Apache-2.0
//
// StreamSource: where a server stream's messages come from, free of gRPC.
//
// The stream asks with Fetch, one at a time; the source answers once, from any thread, with a
// message, with the end, or with nothing: then the stream waits for the source's wake and asks
// again. Thread-safety: Fetch is never called while one is under way; wake comes from any thread.
#pragma once

#include <functional>
#include <optional>

#include "server/rpc/failure.h"

namespace nibble::rpc {

template <typename Message>
struct StreamItem {
  std::optional<Message> message;
  bool end = false;  // after the message, if there is one
  Failure failure;   // with `end`
};

template <typename Message>
class StreamSource {
 public:
  virtual ~StreamSource() = default;
  virtual void Fetch(std::function<void(StreamItem<Message>)> done) = 0;
};

}  // namespace nibble::rpc
