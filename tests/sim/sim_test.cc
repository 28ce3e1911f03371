// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "base/strings.h"
#include "tests/sim/world.h"

namespace nibble::sim {
namespace {

// NIBBLE_SIM_SEEDS=FIRST-LAST runs other seeds, e.g. many of them overnight.
std::pair<uint64_t, uint64_t> Seeds() {
  const char* text = std::getenv("NIBBLE_SIM_SEEDS");
  if (text == nullptr) return {1, 24};
  const auto parts = StrSplit(text, '-');
  const auto first = ParseInt(parts.front());
  const auto last = ParseInt(parts.back());
  EXPECT_TRUE(first.ok() && last.ok()) << "NIBBLE_SIM_SEEDS=" << text << " is not FIRST-LAST";
  return {static_cast<uint64_t>(first.value_or(1)), static_cast<uint64_t>(last.value_or(1))};
}

class Quiet {
 public:
  Quiet() { SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1)); }
  ~Quiet() { SetLogLevel(LogLevel::kInfo); }
};

TEST(Simulation, FaultsOfManySeedsThenNoInvariantBreaksAndEveryJobEnds) {
  const Quiet quiet;
  const auto [first, last] = Seeds();
  std::map<std::string, int> ended;
  int64_t events = 0;
  int kills = 0;
  for (uint64_t seed = first; seed <= last; ++seed) {
    World world({.seed = seed});
    const Report report = world.Run();
    ASSERT_EQ(report.violation, "");
    events += report.events;
    kills += report.controller_kills;
    for (const auto& [state, count] : report.ended) ended[state] += count;
  }
  std::printf("seeds %llu-%llu: %lld events, %d controller kills;", (unsigned long long)first,
              (unsigned long long)last, (long long)events, kills);
  for (const auto& [state, count] : ended) std::printf(" %d %s", count, state.c_str());
  std::printf("\n");
  // The runs are only worth something if they reach the interesting ends.
  EXPECT_GT(kills, 0);
  for (const char* state : {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"}) {
    EXPECT_GT(ended[state], 0) << state;
  }
}

TEST(Simulation, SameSeedThenSameHistory) {
  const Quiet quiet;
  const Report first = World({.seed = 7, .fault_seconds = 900}).Run();
  const Report second = World({.seed = 7, .fault_seconds = 900}).Run();
  EXPECT_EQ(first.violation, "");
  EXPECT_EQ(first.events, second.events);
  EXPECT_EQ(first.steps, second.steps);
  EXPECT_EQ(first.ended, second.ended);
}

}  // namespace
}  // namespace nibble::sim
