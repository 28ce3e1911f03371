// SPDX-License-Identifier: Apache-2.0
//
// kill -9 of controller, worker and trainer at random moments: the job still ends with exactly the
// weights of an undisturbed run.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <thread>

#include "tests/e2e/cluster_harness.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kDisturbances = 9;

// The seed of the random moments: printed, and settable to repeat a run.
unsigned Seed() {
  const char* text = std::getenv("NIBBLE_CHAOS_SEED");
  return text != nullptr ? static_cast<unsigned>(std::atoi(text)) : 20260101u;
}

TEST(Kill, AnyProcessAtAnyMomentDoesNotChangeTheResult) {
  if (!ProgramsAreBuilt()) GTEST_SKIP() << "the programs are not built; build target 'programs'";
  auto created = ClusterHarness::Create();
  ASSERT_TRUE(created.ok()) << created.status().ToString();
  ClusterHarness& cluster = **created;
  ASSERT_TRUE(cluster.StartController().ok());
  ASSERT_TRUE(cluster.StartWorker().ok());
  ASSERT_TRUE(cluster.WaitForWorker(seconds(30)).ok());
  const std::vector<std::string> longer = {"schedule.steps=400", "checkpoint.everySteps=20"};

  const auto calm = cluster.Submit(longer);
  ASSERT_TRUE(calm.ok()) << calm.status().ToString();
  const auto reference = cluster.WaitForEnd(*calm, seconds(120));
  ASSERT_TRUE(reference.ok()) << reference.status().ToString();
  ASSERT_EQ(StateOf(*reference), "SUCCEEDED") << reference->Dump(2);

  const auto job = cluster.Submit(longer);
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  std::mt19937 random(Seed());
  std::printf("seed %u (set NIBBLE_CHAOS_SEED to repeat)\n", Seed());
  for (int i = 0; i < kDisturbances; ++i) {
    std::this_thread::sleep_for(milliseconds(random() % 900));
    const unsigned victim = (random() + i) % 3;
    std::printf("disturbance %d: %s\n", i,
                victim == 0   ? "controller"
                : victim == 1 ? "worker"
                              : "trainer");
    if (victim == 0) {
      ASSERT_TRUE(cluster.KillController().ok());
      std::this_thread::sleep_for(milliseconds(random() % 500));
      ASSERT_TRUE(cluster.StartController().ok());
    } else if (victim == 1) {
      ASSERT_TRUE(cluster.KillWorker().ok());
      std::this_thread::sleep_for(milliseconds(random() % 500));
      ASSERT_TRUE(cluster.StartWorker().ok());
    } else {
      ASSERT_TRUE(cluster.KillTrainers().ok());
    }
  }
  const auto ended = cluster.WaitForEnd(*job, seconds(180));
  ASSERT_TRUE(ended.ok()) << ended.status().ToString();
  EXPECT_EQ(StateOf(*ended), "SUCCEEDED") << ended->Dump(2);
  EXPECT_EQ(cluster.WeightsHash(*ended).value(), cluster.WeightsHash(*reference).value());
  EXPECT_TRUE(cluster.TrainerPids().empty());
}

}  // namespace
}  // namespace nibble
