// SPDX-License-Identifier: Apache-2.0
//
// JobService and ClusterService over a real connection.
#include <gtest/gtest.h>

#include <thread>

#include "server/rpc/server_test_support.h"

namespace nibble::rpc {
namespace {

v1::SubmitJobRequest SubmitRequest(const std::string& name, const std::string& request_id = "") {
  v1::SubmitJobRequest request;
  *request.mutable_spec() = SmallSpec(name);
  request.set_user("tester");
  request.set_request_id(request_id);
  return request;
}

v1::Job Submit(v1::JobService::Stub& jobs, const v1::SubmitJobRequest& request) {
  Context context;
  v1::SubmitJobResponse response;
  const grpc::Status status = jobs.SubmitJob(context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.job();
}

v1::Job Get(v1::JobService::Stub& jobs, const std::string& job) {
  Context context;
  v1::GetJobRequest request;
  request.set_job(job);
  v1::Job response;
  jobs.GetJob(context, request, &response);
  return response;
}

TEST(JobApi, SubmittedJobIsListedAndFoundByIdAndName) {
  TestServer server;
  const auto jobs = server.Jobs();
  const v1::Job job = Submit(*jobs, SubmitRequest("alpha"));
  EXPECT_EQ(job.state(), v1::JOB_STATE_PENDING);
  EXPECT_EQ(job.user(), "tester");
  EXPECT_EQ(job.spec_hash().size(), 64u);
  EXPECT_EQ(job.spec().precision().recipe(), "fp4_foldi8");
  EXPECT_GT(job.submit_time().seconds(), 1'600'000'000);
  EXPECT_EQ(Get(*jobs, "alpha").id(), job.id());
  Submit(*jobs, SubmitRequest("beta"));
  Context context;
  v1::ListJobsResponse list;
  ASSERT_TRUE(jobs->ListJobs(context, {}, &list).ok());
  ASSERT_EQ(list.jobs_size(), 2);
  EXPECT_EQ(list.jobs(0).spec().metadata().name(), "beta");  // newest first
}

TEST(JobApi, ListFiltersByQueueStateAndLabels) {
  TestServer server;
  const auto jobs = server.Jobs();
  v1::SubmitJobRequest labelled = SubmitRequest("labelled");
  (*labelled.mutable_spec()->mutable_metadata()->mutable_labels())["arm"] = "fp4";
  labelled.mutable_spec()->set_queue("night");
  const v1::Job job = Submit(*jobs, labelled);
  Submit(*jobs, SubmitRequest("plain"));
  const auto count = [&jobs](const v1::ListJobsRequest& request) {
    Context context;
    v1::ListJobsResponse response;
    EXPECT_TRUE(jobs->ListJobs(context, request, &response).ok());
    return response.jobs_size();
  };
  v1::ListJobsRequest request;
  (*request.mutable_labels())["arm"] = "fp4";
  EXPECT_EQ(count(request), 1);
  (*request.mutable_labels())["arm"] = "bf16";
  EXPECT_EQ(count(request), 0);
  request.Clear();
  request.set_queue("night");
  EXPECT_EQ(count(request), 1);
  request.Clear();
  request.add_states(v1::JOB_STATE_RUNNING);
  EXPECT_EQ(count(request), 0);
  request.add_states(v1::JOB_STATE_PENDING);
  EXPECT_EQ(count(request), 2);
}

TEST(JobApi, BadPageTokenAndSizeAreRefused) {
  TestServer server;
  const auto jobs = server.Jobs();
  v1::ListJobsRequest request;
  v1::ListJobsResponse response;
  request.set_page_token("nonsense");
  Context first;
  EXPECT_EQ(jobs->ListJobs(first, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.clear_page_token();
  request.set_page_size(-1);
  Context second;
  EXPECT_EQ(jobs->ListJobs(second, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(JobApi, RequestIdMakesSubmitIdempotentAlsoAfterRestart) {
  TestServer server;
  auto jobs = server.Jobs();
  const v1::Job first = Submit(*jobs, SubmitRequest("once", "req-1"));
  EXPECT_EQ(Submit(*jobs, SubmitRequest("once", "req-1")).id(), first.id());
  Context context;
  v1::SubmitJobResponse response;
  const grpc::Status status = jobs->SubmitJob(context, SubmitRequest("other", "req-1"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(context.Detail().reason(), "RequestIdReused");
  server.Restart();
  jobs = server.Jobs();
  EXPECT_EQ(Submit(*jobs, SubmitRequest("once", "req-1")).id(), first.id());
  Context list_context;
  v1::ListJobsResponse list;
  ASSERT_TRUE(jobs->ListJobs(list_context, {}, &list).ok());
  EXPECT_EQ(list.jobs_size(), 1);
}

TEST(JobApi, InvalidSpecListsViolationsInTheTrailer) {
  TestServer server;
  const auto jobs = server.Jobs();
  v1::SubmitJobRequest request = SubmitRequest("broken");
  request.mutable_spec()->mutable_model()->set_heads(5);
  request.mutable_spec()->mutable_precision()->set_recipe("fp4_ms");
  Context context;
  v1::SubmitJobResponse response;
  const grpc::Status status = jobs->SubmitJob(context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const v1::ErrorDetail detail = context.Detail();
  EXPECT_EQ(detail.reason(), "InvalidSpec");
  ASSERT_EQ(detail.violations_size(), 2);
  EXPECT_EQ(detail.violations(0).field(), "model.heads");
  EXPECT_EQ(detail.violations(1).field(), "precision.recipe");
  EXPECT_NE(detail.violations(1).description().find("fp4_ms_paper"), std::string::npos);
}

TEST(JobApi, HugeListOfMistakesStillFitsTheTrailer) {
  TestServer server;
  const auto jobs = server.Jobs();
  v1::SubmitJobRequest request = SubmitRequest("many");
  for (int i = 0; i < 120; ++i) {
    (*request.mutable_spec()->mutable_env())["NIBBLE_" + std::to_string(i)] = "x";
  }
  Context context;
  v1::SubmitJobResponse response;
  const grpc::Status status = jobs->SubmitJob(context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_GT(context.Detail().violations_size(), 10);
  EXPECT_LT(context.Detail().violations_size(), 120);
}

TEST(JobApi, UnknownJobIsNotFoundEverywhere) {
  TestServer server;
  const auto jobs = server.Jobs();
  Context context;
  v1::GetJobRequest get;
  get.set_job("nope");
  v1::Job job;
  EXPECT_EQ(jobs->GetJob(context, get, &job).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(context.Detail().reason(), "UnknownJob");
  Context cancel_context;
  v1::CancelJobRequest cancel;
  cancel.set_job("nope");
  EXPECT_EQ(jobs->CancelJob(cancel_context, cancel, &job).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(cancel_context.Detail().reason(), "UnknownJob");
  Context watch_context;
  v1::WatchJobRequest watch;
  watch.set_job("nope");
  auto reader = jobs->WatchJob(watch_context, watch);
  v1::WatchJobResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(JobApi, DryRunEstimatesAndStoresNothing) {
  TestServer server;
  const auto jobs = server.Jobs();
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  worker.inbox().AwaitRegistered();
  v1::SubmitJobRequest request = SubmitRequest("dry");
  request.set_dry_run(true);
  request.mutable_spec()->mutable_resources()->set_memory_bytes(int64_t{100} << 40);
  Context context;
  v1::SubmitJobResponse response;
  ASSERT_TRUE(jobs->SubmitJob(context, request, &response).ok());
  EXPECT_FALSE(response.has_job());
  ASSERT_EQ(response.estimate().fits_size(), 1);
  EXPECT_FALSE(response.estimate().fits(0).fits());
  EXPECT_NE(response.estimate().fits(0).why_not().find("memory"), std::string::npos)
      << response.estimate().fits(0).why_not();
  request.mutable_spec()->mutable_resources()->set_memory_bytes(0);
  Context again;
  ASSERT_TRUE(jobs->SubmitJob(again, request, &response).ok());
  EXPECT_TRUE(response.estimate().fits(0).fits());
  EXPECT_GT(response.estimate().fits(0).step_seconds(), 0);
  EXPECT_GT(response.estimate().parameters(), 0);
  EXPECT_GT(response.estimate().memory_bytes().at("total"), 0);
  Context list_context;
  v1::ListJobsResponse list;
  ASSERT_TRUE(jobs->ListJobs(list_context, {}, &list).ok());
  EXPECT_EQ(list.jobs_size(), 0);
}

TEST(JobApi, EventsTellTheHistoryInPages) {
  TestServer server;
  const auto jobs = server.Jobs();
  const std::string job = Submit(*jobs, SubmitRequest("history")).id();
  Context cancel_context;
  v1::CancelJobRequest cancel;
  cancel.set_job(job);
  cancel.set_actor("tester");
  v1::Job cancelled;
  ASSERT_TRUE(jobs->CancelJob(cancel_context, cancel, &cancelled).ok());
  EXPECT_EQ(cancelled.state(), v1::JOB_STATE_CANCELLED);
  v1::ListJobEventsRequest request;
  request.set_job(job);
  request.set_page_size(1);
  std::vector<std::string> types;
  do {
    Context context;
    v1::ListJobEventsResponse response;
    ASSERT_TRUE(jobs->ListJobEvents(context, request, &response).ok());
    for (const v1::JobEvent& event : response.events()) types.push_back(event.type());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty() && types.size() < 50);
  ASSERT_GE(types.size(), 2u);
  EXPECT_EQ(types.front(), "JobSubmitted");
  EXPECT_EQ(types.back(), "JobEnded");
}

TEST(JobApi, UpdateChangesPriorityAndTimeLimitOnly) {
  TestServer server;
  const auto jobs = server.Jobs();
  const std::string job = Submit(*jobs, SubmitRequest("update")).id();
  v1::UpdateJobRequest request;
  request.set_job(job);
  v1::Job changed;
  Context nothing;
  EXPECT_EQ(jobs->UpdateJob(nothing, request, &changed).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.set_priority(7);
  request.mutable_time_limit()->set_seconds(60);
  Context context;
  ASSERT_TRUE(jobs->UpdateJob(context, request, &changed).ok());
  EXPECT_EQ(changed.spec().priority(), 7);
  EXPECT_EQ(changed.spec().time_limit().seconds(), 60);
  request.set_priority(5000);
  Context out_of_range;
  EXPECT_EQ(jobs->UpdateJob(out_of_range, request, &changed).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(JobApi, NodesAreListedDrainedAndUndrained) {
  TestServer server;
  auto cluster = v1::ClusterService::NewStub(server.Channel());
  StreamWorker worker(server.Channel());
  v1::WorkerMessage registration = RegisterMessage("w-1");
  for (int i = 0; i < core::kMaxNotesPerWorker + 3; ++i) {
    registration.mutable_register_()->add_notes("no GPU slots: " + std::to_string(i));
  }
  registration.mutable_register_()->set_notes(1, std::string(core::kMaxTextBytes + 7, 'x'));
  worker.Send(registration);
  worker.inbox().AwaitRegistered();
  Context list_context;
  v1::ListNodesResponse nodes;
  ASSERT_TRUE(cluster->ListNodes(list_context, {}, &nodes).ok());
  ASSERT_EQ(nodes.nodes_size(), 1);
  EXPECT_EQ(nodes.nodes(0).state(), "up");
  ASSERT_EQ(nodes.nodes(0).devices_size(), 1);
  EXPECT_EQ(nodes.nodes(0).devices(0).gflops(), 50);
  EXPECT_EQ(nodes.nodes(0).devices(0).features(0), "e2m1");
  ASSERT_EQ(nodes.nodes(0).notes_size(), core::kMaxNotesPerWorker);
  EXPECT_EQ(nodes.nodes(0).notes(0), "no GPU slots: 0");
  EXPECT_EQ(nodes.nodes(0).notes(1), std::string(core::kMaxTextBytes, 'x'));
  v1::DrainNodeRequest drain;
  drain.set_worker_id("w-1");
  drain.set_reason("new memory");
  drain.set_actor("tester");
  v1::Node node;
  Context drain_context;
  ASSERT_TRUE(cluster->DrainNode(drain_context, drain, &node).ok());
  EXPECT_EQ(node.state(), "drained");
  EXPECT_EQ(node.drain_reason(), "new memory");
  v1::UndrainNodeRequest undrain;
  undrain.set_worker_id("w-1");
  Context undrain_context;
  ASSERT_TRUE(cluster->UndrainNode(undrain_context, undrain, &node).ok());
  EXPECT_EQ(node.state(), "up");
  drain.set_worker_id("w-404");
  Context unknown;
  EXPECT_EQ(cluster->DrainNode(unknown, drain, &node).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(unknown.Detail().reason(), "UnknownWorker");
  Context info_context;
  v1::ServerInfo info;
  ASSERT_TRUE(cluster->GetServerInfo(info_context, {}, &info).ok());
  EXPECT_EQ(info.http_address(), server.server().http_address());
  EXPECT_GE(info.recipes_size(), 5);
  EXPECT_EQ(info.presets_size(), 7);
  // What the worker said of itself outlives the controller, before the worker is back.
  server.Restart();
  cluster = v1::ClusterService::NewStub(server.Channel());
  Context again;
  ASSERT_TRUE(cluster->ListNodes(again, {}, &nodes).ok());
  ASSERT_EQ(nodes.nodes_size(), 1);
  EXPECT_EQ(nodes.nodes(0).notes_size(), core::kMaxNotesPerWorker);
}

// A worker whose self-test found no path for a recipe never gets its jobs, whatever else is free.
TEST(JobApi, AJobWaitsForADeviceThatProvedItsRecipe) {
  TestServer server;
  const auto jobs = server.Jobs();
  StreamWorker unproved(server.Channel()), proved(server.Channel());
  v1::WorkerMessage without = RegisterMessage("w-1");
  v1::Device& device = *without.mutable_register_()->mutable_devices(0);
  device.clear_features();
  for (const std::string& name : BuiltInRecipeNames()) {
    if (name != "bf16") device.add_features("recipe:" + name);
  }
  unproved.Send(without);
  unproved.inbox().AwaitRegistered();
  v1::SubmitJobRequest request = SubmitRequest("needs-bf16");
  request.mutable_spec()->mutable_precision()->set_recipe("bf16");
  const v1::Job job = Submit(*jobs, request);
  v1::ExplainJobRequest why;
  why.set_job(job.id());
  v1::ExplainJobResponse answer;
  Context context;
  ASSERT_TRUE(jobs->ExplainJob(context, why, &answer).ok());
  EXPECT_EQ(answer.reason(), "CapabilityNotProved");
  EXPECT_NE(answer.message().find("recipe:bf16"), std::string::npos) << answer.message();
  // The worker still gets other jobs.
  Submit(*jobs, SubmitRequest("default"));
  EXPECT_EQ(unproved.inbox().AwaitStart().job_name(), "default");
  proved.Send(RegisterMessage("w-2"));
  proved.inbox().AwaitRegistered();
  EXPECT_EQ(proved.inbox().AwaitStart().job_name(), "needs-bf16");
}

TEST(JobApi, WatchStreamsRecordsAndEndsAfterTheTerminalState) {
  TestServer server;
  const auto jobs = server.Jobs();
  StreamWorker worker(server.Channel());
  worker.Send(RegisterMessage("w-1"));
  const std::string job = Submit(*jobs, SubmitRequest("watched")).id();
  const v1::AttemptKey key = worker.inbox().AwaitStart().key();
  Context context;
  v1::WatchJobRequest request;
  request.set_job(job);
  request.set_metrics(true);
  auto reader = jobs->WatchJob(context, request);
  v1::WatchJobResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.job().id(), job);
  worker.Send(ReportMessage(key, "starting"));
  worker.Send(StepsMessage(key, 1, 10));
  worker.inbox().AwaitTelemetryAck();
  worker.Send(EndMessage(key, "Completed", 0, 10));
  int records = 0;
  v1::JobState last = v1::JOB_STATE_UNSPECIFIED;
  while (reader->Read(&response)) {
    records += response.records_size();
    if (response.has_job()) last = response.job().state();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(records, 10);
  EXPECT_EQ(last, v1::JOB_STATE_SUCCEEDED);
}

TEST(JobApi, CancelledWatchAndShutdownDoNotHang) {
  TestServer server;
  const auto jobs = server.Jobs();
  const std::string job = Submit(*jobs, SubmitRequest("idle")).id();
  v1::WatchJobRequest request;
  request.set_job(job);
  v1::WatchJobResponse response;
  {
    Context context;
    auto reader = jobs->WatchJob(context, request);
    ASSERT_TRUE(reader->Read(&response));
    context->TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  Context context;
  auto reader = jobs->WatchJob(context, request);
  ASSERT_TRUE(reader->Read(&response));
  std::thread stop([&server] { server.server().Shutdown(kTestPatience); });
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  stop.join();
}

}  // namespace
}  // namespace nibble::rpc
