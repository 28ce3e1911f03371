// SPDX-License-Identifier: Apache-2.0
//
// One job through the real programs: the way a user sees it.
#include <gtest/gtest.h>

#include <cmath>

#include "base/files.h"
#include "tests/e2e/cluster_harness.h"

namespace nibble {
namespace {

using std::chrono::seconds;

class JobTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!ProgramsAreBuilt()) GTEST_SKIP() << "the programs are not built; build target 'programs'";
    auto cluster = ClusterHarness::Create();
    ASSERT_TRUE(cluster.ok()) << cluster.status().ToString();
    cluster_ = std::move(*cluster);
    ASSERT_TRUE(cluster_->StartController().ok());
    ASSERT_TRUE(cluster_->StartWorker().ok());
    const Status ready = cluster_->WaitForWorker(seconds(30));
    ASSERT_TRUE(ready.ok()) << ready.ToString();
  }

  std::unique_ptr<ClusterHarness> cluster_;
};

TEST_F(JobTest, TrainsToTheEndAndLeavesCurveCheckpointAndLogs) {
  const auto job = cluster_->Submit();
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  const auto ended = cluster_->WaitForEnd(*job, seconds(60));
  ASSERT_TRUE(ended.ok()) << ended.status().ToString();
  EXPECT_EQ(StateOf(*ended), "SUCCEEDED") << ended->Dump(2);
  EXPECT_EQ((*ended)["reason"].AsString(), "Completed");
  EXPECT_TRUE(cluster_->WeightsHash(*ended).ok());

  const auto metrics = cluster_->Nibble({"metrics", *job, "-o", "json"});
  ASSERT_TRUE(metrics.ok());
  EXPECT_TRUE(metrics->status.success()) << metrics->output;
  EXPECT_NE(metrics->output.find("60"), std::string::npos);
  for (const char* command : {"why", "events", "logs"}) {
    const auto shown = cluster_->Nibble({command, *job});
    ASSERT_TRUE(shown.ok());
    EXPECT_TRUE(shown->status.success()) << command << ": " << shown->output;
    EXPECT_FALSE(shown->output.empty()) << command;
  }
  EXPECT_NE(cluster_->Nibble({"logs", *job})->output.find("validation loss"), std::string::npos);
  EXPECT_EQ(cluster_->Nibble({"wait", *job})->status.exit_code, 0);
}

// Where no GPU can be used, the list of nodes and the answer to a job that wants one name what is
// missing: the plug-in, or a device.
TEST_F(JobTest, NodesSayWhyTheyOfferNoGpu) {
  const auto nodes = cluster_->NibbleJson({"nodes"});
  ASSERT_TRUE(nodes.ok()) << nodes.status().ToString();
  ASSERT_EQ(nodes->size(), 1u);
  for (const Json& device : nodes->At(0)["devices"].items()) {
    if (device["kind"].AsString() == "cuda") GTEST_SKIP() << "this machine offers a GPU";
  }
  ASSERT_GE(nodes->At(0)["notes"].size(), 1u) << nodes->Dump(2);
  const std::string note = nodes->At(0)["notes"].At(0).AsString();
  EXPECT_TRUE(note.find("plug-in was not found") != std::string::npos ||
              note.find("no usable device") != std::string::npos ||
              note.find("CUDA_VISIBLE_DEVICES") != std::string::npos ||
              note.find("is not offered") != std::string::npos)
      << note;
  const auto shown = cluster_->Nibble({"nodes"});
  ASSERT_TRUE(shown.ok());
  EXPECT_NE(shown->output.find(note), std::string::npos) << shown->output;
  const auto job = cluster_->Submit({"resources.device=cuda"});
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  const auto why = cluster_->Nibble({"why", *job});
  ASSERT_TRUE(why.ok());
  EXPECT_NE(why->output.find(note), std::string::npos) << why->output;
}

