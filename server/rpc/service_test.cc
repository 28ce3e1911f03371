// SPDX-License-Identifier: Apache-2.0
//
// The service without a network: a job's whole way, and its corners. Runs under ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "base/json.h"
#include "server/rpc/log_source.h"
#include "server/rpc/test_support.h"
#include "server/rpc/watch_source.h"

namespace nibble::rpc {
namespace {

v1::WorkerMessage LogMessage(const v1::AttemptKey& key, int64_t seq, const std::string& text) {
  v1::WorkerMessage message;
  *message.mutable_telemetry()->mutable_key() = key;
  v1::JournalRecord& record = *message.mutable_telemetry()->add_records();
  record.set_seq(seq);
  record.set_time_ms(1'700'000'000'000 + seq);
  record.mutable_log()->set_level("info");
  record.mutable_log()->set_text(text);
  return message;
}

v1::WorkerMessage EndRecordMessage(const v1::AttemptKey& key, int64_t seq) {
  v1::WorkerMessage message;
  *message.mutable_telemetry()->mutable_key() = key;
  v1::JournalRecord& record = *message.mutable_telemetry()->add_records();
  record.set_seq(seq);
  record.mutable_end()->set_reason("Completed");
  return message;
}

// Everything a source has to say until it ends; wakes are waited for.
template <typename Message, typename Source, typename Request>
std::vector<Message> Drain(ControllerService* service, const Request& request, Failure* failure,
                           const std::function<void(const Message&)>& on_message = {}) {
  auto woken = std::make_shared<std::atomic<int>>(0);
  auto source = std::make_shared<Source>(service, request, [woken] { ++*woken; });
  std::vector<Message> messages;
  for (;;) {
    const int seen = *woken;
    auto promise = std::make_shared<std::promise<StreamItem<Message>>>();
    auto answer = promise->get_future();
    source->Fetch([promise](StreamItem<Message> item) { promise->set_value(std::move(item)); });
    if (answer.wait_for(kTestPatience) != std::future_status::ready) {
      ADD_FAILURE() << "the source did not answer";
      return messages;
    }
    StreamItem<Message> item = answer.get();
    if (item.message.has_value()) {
      if (on_message) on_message(*item.message);
      messages.push_back(std::move(*item.message));
    }
    if (item.end) {
      *failure = item.failure;
      return messages;
    }
    if (!item.message.has_value() && !Eventually([&] { return *woken != seen; })) {
      ADD_FAILURE() << "the source was not woken";
      return messages;
    }
  }
}

TEST(Service, JobRunsFromSubmitToSuccess) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  EXPECT_EQ(worker.inbox().AwaitRegistered().heartbeat_ms(), 100);
  const std::string job = service.SubmitNamed("first");
  const v1::StartAttempt start = worker.inbox().AwaitStart();
  EXPECT_EQ(start.key().job_id(), job);
  EXPECT_EQ(start.key().attempt(), 1);
  EXPECT_EQ(start.job_name(), "first");
  ASSERT_EQ(start.device_indices_size(), 1);
  EXPECT_GT(start.memory_bytes(), 0);
  const Result<Json> run = Json::Parse(start.run_json());
  ASSERT_TRUE(run.ok()) << run.status().ToString();
  EXPECT_EQ((*run)["schedule"]["steps"].AsInt(), 100);
  EXPECT_EQ((*run)["model"]["kvHeads"].AsInt(), 4);

  worker.Send(ReportMessage(start.key(), "starting"));
  worker.Send(StepsMessage(start.key(), 1, 10));
  EXPECT_EQ(worker.inbox().AwaitTelemetryAck(), 10);
  ASSERT_TRUE(service.EventuallyState(job, v1::JOB_STATE_RUNNING));
  EXPECT_EQ(service.Get(job).progress().step(), 10);
  EXPECT_EQ(service.Get("first").id(), job);

