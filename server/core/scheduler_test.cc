// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "server/core/test_util.h"

namespace nibble::core {
namespace {

JobSpec Gang(int nodes, int slots, int priority = 0) {
  JobSpec spec = Driver::Spec();
  spec.resources.nodes = nodes;
  spec.resources.slots_per_node = slots;
  spec.priority = priority;
  return spec;
}

Explanation Why(Driver& driver, const std::string& id) {
  return driver.controller().Explain(id, driver.Now().wall_ms).value();
}

TEST(Scheduler, PriorityThenSubmitTimeDecides) {
  Driver driver;
  const std::string a = driver.Submit(Gang(1, 1));
  driver.now_ms += 1;
  const std::string b = driver.Submit(Gang(1, 1));
  driver.now_ms += 1;
  const std::string c = driver.Submit(Gang(1, 1, 9));
  driver.Join("w-1", 2);
  driver.Do(Tick{});
  EXPECT_EQ(driver.job_state(c), JobState::kScheduled);
  EXPECT_EQ(driver.job_state(a), JobState::kScheduled);
  EXPECT_EQ(driver.job_state(b), JobState::kPending);
}

TEST(Scheduler, GangDoesNotFitWholeThenTakesNothing) {
  Driver driver;
  driver.Join("w-1", 1);
  driver.Join("w-2", 1);
  const std::string busy = driver.Submit(Gang(1, 1));
  const std::string gang = driver.Submit(Gang(2, 1));
  EXPECT_EQ(driver.job_state(busy), JobState::kScheduled);
  EXPECT_EQ(driver.job_state(gang), JobState::kPending);
  EXPECT_EQ(driver.state().DeviceHolder("w-2", "cpu0"), "");
}

TEST(Scheduler, BlockedHeadThenHoldsItsQueueButNotOthers) {
  Driver driver;
  driver.Join("w-1", 2);
  driver.Join("x-1", 1, "other");
  driver.Submit(Gang(1, 1));
  const std::string head = driver.Submit(Gang(1, 2));
  const std::string behind = driver.Submit(Gang(1, 1));
  JobSpec other = Gang(1, 1);
  other.queue = "other";
  const std::string elsewhere = driver.Submit(other);
  EXPECT_EQ(driver.job_state(head), JobState::kPending);
  EXPECT_EQ(driver.job_state(behind), JobState::kPending);
  EXPECT_EQ(driver.job_state(elsewhere), JobState::kScheduled);
  const Explanation why = Why(driver, behind);
  EXPECT_EQ(why.reason, PendingReason::kPriority);
  EXPECT_EQ(why.jobs_ahead, 1);
  ASSERT_EQ(why.jobs_ahead_ids.size(), 1u);
  EXPECT_EQ(why.jobs_ahead_ids[0], head);
  EXPECT_EQ(Why(driver, head).reason, PendingReason::kResources);
  EXPECT_EQ(Why(driver, head).free_slots, 1);
  EXPECT_EQ(Why(driver, head).usable_slots, 2);
}

TEST(Scheduler, JobThatCanNeverFitThenBlocksNobody) {
  Driver driver;
  driver.Join("w-1", 1);
  const std::string huge = driver.Submit(Gang(1, 8));
  const std::string small = driver.Submit(Gang(1, 1));
  EXPECT_EQ(driver.job_state(huge), JobState::kPending);
  EXPECT_EQ(driver.job_state(small), JobState::kScheduled);
  const Explanation why = Why(driver, huge);
  EXPECT_EQ(why.reason, PendingReason::kExceedsPoolCapacity);
  EXPECT_NE(why.message.find("8 devices on each of 1 worker"), std::string::npos) << why.message;
}

TEST(Scheduler, HeadWaitsForALostWorkerThenSmallerJobsRun) {
  Driver driver;
  driver.Join("w-1", 1);
  driver.Join("w-2", 4);
  driver.Disconnect("w-2");
  driver.Pass(121);
  const std::string big = driver.Submit(Gang(1, 4));
  const std::string small = driver.Submit(Gang(1, 1));
  EXPECT_EQ(driver.job_state(small), JobState::kScheduled);
  const Explanation why = Why(driver, big);
  EXPECT_EQ(why.reason, PendingReason::kResources);
  EXPECT_EQ(why.total_slots, 5);
}

TEST(Scheduler, BestFitThenLeavesTheLargeWorkerWhole) {
  Driver driver;
  driver.Join("w-1", 4);
  driver.Join("w-2", 2);
  const std::string id = driver.Submit(Gang(1, 2));
  EXPECT_EQ(driver.job(id).attempts[0].shares[0].worker_id, "w-2");
}

TEST(Explain, EachReasonThenWithItsNumbers) {
  Driver driver;
  JobSpec spec = Gang(1, 1);
  spec.queue = "nowhere";
  EXPECT_EQ(Why(driver, driver.Submit(spec)).reason, PendingReason::kNoMatchingPool);
  driver.Join("w-1", 2);
  driver.Join("w-2", 2);
  spec = Gang(1, 1);
  spec.resources.device_kind = DeviceKind::kCuda;
  EXPECT_EQ(Why(driver, driver.Submit(spec)).reason, PendingReason::kNoMatchingPool);
  RegisterWorker noted;
  noted.worker = *driver.state().FindWorker("w-2");
  noted.worker.notes = {"no GPU slots: no plug-in", "another"};
  noted.session = "s-w-2";
  driver.Do(noted);
  EXPECT_EQ(Why(driver, driver.Submit(spec)).workers,
            (std::vector<std::string>{"w-1: has no cuda device",
                                      "w-2: has no cuda device; no GPU slots: no plug-in"}));
  spec = Gang(1, 1);
  spec.resources.required_features = {"nvfp4.sr"};
  const Explanation unproved = Why(driver, driver.Submit(spec));
  EXPECT_EQ(unproved.reason, PendingReason::kCapabilityNotProved);
  EXPECT_NE(unproved.message.find("nvfp4.sr"), std::string::npos);
  spec = Gang(1, 1);
  spec.resources.memory_bytes_per_device = int64_t{9} << 30;
  const Explanation large = Why(driver, driver.Submit(spec));
  EXPECT_EQ(large.reason, PendingReason::kMemoryEstimateTooLarge);
  EXPECT_NE(large.message.find("9.0 GiB"), std::string::npos) << large.message;
  spec = Gang(1, 1);
  spec.resources.exclude_workers = {"w-1", "w-2"};
  EXPECT_EQ(Why(driver, driver.Submit(spec)).reason, PendingReason::kExcludedNodesOnly);
  driver.Submit(Gang(1, 1));
  driver.Submit(Gang(1, 1));  // one device busy on w-1 twice by best fit
  driver.Submit(Gang(1, 1));
  const std::string split = driver.Submit(Gang(1, 2));
  EXPECT_EQ(Why(driver, split).reason, PendingReason::kResources);
}

TEST(Explain, EnoughDevicesButNotTogetherThenFragmented) {
  Driver driver;
  driver.Join("w-1", 2);
  driver.Join("w-2", 2);
  JobSpec on_first = Gang(1, 1);
  on_first.resources.exclude_workers = {"w-2"};
  JobSpec on_second = Gang(1, 1);
  on_second.resources.exclude_workers = {"w-1"};
  driver.Submit(on_first);
  driver.Submit(on_second);
  const Explanation why = Why(driver, driver.Submit(Gang(1, 2)));
  EXPECT_EQ(why.reason, PendingReason::kFragmented);
  EXPECT_EQ(why.free_slots, 2);
}

TEST(Explain, RunningOrUnknownJobThenRefused) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  EXPECT_EQ(driver.controller().Explain(id, 0).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(driver.controller().Explain("j-9", 0).status().code(), StatusCode::kNotFound);
}

TEST(Explain, SpecNotSubmittedThenSaysWhereItFits) {
  Driver driver;
  driver.Join("w-1", 1);
  EXPECT_EQ(driver.controller().ExplainSpec(Gang(1, 1)).reason, PendingReason::kPendingEvaluation);
  EXPECT_EQ(driver.controller().ExplainSpec(Gang(1, 2)).reason,
            PendingReason::kExceedsPoolCapacity);
}

// Against brute force on tiny clusters: the plan starts exactly the jobs that the rules allow.
TEST(Scheduler, RandomClustersThenAgreesWithTheRulesReadPlainly) {
  uint64_t seed = 42;
  const auto draw = [&](int n) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<int>((seed >> 33) % static_cast<uint64_t>(n));
  };
  for (int round = 0; round < 200; ++round) {
    Driver driver;
    std::vector<int> size;
    for (int w = 0; w < 1 + draw(3); ++w) size.push_back(1 + draw(3));
    std::vector<JobSpec> specs;
    for (int j = 0; j < 5; ++j) specs.push_back(Gang(1 + draw(2), 1 + draw(3), draw(3)));
    std::vector<std::string> ids;
    for (const JobSpec& spec : specs) {
      ids.push_back(driver.Do(SubmitJob{spec, "", "alice", false}).job_id);
      ++driver.now_ms;
    }
    for (size_t w = 0; w < size.size(); ++w) driver.Join("w-" + std::to_string(w), size[w]);
    driver.Do(Tick{});

    std::vector<size_t> order = {0, 1, 2, 3, 4};
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return specs[a].priority > specs[b].priority; });
    std::vector<int> free = size;
    bool blocked = false;
    for (const size_t j : order) {
      const Resources& asked = specs[j].resources;
      const auto workers_with = [&](const std::vector<int>& slots) {
        return std::count_if(slots.begin(), slots.end(),
                             [&](int n) { return n >= asked.slots_per_node; });
      };
      const bool starts = !blocked && workers_with(free) >= asked.nodes;
      EXPECT_EQ(driver.job_state(ids[j]) == JobState::kScheduled, starts) << round << " " << ids[j];
      if (!starts) {
        blocked = blocked || workers_with(size) >= asked.nodes;
        continue;
      }
      for (const Share& share : driver.job(ids[j]).attempts[0].shares) {
        free[static_cast<size_t>(share.worker_id.back() - '0')] -= asked.slots_per_node;
      }
    }
    for (const int left : free) EXPECT_GE(left, 0);
  }
}

}  // namespace
}  // namespace nibble::core
