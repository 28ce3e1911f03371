// SPDX-License-Identifier: Apache-2.0
//
// WorkerService over a real connection: registration, replacement, heartbeats, lease expiry.
#include <gtest/gtest.h>

#include "server/rpc/server_test_support.h"

namespace nibble::rpc {
namespace {

v1::WorkerMessage HeartbeatMessage(int64_t sequence) {
  v1::WorkerMessage message;
  message.mutable_heartbeat()->set_sequence(sequence);
  message.mutable_heartbeat()->set_disk_free_bytes(1 << 20);
  return message;
}

std::string SubmitJob(TestServer& server, const std::string& name) {
  Context context;
  v1::SubmitJobRequest request;
  *request.mutable_spec() = SmallSpec(name);
  v1::SubmitJobResponse response;
  const grpc::Status status = server.Jobs()->SubmitJob(context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.job().id();
}

v1::Job GetJob(TestServer& server, const std::string& job) {
  Context context;
  v1::GetJobRequest request;
  request.set_job(job);
  v1::Job response;
  server.Jobs()->GetJob(context, request, &response);
  return response;
}

TEST(Session, HeartbeatIsAnsweredWithTheRenewedLease) {
  TestServer server;
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  worker.inbox().AwaitRegistered();
  worker.Send(HeartbeatMessage(41));
  const auto answer = worker.inbox().Await([](const auto& m) { return m.has_lease(); });
  EXPECT_EQ(answer.lease().sequence(), 41);
}

TEST(Session, FirstMessageMustRegisterWithAValidName) {
  TestServer server;
  {
    StreamWorker worker(server.Channel());
    worker.Send(HeartbeatMessage(1));
    EXPECT_EQ(worker.AwaitEnd().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  {
    StreamWorker worker(server.Channel());
    worker.Send(RegisterMessage("Not Valid"));
    EXPECT_EQ(worker.AwaitEnd().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  {
    StreamWorker worker(server.Channel());
    v1::WorkerMessage message = RegisterMessage("w-1");
    message.mutable_register_()->clear_devices();
    worker.Send(message);
    const grpc::Status status = worker.AwaitEnd();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_NE(status.error_message().find("device"), std::string::npos);
  }
}

TEST(Session, NewerSessionOfAWorkerEndsTheOlder) {
  TestServer server;
  StreamWorker first(server.Channel());
  first.Send(RegisterMessage("w-1"));
  first.inbox().AwaitRegistered();
  StreamWorker second(server.Channel());
  second.Send(RegisterMessage("w-1"));
  second.inbox().AwaitRegistered();
  EXPECT_EQ(first.AwaitEnd().error_code(), grpc::StatusCode::ABORTED);
}

TEST(Session, AnotherHostWithTheSameIdIsRefused) {
  TestServer server;
  StreamWorker first(server.Channel());
  first.Send(RegisterMessage("w-1"));
  first.inbox().AwaitRegistered();
  StreamWorker impostor(server.Channel());
  v1::WorkerMessage message = RegisterMessage("w-1");
  message.mutable_register_()->set_host("elsewhere");
  impostor.Send(message);
  EXPECT_EQ(impostor.AwaitEnd().error_code(), grpc::StatusCode::ALREADY_EXISTS);
  first.Send(HeartbeatMessage(1));
  first.inbox().Await([](const auto& m) { return m.has_lease(); });
}

TEST(Session, SilentWorkerIsSuspectThenLostAndItsJobRecovers) {
  ControllerOptions options = FastOptions("");
  options.heartbeat_ms = 20;
  options.suspect_after_ms = 100;
  options.lease_ms = 400;
  TestServer server(options);
  auto first = std::make_unique<StreamWorker>(server.Channel());
  first->Send(RegisterMessage("w-1"));
  const std::string job = SubmitJob(server, "survivor");
  const v1::AttemptKey key = first->inbox().AwaitStart().key();
  first->Send(ReportMessage(key, "running", 1));
  ASSERT_TRUE(Eventually([&] { return GetJob(server, job).state() != v1::JOB_STATE_STARTING; }));
  first->Finish();
  bool suspect = false;
  ASSERT_TRUE(Eventually([&] {
    const v1::JobState state = GetJob(server, job).state();
    suspect = suspect || state == v1::JOB_STATE_SUSPECT;
    return state == v1::JOB_STATE_RECOVERING || state == v1::JOB_STATE_PENDING;
  }));
  EXPECT_TRUE(suspect);
  StreamWorker other(server.Channel());
  other.Send(RegisterMessage("w-2"));
  const v1::AttemptKey second = other.inbox().AwaitStart().key();
  EXPECT_EQ(second.job_id(), job);
  EXPECT_EQ(second.attempt(), 2);
  EXPECT_GT(second.epoch(), key.epoch());
}

TEST(Session, WorkerComesBackAfterARestartWithItsInventory) {
  TestServer server;
  v1::AttemptKey key;
  std::string job;
  {
    StreamWorker worker(server.Channel());
    worker.Send(RegisterMessage("w-1"));
    job = SubmitJob(server, "kept");
    key = worker.inbox().AwaitStart().key();
    worker.Send(ReportMessage(key, "running", 2));
    ASSERT_TRUE(Eventually([&] { return GetJob(server, job).state() == v1::JOB_STATE_RUNNING; }));
    server.Restart();
    EXPECT_FALSE(worker.AwaitEnd().ok());
  }
  StreamWorker worker(server.Channel());
  v1::WorkerMessage message = RegisterMessage("w-1");
  v1::AttemptReport& report = *message.mutable_register_()->add_inventory();
  *report.mutable_key() = key;
  report.set_state("running");
  report.set_step(2);
  worker.Send(message);
  EXPECT_EQ(worker.inbox().AwaitRegistered().keep_size(), 1);
  worker.Send(EndMessage(key, "Completed", 0, 100));
  EXPECT_EQ(worker.inbox().AwaitAttemptAck().job_id(), job);
  EXPECT_TRUE(Eventually([&] { return GetJob(server, job).state() == v1::JOB_STATE_SUCCEEDED; }));
}

// Whoever sees the end sees the last checkpoint, though its journal record has not come.
TEST(Session, EndComesWithTheLastCheckpoint) {
  TestServer server;
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  const std::string job = SubmitJob(server, "saved");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(ReportMessage(key, "running", 1));
  v1::WorkerMessage end = EndMessage(key, "Completed", 0, 100);
  *end.mutable_attempt()->mutable_checkpoint() = CheckpointJournalRecord(7, 100);
  worker.Send(end);
  EXPECT_EQ(worker.inbox().AwaitAttemptAck().job_id(), job);
  const v1::Job ended = GetJob(server, job);
  EXPECT_EQ(ended.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(ended.checkpoint_step(), 100);
  EXPECT_EQ(ended.checkpoint_path(), "/runs/c-100");
}

// More checkpoints in one message than the controller takes at once: the newest is among them.
TEST(Session, NewestCheckpointOfManyIsKept) {
  TestServer server;
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  const std::string job = SubmitJob(server, "many");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  v1::WorkerMessage message;
  *message.mutable_telemetry()->mutable_key() = key;
  constexpr int kMany = 3 * kMaxInputsPerRequest;
  for (int i = 1; i <= kMany; ++i) {
    *message.mutable_telemetry()->add_records() = CheckpointJournalRecord(i, i);
  }
  worker.Send(message);
  EXPECT_EQ(worker.inbox().AwaitTelemetryAck(), kMany);
  Context context;
  v1::ListJobEventsRequest request;
  request.set_job(job);
  v1::ListJobEventsResponse events;
  ASSERT_TRUE(server.Jobs()->ListJobEvents(context, request, &events).ok());
  EXPECT_EQ(events.events(events.events_size() - 1).message(), "step " + std::to_string(kMany));
}

TEST(Session, DrainWithCheckpointMovesTheJobUncharged) {
  TestServer server;
  auto cluster = v1::ClusterService::NewStub(server.Channel());
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  const std::string job = SubmitJob(server, "moved");
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  worker.Send(ReportMessage(key, "running", 5));
  ASSERT_TRUE(Eventually([&] { return GetJob(server, job).state() == v1::JOB_STATE_RUNNING; }));
  Context context;
  v1::DrainNodeRequest drain;
  drain.set_worker_id("w-1");
  drain.set_checkpoint_now(true);
  drain.set_actor("tester");
  v1::Node node;
  ASSERT_TRUE(cluster->DrainNode(context, drain, &node).ok());
  EXPECT_EQ(node.state(), "draining");
  const v1::StopAttempt stop = worker.inbox().AwaitStop();
  EXPECT_TRUE(stop.save());
  EXPECT_EQ(stop.reason(), "drain");
  worker.Send(EndMessage(key, "Preempted", 0, 6));
  EXPECT_TRUE(Eventually([&] { return GetJob(server, job).state() == v1::JOB_STATE_PENDING; }));
}

}  // namespace
}  // namespace nibble::rpc