  worker.Send(EndRecordMessage(start.key(), 11));
  worker.Send(EndMessage(start.key(), "Completed", 0, 10));
  EXPECT_EQ(worker.inbox().AwaitAttemptAck().job_id(), job);
  ASSERT_TRUE(service.EventuallyState(job, v1::JOB_STATE_SUCCEEDED));
  const v1::Job ended = service.Get(job);
  EXPECT_EQ(ended.reason(), "Completed");
  ASSERT_EQ(ended.attempts_size(), 1);
  EXPECT_EQ(ended.attempts(0).worker_id(), "w-1");
  EXPECT_EQ(ended.attempts(0).state(), "ended");
}

TEST(Service, ResentTelemetryIsKeptOnceAndAcknowledged) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("resend");
  const v1::StartAttempt start = worker.inbox().AwaitStart();
  worker.Send(ReportMessage(start.key(), "starting"));
  worker.Send(StepsMessage(start.key(), 1, 6));
  EXPECT_EQ(worker.inbox().AwaitTelemetryAck(), 6);
  worker.Send(StepsMessage(start.key(), 1, 6));
  EXPECT_EQ(worker.inbox().AwaitTelemetryAck(), 6);
  worker.Send(StepsMessage(start.key(), 4, 9));
  EXPECT_EQ(worker.inbox().AwaitTelemetryAck(), 9);
  v1::GetMetricsRequest request;
  request.set_job(job);
  const auto curve = Await<v1::GetMetricsResponse>(
      [&](auto done) { service->GetMetrics(request, 0, std::move(done)); });
  std::vector<int64_t> steps;
  for (const v1::MetricRecord& record : curve.response.records()) {
    if (record.record().has_step()) steps.push_back(record.record().step().step());
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}));
  const std::string tokens = "nibble_train_tokens_total{job_id=\"" + job + "\"} 2304";
  EXPECT_TRUE(
      Eventually([&] { return service->RenderMetrics().find(tokens) != std::string::npos; }));
}

TEST(Service, StaleEpochChangesNothingAndIsToldToStop) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("stale");
  const v1::StartAttempt start = worker.inbox().AwaitStart();
  v1::AttemptKey stale = start.key();
  stale.set_epoch(start.key().epoch() + 7);
  worker.Send(StepsMessage(stale, 1, 5));
  const v1::StopAttempt stop = worker.inbox().AwaitStop();
  EXPECT_EQ(stop.key().epoch(), stale.epoch());
  EXPECT_FALSE(stop.save());
  worker.Send(EndMessage(stale, "Completed", 0, 5));
  EXPECT_EQ(worker.inbox().AwaitAttemptAck().epoch(), stale.epoch());
  EXPECT_EQ(service.Get(job).progress().step(), 0);
  EXPECT_EQ(service.Get(job).state(), v1::JOB_STATE_STARTING);
}