TEST_F(JobTest, PausedAndResumedJobEndsWithTheSameWeights) {
  const auto straight = cluster_->Submit();
  ASSERT_TRUE(straight.ok());
  const auto reference = cluster_->WaitForEnd(*straight, seconds(60));
  ASSERT_TRUE(reference.ok()) << reference.status().ToString();

  const auto job = cluster_->Submit({"metadata.name=paused"});
  ASSERT_TRUE(job.ok());
  ASSERT_TRUE(cluster_
                  ->WaitForJob(*job, seconds(30),
                               [](const Json& j) {
                                 return j["progress"]["step"].AsInt() > 3 ||
                                        j["progress"]["step"].AsString() > "";
                               })
                  .ok());
  const auto paused = cluster_->Nibble({"pause", *job});
  ASSERT_TRUE(paused.ok());
  EXPECT_TRUE(paused->status.success()) << paused->output;
  const auto held = cluster_->WaitForJob(*job, seconds(30), [](const Json& j) {
    return StateOf(j) == "HELD" || IsTerminal(StateOf(j));
  });
  ASSERT_TRUE(held.ok()) << held.status().ToString();
  ASSERT_EQ(StateOf(*held), "HELD") << held->Dump(2);
  EXPECT_TRUE(cluster_->TrainerPids().empty());
  ASSERT_TRUE(cluster_->Nibble({"resume", *job})->status.success());
  const auto ended = cluster_->WaitForEnd(*job, seconds(60));
  ASSERT_TRUE(ended.ok()) << ended.status().ToString();
  EXPECT_EQ(StateOf(*ended), "SUCCEEDED") << ended->Dump(2);
  EXPECT_EQ(cluster_->WeightsHash(*ended).value(), cluster_->WeightsHash(*reference).value());
}

TEST_F(JobTest, DivergenceEndsTheJobWithStepAndTensorClass) {
  const auto job = cluster_->Submit({"optimizer.peakLr=1e6", "optimizer.clipNorm=0",
                                     "optimizer.warmupFraction=0", "precision.recipe=fp32"});
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  const auto ended = cluster_->WaitForEnd(*job, seconds(60));
  ASSERT_TRUE(ended.ok()) << ended.status().ToString();
  EXPECT_EQ(StateOf(*ended), "FAILED") << ended->Dump(2);
  EXPECT_EQ((*ended)["reason"].AsString(), "Diverged") << ended->Dump(2);
  EXPECT_NE((*ended)["message"].AsString().find("step"), std::string::npos);
  EXPECT_EQ(cluster_->Nibble({"wait", *job})->status.exit_code, 100);
}

TEST_F(JobTest, TruncatedShardEndsTheJobNamingTheFile) {
  std::string shard;
  for (const std::string& name : ListDirectory(cluster_->data_folder()).value()) {
    if (name.starts_with("train") && name.ends_with(".bin")) {
      shard = JoinPath(cluster_->data_folder(), name);
    }
  }
  ASSERT_FALSE(shard.empty());
  const std::string bytes = ReadFile(shard).value();
  ASSERT_TRUE(AtomicWriteFile(shard, bytes.substr(0, bytes.size() / 2)).ok());
  const auto job = cluster_->Submit();
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  const auto ended = cluster_->WaitForEnd(*job, seconds(60));
  ASSERT_TRUE(ended.ok()) << ended.status().ToString();
  EXPECT_EQ(StateOf(*ended), "FAILED");
  EXPECT_EQ((*ended)["reason"].AsString(), "DataUnreadable") << ended->Dump(2);
  EXPECT_NE((*ended)["message"].AsString().find(shard), std::string::npos);
}

TEST_F(JobTest, CancelledJobSavesAndFreesItsDevice) {
  const auto job = cluster_->Submit({"schedule.steps=100000"});
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  ASSERT_TRUE(
      cluster_->WaitForJob(*job, seconds(30), [](const Json& j) { return StateOf(j) == "RUNNING"; })
          .ok());
  ASSERT_TRUE(cluster_->Nibble({"cancel", *job})->status.success());
  const auto ended = cluster_->WaitForEnd(*job, seconds(60));
  ASSERT_TRUE(ended.ok()) << ended.status().ToString();
  EXPECT_EQ(StateOf(*ended), "CANCELLED") << ended->Dump(2);
  EXPECT_TRUE(cluster_->TrainerPids().empty());
  EXPECT_EQ(cluster_->Nibble({"wait", *job})->status.exit_code, 103);
}

TEST_F(JobTest, BadSpecsAreRefusedWithFieldValueAndFix) {
  const std::pair<const char*, const char*> cases[] = {
      {"model.heads=5", "model.heads"},
      {"precision.recipe=fp4_ms_papre", "fp4_ms_paper"},
      {"model.preset=llama3-8b", "llama2-7b"},
      {"schedule.microBatch=-1", "schedule.microBatch"}};
  for (const auto& [set, expected] : cases) {
    const auto refused =
        cluster_->Nibble({"submit", "-f", JoinPath(NIBBLE_SOURCE_DIR, "tests/e2e/tiny.yaml"),
                          "--set", "data.path=" + cluster_->data_folder(), "--set", set});
    ASSERT_TRUE(refused.ok());
    EXPECT_EQ(refused->status.exit_code, 6) << set << ": " << refused->output;
    EXPECT_NE(refused->output.find(expected), std::string::npos) << refused->output;
  }
  EXPECT_EQ(cluster_->Nibble({"describe", "no-such-job"})->status.exit_code, 3);
}

}  // namespace
}  // namespace nibble
