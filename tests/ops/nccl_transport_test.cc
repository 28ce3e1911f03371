// SPDX-License-Identifier: Apache-2.0
//
// The NCCL transport against an NCCL and a CUDA runtime of the test's own: one rank that sees what
// it does itself, and calls that take their time, fail or never end.
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "worker/bench/timed_backend.h"
#include "worker/train/nccl/nccl_plugin.h"
#include "worker/train/test_support.h"

extern "C" nibble::Status nibble_make_nccl_transport(
    uint32_t version, nibble::Backend* backend, const nibble::NcclWorld& world,
    std::unique_ptr<nibble::RankTransport>* transport);

namespace {

constexpr int kNever = 1 << 30;

// What the libraries do.
struct Libraries {
  int init_polls = 3, call_polls = 1, stream_polls = 2;  // before a call, a collective has ended
  int end_polls = 2;
  ncclResult_t init_result = ncclSuccess;
  ncclResult_t send_result = ncclSuccess;
  // What has happened.
  bool blocking = true;
  int pending = 0, busy = 0, depth = 0, open_groups = 0;
  ncclResult_t outcome = ncclSuccess;
  int aborted = 0, destroyed = 0, finalized = 0;
  bool queried_early = false;  // the stream, while a call was in progress

  ncclResult_t Begin(int polls, ncclResult_t result) {
    pending = polls;
    outcome = result;
    return polls > 0 ? ncclInProgress : result;
  }
  ncclResult_t Collective() {
    if (depth > 0) return send_result;
    busy = stream_polls;
    return Begin(call_polls, ncclSuccess);
  }
} libraries;

char comm_memory;

}  // namespace

// NOLINTBEGIN: names are the libraries'.
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error of CUDA"; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(&comm_memory);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) {
  libraries.queried_early |= libraries.pending > 0;
  return libraries.busy-- > 0 ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 7, sizeof(*id));
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int, ncclUniqueId, int, ncclConfig_t* c) {
  *comm = reinterpret_cast<ncclComm_t>(&comm_memory);
  libraries.blocking = c->blocking != 0;
  return libraries.Begin(libraries.init_polls, libraries.init_result);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* result) {
  if (libraries.pending > 0 && libraries.pending < kNever) --libraries.pending;
  *result = libraries.pending > 0 ? ncclInProgress : libraries.outcome;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) {
  ++libraries.finalized;
  return libraries.Begin(libraries.end_polls, ncclSuccess);
}
ncclResult_t ncclCommDestroy(ncclComm_t) {
  ++libraries.destroyed;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t) {
  ++libraries.aborted;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) { return "an error of NCCL"; }
const char* ncclGetLastError(ncclComm_t) { return "its last words"; }
ncclResult_t ncclGroupStart() {
  ++libraries.depth;
  ++libraries.open_groups;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  --libraries.depth;
  --libraries.open_groups;
  return libraries.Collective();
}
ncclResult_t ncclSend(const void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) {
  return libraries.Collective();
}
ncclResult_t ncclRecv(void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) {
  return libraries.Collective();
}
ncclResult_t ncclAllGather(const void* mine, void* all, size_t count, ncclDataType_t type,
                           ncclComm_t, cudaStream_t) {
  std::memcpy(all, mine, count * (type == ncclFloat64 ? 8 : 4));
  return libraries.Collective();
}
ncclResult_t ncclBroadcast(const void*, void*, size_t, ncclDataType_t, int, ncclComm_t,
                           cudaStream_t) {
  return libraries.Collective();
}
// NOLINTEND

namespace nibble {
namespace {

// Called cuda, and the host's.
class CalledCuda final : public bench::TimedBackend {
 public:
  explicit CalledCuda(Backend* inner) : TimedBackend(inner, bench::ClockKind::kWall) {}
  std::string_view name() const override { return "cuda"; }
};

class NcclTransportTest : public testing::Test {
 protected:
  NcclTransportTest() : host_(TestBackend()), backend_(host_.get()) { libraries = Libraries(); }

  Status Open(int64_t timeout_ms) {
    NcclWorld world;
    world.world_size = 2;
    world.timeout_ms = timeout_ms;
    world.exchange = [](const auto& make) { return make(); };
    world.late = [this](int64_t collective) {
      late_ = collective;
      return std::string("rank 1");
    };
    return nibble_make_nccl_transport(kNcclPluginVersion, &backend_, world, &transport_);
  }

  std::unique_ptr<Backend> host_;
  CalledCuda backend_;
  std::unique_ptr<RankTransport> transport_;
  int64_t late_ = -2;
};

TEST_F(NcclTransportTest, WaitsForWhatGoesOnInTheBackground) {
  const Status opened = Open(10'000);
  ASSERT_TRUE(opened.ok()) << opened.ToString();
  EXPECT_FALSE(libraries.blocking);
  float parts[4] = {}, received[4] = {};
  for (const int polls : {0, 1, 5}) {
    libraries.call_polls = polls;
    EXPECT_TRUE(transport_->AllToAll(parts, received, 2).ok());
    EXPECT_TRUE(transport_->AllGather(parts, received, 2).ok());
    EXPECT_TRUE(transport_->Broadcast(parts, 2, 0).ok());
    EXPECT_EQ(transport_->Gather(2.5).value().front(), 2.5);
  }
  EXPECT_FALSE(libraries.queried_early);
  transport_.reset();
  EXPECT_EQ(libraries.finalized, 1);
  EXPECT_EQ(libraries.destroyed, 1);
  EXPECT_EQ(libraries.aborted, 0);
}

TEST_F(NcclTransportTest, ARankThatNeverOpensTheCommunicatorIsNamed) {
  libraries.init_polls = kNever;
  const Status status = Open(30);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("rank 1 did not take part"), std::string::npos)
      << status.message();
  EXPECT_EQ(late_, -1);
  EXPECT_EQ(libraries.aborted, 1);
  EXPECT_EQ(libraries.finalized + libraries.destroyed, 0);
}

TEST_F(NcclTransportTest, ACallOrACollectiveThatNeverEndsIsGivenUp) {
  for (const bool call : {true, false}) {
    libraries = Libraries();
    ASSERT_TRUE(Open(30).ok());
    float x[2] = {};
    ASSERT_TRUE(transport_->Broadcast(x, 2, 0).ok());
    (call ? libraries.call_polls : libraries.stream_polls) = kNever;
    const Status status = transport_->Broadcast(x, 2, 0);
    EXPECT_NE(status.message().find("rank 1 did not take part"), std::string::npos)
        << status.message();
    EXPECT_EQ(late_, 1);
    EXPECT_EQ(libraries.aborted, 1);
    EXPECT_EQ(transport_->Broadcast(x, 2, 0).code(), StatusCode::kUnavailable);
    transport_.reset();
    EXPECT_EQ(libraries.aborted, 1);
  }
}

TEST_F(NcclTransportTest, ErrorsCarryNcclsWordsAndLeaveNoGroupOpen) {
  libraries.init_result = ncclSystemError;
  const Status opened = Open(10'000);
  EXPECT_NE(opened.message().find("its last words"), std::string::npos) << opened.message();
  EXPECT_EQ(libraries.aborted, 1);
  libraries = Libraries();
  ASSERT_TRUE(Open(10'000).ok());
  libraries.send_result = ncclInvalidArgument;
  float parts[4] = {}, received[4] = {};
  EXPECT_EQ(transport_->AllToAll(parts, received, 2).code(), StatusCode::kUnavailable);
  EXPECT_EQ(libraries.open_groups, 0);
}

}  // namespace
}  // namespace nibble