TEST(Service, RestartBringsJobsAndProgressBack) {
  ServiceHarness service;
  std::string running;
  std::string waiting;
  v1::AttemptKey key;
  {
    DirectWorker worker(service.get(), "w-1", "s-1");
    worker.Send(RegisterMessage("w-1"));
    running = service.SubmitNamed("running");
    key = worker.inbox().AwaitStart().key();
    waiting = service.SubmitNamed("waiting");
    worker.Send(ReportMessage(key, "starting"));
    worker.Send(StepsMessage(key, 1, 5));
    worker.inbox().AwaitTelemetryAck();
    ASSERT_TRUE(service.EventuallyState(running, v1::JOB_STATE_RUNNING));
  }
  service.Restart();
  EXPECT_EQ(service.Get(running).state(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(service.Get(waiting).state(), v1::JOB_STATE_PENDING);

  DirectWorker back(service.get(), "w-1", "s-2");
  v1::WorkerMessage message = RegisterMessage("w-1");
  v1::AttemptReport& report = *message.mutable_register_()->add_inventory();
  *report.mutable_key() = key;
  report.set_state("running");
  report.set_step(5);
  v1::AttemptReport& unknown = *message.mutable_register_()->add_inventory();
  unknown.mutable_key()->set_job_id("j-999");
  unknown.mutable_key()->set_attempt(1);
  unknown.mutable_key()->set_epoch(3);
  unknown.set_state("running");
  back.Send(std::move(message));
  const v1::Registered registered = back.inbox().AwaitRegistered();
  ASSERT_EQ(registered.keep_size(), 1);
  EXPECT_EQ(registered.keep(0).job_id(), running);
  back.Send(StepsMessage(key, 6, 8));
  EXPECT_EQ(back.inbox().AwaitTelemetryAck(), 8);
  EXPECT_EQ(service.Get(running).progress().step(), 8);
}

TEST(Service, CancelPauseAndResumeReachTheWorker) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("paused");
  v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(ReportMessage(key, "running", 3));
  ASSERT_TRUE(service.EventuallyState(job, v1::JOB_STATE_RUNNING));

  v1::PauseJobRequest pause;
  pause.set_job("paused");
  auto paused = Await<v1::Job>([&](auto done) { service->PauseJob(pause, 0, std::move(done)); });
  ASSERT_TRUE(paused.failure.ok()) << paused.failure.status.ToString();
  EXPECT_EQ(paused.response.state(), v1::JOB_STATE_STOPPING);
  const v1::StopAttempt stop = worker.inbox().AwaitStop();
  EXPECT_TRUE(stop.save());
  EXPECT_EQ(stop.reason(), "pause");
  EXPECT_GT(stop.grace_ms(), 0);
  worker.Send(EndMessage(key, "Preempted", 0, 4));
  ASSERT_TRUE(service.EventuallyState(job, v1::JOB_STATE_HELD));
  EXPECT_EQ(service.Get(job).reason(), "HeldByUser");

  v1::ResumeJobRequest resume;
  resume.set_job(job);
  auto resumed = Await<v1::Job>([&](auto done) { service->ResumeJob(resume, 0, std::move(done)); });
  ASSERT_TRUE(resumed.failure.ok()) << resumed.failure.status.ToString();
  const v1::AttemptKey second = worker.inbox().AwaitStart().key();
  EXPECT_EQ(second.attempt(), 2);
  EXPECT_GT(second.epoch(), key.epoch());

  v1::CancelJobRequest cancel;
  cancel.set_job(job);
  cancel.set_now(true);
  cancel.set_actor("tester");
  auto cancelled =
      Await<v1::Job>([&](auto done) { service->CancelJob(cancel, 0, std::move(done)); });
  ASSERT_TRUE(cancelled.failure.ok()) << cancelled.failure.status.ToString();
  EXPECT_FALSE(worker.inbox().AwaitStop().save());
  v1::WorkerMessage killed = ReportMessage(second, "ended");
  killed.mutable_attempt()->set_signal(9);
  worker.Send(std::move(killed));
  ASSERT_TRUE(service.EventuallyState(job, v1::JOB_STATE_CANCELLED));
  EXPECT_EQ(service.Get(job).reason(), "CancelledByUser");
}

TEST(Service, WaitingJobSaysWhyAndWhatIsAhead) {
  ServiceHarness service;
  const std::string first = service.SubmitNamed("first");
  const std::string second = service.SubmitNamed("second");
  EXPECT_EQ(service.Get(second).reason(), "NoMatchingPool");
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  EXPECT_EQ(worker.inbox().AwaitStart().key().job_id(), first);
  EXPECT_EQ(service.Get(second).queue_position(), 1);
  v1::ExplainJobRequest request;
  request.set_job(second);
  const auto why = Await<v1::ExplainJobResponse>(
      [&](auto done) { service->ExplainJob(request, 0, std::move(done)); });
  ASSERT_TRUE(why.failure.ok());
  EXPECT_EQ(why.response.reason(), "Resources");
  EXPECT_FALSE(why.response.message().empty());
  ASSERT_EQ(why.response.nodes_size(), 1);
  EXPECT_FALSE(why.response.nodes(0).fits());
  EXPECT_NE(why.response.nodes(0).why_not().find("0 of 1"), std::string::npos);
}

TEST(Service, WatchSendsEveryRecordOnceAndEndsWithTheTerminalJob) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("watched");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(ReportMessage(key, "starting"));
  worker.Send(StepsMessage(key, 1, 5));
  worker.inbox().AwaitTelemetryAck();

  v1::WatchJobRequest request;
  request.set_job("watched");
  request.set_metrics(true);
  std::thread rest;
  Failure failure;
  const auto messages = Drain<v1::WatchJobResponse, WatchSource>(
      service.get(), request, &failure, [&](const v1::WatchJobResponse&) {
        if (rest.joinable()) return;
        rest = std::thread([&] {
          for (int64_t step = 6; step <= 20; ++step) worker.Send(StepsMessage(key, step, step));
          worker.Send(EndRecordMessage(key, 21));
          worker.Send(EndMessage(key, "Completed", 0, 20));
        });
      });
  if (rest.joinable()) rest.join();
  EXPECT_TRUE(failure.ok()) << failure.status.ToString();
  ASSERT_FALSE(messages.empty());
  std::vector<int64_t> steps;
  for (const v1::WatchJobResponse& message : messages) {
    for (const v1::MetricRecord& record : message.records()) {
      steps.push_back(record.record().step().step());
    }
  }
  ASSERT_EQ(steps.size(), 20u);
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i], static_cast<int64_t>(i) + 1);
  EXPECT_EQ(messages.back().job().state(), v1::JOB_STATE_SUCCEEDED);

  // A second look from the last but some cursor sends only what is newer.
  request.set_cursor(WatchCursor(1, 17));
  const auto again = Drain<v1::WatchJobResponse, WatchSource>(service.get(), request, &failure);
  int records = 0;
  for (const v1::WatchJobResponse& message : again) records += message.records_size();
  EXPECT_EQ(records, 3);
}

