// SPDX-License-Identifier: Apache-2.0
//
// Small parts by themselves: sessions, subscriptions, kept progress, the HTTP server.
#include <gtest/gtest.h>

#include <cmath>

#include "server/rpc/http_server.h"
#include "server/rpc/job_series.h"
#include "server/rpc/live_jobs.h"
#include "server/rpc/points.h"
#include "server/rpc/session_table.h"
#include "server/rpc/test_support.h"
#include "server/rpc/watch_hub.h"

namespace nibble::rpc {
namespace {

struct RecordingOutbox : Outbox {
  void Send(v1::ControllerMessage message) override { sent.push_back(std::move(message)); }
  void Close(const Status& why) override { closed = why.message(); }
  std::vector<v1::ControllerMessage> sent;
  std::string closed;
};

v1::ControllerMessage LeaseMessage(int64_t sequence) {
  v1::ControllerMessage message;
  message.mutable_lease()->set_sequence(sequence);
  return message;
}

TEST(SessionTable, CommandsBeforeAcceptanceFollowTheRegistration) {
  SessionTable table;
  auto outbox = std::make_shared<RecordingOutbox>();
  table.Prepare("s-1", outbox);
  table.Send("w", "s-1", LeaseMessage(1));
  EXPECT_TRUE(outbox->sent.empty());
  v1::ControllerMessage registered;
  registered.mutable_registered()->set_lease_ms(5);
  table.Accept("w", "s-1", {}, registered);
  ASSERT_EQ(outbox->sent.size(), 2u);
  EXPECT_TRUE(outbox->sent[0].has_registered());
  EXPECT_EQ(outbox->sent[1].lease().sequence(), 1);
}

TEST(SessionTable, NewerSessionReplacesAndClosesTheOlder) {
  SessionTable table;
  auto first = std::make_shared<RecordingOutbox>();
  auto second = std::make_shared<RecordingOutbox>();
  table.Prepare("s-1", first);
  table.Accept("w", "s-1", {}, {});
  table.Prepare("s-2", second);
  table.Accept("w", "s-2", {}, {});
  EXPECT_FALSE(first->closed.empty());
  table.Send("w", "s-1", LeaseMessage(1));
  table.Send("w", "s-2", LeaseMessage(2));
  EXPECT_EQ(first->sent.size(), 1u);
  EXPECT_EQ(second->sent.size(), 2u);
  table.Close("w", "s-1");  // late: the present session stays
  table.Send("w", "s-2", LeaseMessage(3));
  EXPECT_EQ(second->sent.size(), 3u);
  table.Close("w", "s-2");
  table.Send("w", "s-2", LeaseMessage(4));
  EXPECT_EQ(second->sent.size(), 3u);
}

TEST(SessionTable, DiscoveryListsWorkersThatServeMetrics) {
  std::map<std::string, WorkerFacts> workers;
  EXPECT_EQ(ServiceDiscoveryJson(workers), "[]");
  workers["w-1"].http_address = "10.0.0.1:9100";
  workers["w-1"].pool = "main";
  workers["w-2"].pool = "main";
  EXPECT_EQ(ServiceDiscoveryJson(workers),
            R"([{"targets":["10.0.0.1:9100"],"labels":{"worker":"w-1","pool":"main"}}])");
}

TEST(WatchHub, OverflowDropsRecordsAndSaysSo) {
  WatchHub hub;
  int wakes = 0;
  auto subscription = hub.Subscribe("j-1", true, [&wakes] { ++wakes; }).value();
  const std::vector<v1::MetricRecord> records(1000);
  for (int i = 0; i < 4; ++i) hub.PublishRecords("j-1", records);
  hub.PublishRecords("j-2", records);
  EXPECT_EQ(wakes, 4);
  hub.PublishRecords("j-1", records);
  News news = subscription->Take();
  EXPECT_TRUE(news.overflowed);
  EXPECT_TRUE(news.records.empty());
  hub.PublishRecords("j-1", records);
  hub.PublishJob("j-1");
  news = subscription->Take();
  EXPECT_FALSE(news.overflowed);
  EXPECT_EQ(news.records.size(), 1000u);
  EXPECT_TRUE(news.job);
}

v1::JournalRecord StepRecord(int64_t seq, int64_t step, double loss) {
  v1::JournalRecord record;
  record.set_seq(seq);
  record.mutable_step()->set_step(step);
  record.mutable_step()->set_loss(loss);
  record.mutable_step()->set_tokens(step * 100);
  record.mutable_step()->set_step_seconds(2);
  return record;
}

TEST(LiveJobs, ValuesSurviveReopeningAndOlderAttemptsChangeNothing) {
  TempDirectory directory;
  FakeClock clock;
  {
    auto jobs = LiveJobs::Open(directory.path(), clock).value();
    v1::JournalRecord start;
    start.set_seq(1);
    start.mutable_start()->set_steps_total(50);
    v1::JournalRecord validation;
    validation.set_seq(2);
    validation.mutable_validation()->set_loss(9.5);
    v1::JournalRecord checkpoint;
    checkpoint.set_seq(4);
    checkpoint.set_time_ms(77);
    checkpoint.mutable_checkpoint()->set_step(10);
    checkpoint.mutable_checkpoint()->set_path("/ckpt/10");
    checkpoint.mutable_checkpoint()->set_best(true);
    jobs->Apply("j-1", 2, 0, {start, validation, StepRecord(3, 10, NAN), checkpoint});
    jobs->Apply("j-1", 1, 0, {StepRecord(9, 49, 1.0)});
    jobs->Apply("j-1", 2, 0, {StepRecord(3, 40, 1.0)});  // a repeat
    jobs->Apply("j-1", 2, 1, {StepRecord(9, 41, 1.0)});  // another rank
    jobs->Save();
  }
  auto jobs = LiveJobs::Open(directory.path(), clock).value();
  const LiveValues live = jobs->Find("j-1").value();
  EXPECT_EQ(live.attempt, 2);
  EXPECT_EQ(live.progress.step(), 10);
  EXPECT_TRUE(std::isnan(live.progress.loss()));
  EXPECT_EQ(live.progress.eta_seconds(), 80);
  EXPECT_EQ(live.progress.first_validation_loss(), 9.5);
  EXPECT_EQ(live.checkpoint_path, "/ckpt/10");
  EXPECT_EQ(live.best_checkpoint_path, "/ckpt/10");
  EXPECT_EQ(live.checkpoint_time_ms, 77);
  EXPECT_FALSE(jobs->Find("j-2").has_value());
}

TEST(LiveJobs, DamagedFileIsSkipped) {
  TempDirectory directory;
  FakeClock clock;
  ASSERT_TRUE(AtomicWriteFile(JoinPath(directory.path(), "j-1.json"), "{oops").ok());
  const auto jobs = LiveJobs::Open(directory.path(), clock);
  ASSERT_TRUE(jobs.ok());
  EXPECT_FALSE((*jobs)->Find("j-1").has_value());
}

TEST(LiveJobs, TensorClassesAreLimited) {
  TempDirectory directory;
  FakeClock clock;
  auto jobs = LiveJobs::Open(directory.path(), clock).value();
  std::vector<v1::JournalRecord> records;
  for (size_t i = 0; i < kMaxTensorClasses + 3; ++i) {
    v1::JournalRecord& record = records.emplace_back();
    record.set_seq(static_cast<int64_t>(i) + 1);
    record.mutable_health()->set_tensor_class("class_" + std::to_string(i));
  }
  EXPECT_EQ(jobs->Apply("j-1", 1, 0, records), 3);
}

TEST(Points, HealthComesBackWhole) {
  v1::JournalRecord record;
  record.set_time_ms(5);
  v1::HealthPoint& health = *record.mutable_health();
  health.set_step(7);
  health.set_tensor_class("gradient_mlp_last");
  health.set_underflow_ratio(.1);
  health.set_saturation_ratio(.2);
  health.set_mse(.3);
  health.set_snr_db(20);
  health.set_cosine(.99);
  health.set_scale_min(.5);
  health.set_scale_max(2);
  health.set_grad_noise_ratio(4);
  health.set_nonfinite_amax(3);
  // Every field is set: one that is forgotten on the way would differ.
  const auto* descriptor = health.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    if (field->cpp_type() == field->CPPTYPE_DOUBLE) {
      EXPECT_NE(health.GetReflection()->GetDouble(health, field), 0) << field->name();
    }
  }
  const store::PointBatch batch = ToPoints({record});
  ASSERT_EQ(batch.healths.size(), 1u);
  EXPECT_EQ(FromPoint(batch.healths[0]).SerializeAsString(), record.SerializeAsString());
}

TEST(JobSeries, HealthOfEveryClassIsExported) {
  TempDirectory directory;
  FakeClock clock;
  auto live = LiveJobs::Open(directory.path(), clock).value();
  std::vector<v1::JournalRecord> records;
  for (const char* name : {"gradient_mlp_last", "weight_attention_first"}) {
    v1::JournalRecord& record = records.emplace_back();
    record.set_seq(static_cast<int64_t>(records.size()));
    v1::HealthPoint& health = *record.mutable_health();
    health.set_tensor_class(name);
    health.set_scale_min(.5);
    health.set_scale_max(2);
    health.set_nonfinite_amax(3);
    if (health.tensor_class().starts_with("gradient")) health.set_grad_noise_ratio(4);
  }
  EXPECT_EQ(live->Apply("j-1", 1, 0, records), 0);
  Snapshot snapshot;
  snapshot.rows.emplace_back().id = "j-1";
  std::vector<prometheus::MetricFamily> families;
  AddJobSeries(snapshot, *live, 0, 0, families);
  std::map<std::string, std::map<std::string, double>> values;  // metric -> class -> value
  for (const auto& family : families) {
    for (const auto& metric : family.metric) {
      for (const auto& label : metric.label) {
        if (label.name == "tensor_class") values[family.name][label.value] = metric.gauge.value;
      }
    }
  }
  using ByClass = std::map<std::string, double>;
  const auto both = [](double v) {
    return ByClass{{"gradient_mlp_last", v}, {"weight_attention_first", v}};
  };
  EXPECT_EQ(values["nibble_quant_scale_min"], both(.5));
  EXPECT_EQ(values["nibble_quant_scale_max"], both(2));
  EXPECT_EQ(values["nibble_quant_nonfinite_groups"], both(3));
  EXPECT_EQ(values["nibble_quant_grad_noise_ratio"], (ByClass{{"gradient_mlp_last", 4}}));
  EXPECT_EQ(values.size(), 9u);
}

TEST(HttpServer, OccupiedPortIsNamed) {
  auto first = HttpServer::Start({"127.0.0.1", 0}, {{"/x", [] { return HttpResponse{}; }}});
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  EXPECT_GT((*first)->address().port, 0);
  const auto second = HttpServer::Start((*first)->address(), {});
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find((*first)->address().ToString()), std::string::npos);
  EXPECT_NE(second.status().message().find("--http"), std::string::npos);
}

}  // namespace
}  // namespace nibble::rpc
