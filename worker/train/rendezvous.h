// SPDX-License-Identifier: Apache-2.0
//
// Rendezvous: how the ranks of a run find each other: files in a folder that all of them see.
//
// Every rank announces itself; rank 0 publishes a word (NCCL's unique id) for exactly the ranks
// that it saw. What an earlier run left in the folder is never taken for this one's: announcements
// carry a word of their own, and the publication repeats those it is for. Thread-safety: one
// thread. Ownership: none; the files stay.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble {

class Rendezvous {
 public:
  struct Options {
    std::string folder;  // the same for all ranks of one attempt
    int rank = 0;
    int world_size = 1;
    std::chrono::milliseconds timeout = std::chrono::minutes(5);  // until all have announced
    std::chrono::milliseconds grace = std::chrono::seconds(5);    // for others to say they are late
    std::chrono::milliseconds poll = std::chrono::milliseconds(20);
  };
  explicit Rendezvous(Options options);

  // The word that rank 0 makes, on every rank. A world of 1 makes it and touches no file.
  // UNAVAILABLE after the time-out, naming the ranks that have not come.
  Result<std::string> Exchange(const std::function<Result<std::string>()>& make);

  // Which ranks are behind: called by a rank that waits in vain in its collective number
  // `collective`. Says so in a file, gives the others time to say the same, and names those that
  // have not: "rank 2" or "ranks 1, 3"; "no rank" when all wait in the same one.
  std::string Late(int64_t collective) const;

 private:
  Status Announce();
  Result<std::string> Publish(const std::function<Result<std::string>()>& make);
  Result<std::string> Receive();
  std::vector<int> Absent() const;
  std::string PathOf(const char* kind, int rank) const;
  Status TimeOut(const std::vector<int>& absent) const;

  Options options_;
  std::string word_;  // of this rank's announcement
};

// "rank 2", "ranks 1, 3", "no rank".
std::string RankNames(const std::vector<int>& ranks);

}  // namespace nibble