TEST(Service, WatchSendsAnUnchangedJobOnce) {
  ServiceHarness service;
  v1::SubmitJobRequest submit;
  *submit.mutable_spec() = SmallSpec("still");
  for (int i = 0; i < 12;
       ++i) {  // a map that plain serialization writes in another order each time
    (*submit.mutable_spec()->mutable_metadata()->mutable_labels())["label" + std::to_string(i)] =
        "x";
  }
  ASSERT_TRUE(service.Submit(submit).failure.ok());
  v1::WatchJobRequest request;
  request.set_job("still");
  request.set_metrics(true);
  auto source = std::make_shared<WatchSource>(service.get(), request, [] {});
  int sent = 0;
  for (int look = 0; look < 20; ++look) {
    std::promise<bool> answered;
    source->Fetch([&answered](StreamItem<v1::WatchJobResponse> item) {
      answered.set_value(item.message.has_value());
    });
    sent += answered.get_future().get();
  }
  EXPECT_EQ(sent, 1);
}

TEST(Service, SlowWatcherReadsOnFromTheStore) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("flood");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(ReportMessage(key, "starting"));
  worker.Send(StepsMessage(key, 1, 1));
  worker.inbox().AwaitTelemetryAck();
  constexpr int64_t kSteps = 6'000;  // more than the live buffer of one watcher holds
  v1::WatchJobRequest request;
  request.set_job(job);
  request.set_metrics(true);
  bool flooded = false;
  Failure failure;
  const auto messages = Drain<v1::WatchJobResponse, WatchSource>(
      service.get(), request, &failure, [&](const v1::WatchJobResponse&) {
        if (flooded) return;
        flooded = true;  // the watcher reads nothing while all of this arrives
        for (int64_t first = 2; first <= kSteps; first += 500) {
          const int64_t last = std::min(kSteps, first + 499);
          worker.Send(StepsMessage(key, first, last));
          worker.inbox().Await([last](const v1::ControllerMessage& message) {
            return message.has_telemetry_ack() && message.telemetry_ack().cursor() == last;
          });
        }
        worker.Send(EndRecordMessage(key, kSteps + 1));
        worker.Send(EndMessage(key, "Completed", 0, kSteps));
      });
  EXPECT_TRUE(failure.ok()) << failure.status.ToString();
  std::set<int64_t> steps;
  int64_t records = 0;
  for (const v1::WatchJobResponse& message : messages) {
    for (const v1::MetricRecord& record : message.records()) {
      steps.insert(record.record().step().step());
      ++records;
    }
  }
  EXPECT_EQ(records, kSteps);
  EXPECT_EQ(static_cast<int64_t>(steps.size()), kSteps);
  EXPECT_EQ(messages.back().job().state(), v1::JOB_STATE_SUCCEEDED);
}

