// SPDX-License-Identifier: Apache-2.0
//
// LogSource: the lines of one StreamLogs call, one attempt and rank, followed when asked.
//
// Ownership: as WatchSource. Invariant: every stored line that the request asks for is sent once,
// in order; with `follow` the stream ends after the attempt's last line.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "server/rpc/service.h"
#include "server/rpc/stream_source.h"

namespace nibble::rpc {

class LogSource : public StreamSource<v1::StreamLogsResponse>,
                  public std::enable_shared_from_this<LogSource> {
 public:
  using Reply = std::function<void(StreamItem<v1::StreamLogsResponse>)>;

  LogSource(ControllerService* service, v1::StreamLogsRequest request, std::function<void()> wake);
  void Fetch(Reply done) override;

 private:
  void Look(const Reply& done);
  void OnLook(const Failure& failure, const ControllerService::AttemptSight& sight,
              const Reply& done);
  void Read(const Reply& done);  // on the executor
  void Answer(const Reply& done);

  ControllerService* const service_;
  const v1::StreamLogsRequest request_;
  const std::function<void()> wake_;

  std::string job_id_;
  int attempt_ = 0;  // 0 = not known yet
  std::shared_ptr<Subscription> subscription_;
  bool settled_ = false;  // no line can follow those stored
  bool started_ = false;  // `tail` was applied
  bool at_end_ = false;   // the last read found nothing
  int64_t offset_ = 0;
  std::deque<store::LogLine> lines_;
};

}  // namespace nibble::rpc