TEST(Service, LogsFollowUntilTheAttemptEnds) {
  ServiceHarness service;
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("chatty");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(ReportMessage(key, "starting"));
  for (int i = 1; i <= 4; ++i) worker.Send(LogMessage(key, i, "line " + std::to_string(i)));
  worker.inbox().Await([](const v1::ControllerMessage& message) {
    return message.has_telemetry_ack() && message.telemetry_ack().cursor() == 4;
  });
  v1::StreamLogsRequest request;
  request.set_job(job);
  request.set_tail(2);
  Failure failure;
  auto lines = Drain<v1::StreamLogsResponse, LogSource>(service.get(), request, &failure);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].text(), "line 3");
  EXPECT_EQ(lines[1].level(), "info");

  request.set_tail(0);
  request.set_follow(true);
  bool continued = false;
  lines = Drain<v1::StreamLogsResponse, LogSource>(
      service.get(), request, &failure, [&](const v1::StreamLogsResponse& line) {
        if (continued || line.text() != "line 4") return;
        continued = true;
        worker.Send(LogMessage(key, 5, "line 5"));
        worker.Send(EndRecordMessage(key, 6));
        worker.Send(EndMessage(key, "Completed", 0, 1));
      });
  EXPECT_TRUE(failure.ok());
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines.back().text(), "line 5");

  request.set_attempt(7);
  Drain<v1::StreamLogsResponse, LogSource>(service.get(), request, &failure);
  EXPECT_EQ(failure.status.code(), StatusCode::kNotFound);
}

TEST(Service, ConcurrentCallersSeeConsistentAnswers) {
  ServiceHarness service;
  constexpr int kThreads = 4;
  constexpr int kJobsEach = 15;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&service, t] {
      for (int i = 0; i < kJobsEach; ++i) {
        const std::string name = "job-" + std::to_string(t) + "-" + std::to_string(i);
        const std::string id = service.SubmitNamed(name);
        EXPECT_EQ(service.Get(name).id(), id);
      }
    });
  }
  std::thread scraper([&service] {
    for (int i = 0; i < 20; ++i) {
      service->RenderMetrics();
      service->RenderServiceDiscovery();
      service->GetServerInfo();
    }
  });
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(StepsMessage(key, 1, 300));
  worker.inbox().AwaitTelemetryAck();
  for (std::thread& thread : threads) thread.join();
  scraper.join();
  v1::ListJobsRequest request;
  request.set_page_size(7);
  std::set<std::string> ids;
  do {
    const auto page = Await<v1::ListJobsResponse>(
        [&](auto done) { service->ListJobs(request, 0, std::move(done)); });
    ASSERT_TRUE(page.failure.ok());
    EXPECT_LE(page.response.jobs_size(), 7);
    for (const v1::Job& job : page.response.jobs()) EXPECT_TRUE(ids.insert(job.id()).second);
    request.set_page_token(page.response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(ids.size(), static_cast<size_t>(kThreads) * kJobsEach);
}

TEST(Service, OverdueRequestIsNotBegun) {
  ServiceHarness service;
  v1::SubmitJobRequest request;
  *request.mutable_spec() = SmallSpec("late");
  const auto answered = Await<v1::SubmitJobResponse>([&](auto done) {
    service->SubmitJob(request, Clock::Real().SteadyMillis() - 1, std::move(done));
  });
  EXPECT_EQ(answered.failure.status.code(), StatusCode::kDeadlineExceeded);
  v1::GetJobRequest get;
  get.set_job("late");
  EXPECT_EQ(
      Await<v1::Job>([&](auto done) { service->GetJob(get, 0, std::move(done)); }).failure.reason,
      "UnknownJob");
}

TEST(Service, SeriesOfAJobVanishAfterItsGraceTime) {
  ControllerOptions options;
  options.job_series_grace_ms = 0;
  ServiceHarness service(options);
  DirectWorker worker(service.get(), "w-1", "s-1");
  worker.Send(RegisterMessage("w-1"));
  const std::string job = service.SubmitNamed("short");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(StepsMessage(key, 1, 3));
  worker.inbox().AwaitTelemetryAck();
  const std::string series = "nibble_train_step{job_id=\"" + job + "\"} 3";
  ASSERT_TRUE(
      Eventually([&] { return service->RenderMetrics().find(series) != std::string::npos; }));
  worker.Send(EndMessage(key, "Completed", 0, 3));
  EXPECT_TRUE(Eventually(
      [&] { return service->RenderMetrics().find("job_id=\"" + job) == std::string::npos; }));
  EXPECT_NE(service->RenderMetrics().find(
                "nibble_job_state_transitions_total{reason=\"Completed\",to=\"SUCCEEDED\"} 1"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble::rpc
