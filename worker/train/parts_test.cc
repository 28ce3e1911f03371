// SPDX-License-Identifier: Apache-2.0
//
// The small parts: schedule, parameters, clipping, sampler, arguments, communicator, config.json.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/golden/golden.h"
#include "worker/spec/estimate.h"
#include "worker/train/args.h"
#include "worker/train/communicator.h"
#include "worker/train/gradient_exchange.h"
#include "worker/train/model_config_file.h"
#include "worker/train/optimizer.h"
#include "worker/train/sampler.h"
#include "worker/train/schedule.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

TEST(Schedule, WarmsUpLinearlyAndDecaysToTheMinimum) {
  OptimizerConfig config;
  config.peak_lr = 1.0;
  EXPECT_EQ(WarmupSteps(config, 100), 5);
  EXPECT_DOUBLE_EQ(LearningRate(config, 1, 100), 0.2);
  EXPECT_DOUBLE_EQ(LearningRate(config, 5, 100), 1.0);
  EXPECT_DOUBLE_EQ(LearningRate(config, 100, 100), 0.1);
  // Half way down the cosine is the middle between peak and minimum.
  config.warmup_fraction = 0;
  EXPECT_NEAR(LearningRate(config, 50, 100), 0.55, 1e-12);
  for (int64_t step = 1; step < 100; ++step) {
    EXPECT_GT(LearningRate(config, step, 100), LearningRate(config, step + 1, 100));
  }
}

TEST(Schedule, ExtremesStayFinite) {
  OptimizerConfig config;
  config.warmup_fraction = 1;
  EXPECT_DOUBLE_EQ(LearningRate(config, 10, 10), config.peak_lr);
  config.warmup_fraction = 0.05;
  EXPECT_DOUBLE_EQ(LearningRate(config, 1, 1), config.peak_lr);
  EXPECT_TRUE(std::isfinite(LearningRate(config, 200, 100)));  // resumed beyond its steps
}

TEST(Parameters, HaveHuggingFaceNamesAndTheCountOfTheEstimate) {
  ModelConfig model = TinyModel();
  for (const bool tied : {false, true}) {
    model.tied_embeddings = tied;
    const auto backend = TestBackend();
    const auto parameters = Parameters::Create(backend.get(), model).value();
    EXPECT_EQ(parameters.count(), CountParameters(model));
    EXPECT_EQ(parameters.Find("lm_head.weight") == nullptr, tied);
    const ParameterInfo* down = parameters.Find("model.layers.2.mlp.down_proj.weight");
    ASSERT_NE(down, nullptr);
    EXPECT_EQ(down->shape(), (std::vector<int64_t>{32, 48}));
    const ParameterInfo* norm = parameters.Find("model.layers.0.input_layernorm.weight");
    ASSERT_NE(norm, nullptr);
    EXPECT_EQ(norm->shape(), (std::vector<int64_t>{32}));
    EXPECT_STREQ(PlaceOf(*down, 3), "last");
    EXPECT_STREQ(PlaceOf(*norm, 3), "first");
  }
}

TEST(Parameters, InitialisationIsAFunctionOfTheSeedWithTheRightSpread) {
  ModelConfig model = TinyModel();
  model.hidden_size = 128;
  model.intermediate_size = 256;
  const auto backend = TestBackend();
  auto a = Parameters::Create(backend.get(), model, false).value();
  auto b = Parameters::Create(backend.get(), model, false).value();
  ASSERT_TRUE(a.Initialise(model, 7).ok());
  ASSERT_TRUE(b.Initialise(model, 7).ok());
  EXPECT_EQ(a.Fingerprint().value(), b.Fingerprint().value());
  ASSERT_TRUE(b.Initialise(model, 8).ok());
  EXPECT_NE(a.Fingerprint().value(), b.Fingerprint().value());
  const auto deviation = [&](BlockParameter which) {
    const TensorView w = a.weight(a.IndexOf(1, which));
    const double n = static_cast<double>(w.size());
    const double mean = backend->Sum(w).value() / n;
    EXPECT_NEAR(mean, 0, 4 * model.init_std / std::sqrt(n));
    return std::sqrt(backend->SumOfSquares(w).value() / n);
  };
  EXPECT_NEAR(deviation(BlockParameter::kUp), 0.02, 0.0004);
  EXPECT_NEAR(deviation(BlockParameter::kDown), 0.02 / std::sqrt(6.0), 0.0002);
}

TEST(Parameters, InitialisationByAnyNumberOfThreadsIsTheSame) {
  ModelConfig model = TinyModel();
  model.layers = 1;
  model.hidden_size = 544;  // tensors of two chunks and a part of one
  model.intermediate_size = 1024;
  const auto backend = TestBackend();
  auto alone = Parameters::Create(backend.get(), model, false).value();
  auto shared = Parameters::Create(backend.get(), model, false).value();
  ASSERT_TRUE(alone.Initialise(model, 7, 1).ok());
  for (const int threads : {2, 5}) {
    ASSERT_TRUE(shared.Initialise(model, 7, threads).ok());
    EXPECT_EQ(alone.Fingerprint().value(), shared.Fingerprint().value()) << threads;
  }
}

TEST(Optimizer, NormsDoNotDecayAndMatricesDo) {
  const ModelConfig model = TinyModel();
  const auto backend = TestBackend();
  auto p = Parameters::Create(backend.get(), model).value();
  ASSERT_TRUE(p.Initialise(model, 1).ok());
  const size_t matrix = p.IndexOf(0, BlockParameter::kUp);
  const float before = p.weight(matrix).f32()[5];
  OptimizerConfig config;
  // Zero gradients: only the decay acts.
  ASSERT_TRUE(ApplyAdamW(*backend, config, 1, 0.5, 1.0, &p).ok());
  EXPECT_EQ(p.weight(p.final_norm()).f32()[0], 1.0f);
  EXPECT_NEAR(p.weight(matrix).f32()[5], before * (1 - 0.5 * 0.1), 1e-8);
}

TEST(Optimizer, ClipFactorBoundsTheNorm) {
  EXPECT_EQ(ClipFactor(5, 0), 1);
  EXPECT_EQ(ClipFactor(0.5, 1), 1);
  EXPECT_DOUBLE_EQ(ClipFactor(5, 1) * 5, 1);
}

// One of four ranks: the others' maximum and sum are given.
class FourRanks : public Communicator {
 public:
  explicit FourRanks(float amax) : amax_(amax) {}
  int rank() const override { return 0; }
  int world_size() const override { return 4; }
  Status AllReduceSum(TensorView x) override {
    sent.assign(x.f32(), x.f32() + x.size());
    return OkStatus();
  }
  Status ReduceScatterSum(ConstTensorView, TensorView) override { return OkStatus(); }
  Status AllGather(ConstTensorView, TensorView) override { return OkStatus(); }
  Status Broadcast(TensorView, int) override { return OkStatus(); }
  Status Barrier() override { return OkStatus(); }
  Result<double> AllReduceSum(double value) override { return value; }
  Result<float> AllReduceMax(float value) override { return std::max(value, amax_); }

  std::vector<float> sent;

 private:
  float amax_;
};

TEST(GradientExchange, A03RoundsEachRankUnderOneScale) {
  const Json golden = golden::Case("optim", "A03");
  const auto backend = TestBackend();
  EXPECT_EQ(WireScale(2.5f, 4), golden["expect"]["sf"].AsDouble());
  std::vector<double> sum(3);
  for (size_t rank = 0; rank < 4; ++rank) {
    std::vector<float> g = golden::Floats(golden["inputs"]["grads"].items()[rank]);
    const std::vector<float> q = golden::Floats(golden["expect"]["q"].items()[rank]);
    FourRanks world(2.5f);
    ASSERT_TRUE(ExchangeE4M3(*backend, world, {g.data(), 1, 3}).ok());
    EXPECT_EQ(world.sent, q);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(g[i], q[i] / 64.0f);
      sum[i] += static_cast<double>(g[i]);
    }
  }
  const std::vector<double> average = golden::Doubles(golden["expect"]["avg"]);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(sum[i] / 4, average[i]);
}

TEST(GradientExchange, NonFiniteGradientsStaySo) {
  const auto backend = TestBackend();
  const auto world = MakeCommunicator("single", backend.get(), 0, 1).value();
  std::vector<float> g = {1.03f, -INFINITY};
  ASSERT_TRUE(ExchangeE4M3(*backend, *world, {g.data(), 1, 2}).ok());
  EXPECT_EQ(g[1], -INFINITY);
  g = {1.03f, 100.0f};
  ASSERT_TRUE(ExchangeE4M3(*backend, *world, {g.data(), 1, 2}).ok());
  EXPECT_EQ(g, (std::vector<float>{1.0f, 96.0f}));
}

TEST(Sampler, TemperatureZeroTakesTheLowestOfTheLargest) {
  Sampler sampler({0.0, 0, 1});
  EXPECT_EQ(sampler.Next(std::vector<float>{1, 3, 3, 2}), 1);
}

TEST(Sampler, SharesFollowTheSoftmaxAndTopKCutsTheRest) {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(5.0f), -20.0f};
  std::map<int32_t, int> counts;
  Sampler all({1.0, 0, 3});
  for (int i = 0; i < 8000; ++i) ++counts[all.Next(logits)];
  EXPECT_NEAR(counts[0], 1000, 150);
  EXPECT_NEAR(counts[1], 2000, 200);
  EXPECT_NEAR(counts[2], 5000, 250);
  Sampler top({1.0, 1, 3});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(top.Next(logits), 2);
  Sampler again({1.0, 0, 3}), other({1.0, 0, 4});
  Sampler first({1.0, 0, 3});
  int differ = 0;
  for (int i = 0; i < 100; ++i) {
    const int32_t token = first.Next(logits);
    EXPECT_EQ(token, again.Next(logits));
    differ += token != other.Next(logits);
  }
  EXPECT_GT(differ, 10);
}

TEST(Args, ParsesValuesAndSwitchesAndRefusesTheRest) {
  const ArgSpec spec{{"config", "tokens"}, {"json"}};
  const auto args = Args::Parse({"--config", "a b", "--tokens=7", "--json"}, spec);
  ASSERT_TRUE(args.ok());
  EXPECT_EQ(args->Text("config"), "a b");
  EXPECT_EQ(args->Integer("tokens", 1, 1, 10).value(), 7);
  EXPECT_TRUE(args->Has("json"));
  EXPECT_FALSE(args->Integer("tokens", 1, 1, 5).ok());
  EXPECT_NE(Args::Parse({"--tokns", "1"}, spec).status().message().find("'tokens'"),
            std::string::npos);
  for (const std::vector<std::string>& bad : std::vector<std::vector<std::string>>{
           {"--config"}, {"x"}, {"--json=1"}, {"--tokens", "1", "--tokens", "2"}, {"-x"}, {"--"}}) {
    EXPECT_EQ(Args::Parse(bad, spec).status().code(), StatusCode::kInvalidArgument) << bad[0];
  }
}

TEST(Communicator, SingleIsTheIdentityAndLargerWorldsAreRefusedByName) {
  const auto backend = TestBackend();
  const auto one = MakeCommunicator("single", backend.get(), 0, 1).value();
  float values[4] = {1, 2, 3, 4};
  float copy[4] = {};
  ASSERT_TRUE(one->AllReduceSum(TensorView{values, 1, 4}).ok());
  ASSERT_TRUE(one->AllGather(ConstTensorView(values, 1, 4), TensorView{copy, 1, 4}).ok());
  EXPECT_EQ(copy[3], 4);
  EXPECT_EQ(one->AllReduceSum(2.5).value(), 2.5);
  EXPECT_FALSE(one->ReduceScatterSum(ConstTensorView(values, 1, 4), TensorView{copy, 1, 3}).ok());
  EXPECT_FALSE(one->Broadcast(TensorView{values, 1, 4}, 1).ok());
  EXPECT_TRUE(one->Barrier().ok());
  const Status two = MakeCommunicator("single", backend.get(), 0, 2).status();
  EXPECT_EQ(two.code(), StatusCode::kUnimplemented);
  EXPECT_NE(two.message().find("rank 0 of 2"), std::string::npos) << two.message();
  EXPECT_NE(two.message().find("use communicator nccl"), std::string::npos) << two.message();
  EXPECT_EQ(MakeCommunicator("gloo", backend.get(), 0, 1).status().code(),
            StatusCode::kUnimplemented);
}

TEST(Communicator, NcclWithoutPluginOrDeviceSaysWhatToDo) {
  const auto backend = TestBackend();
  const Status status = MakeCommunicator("nccl", backend.get(), 0, 1).status();
  // With a device it is the CPU's memory that is refused.
  EXPECT_TRUE(status.code() == StatusCode::kNotFound || status.code() == StatusCode::kUnavailable ||
              status.code() == StatusCode::kInvalidArgument)
      << status.ToString();
  EXPECT_NE(status.message().find("communicator nccl: "), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("use communicator single"), std::string::npos)
      << status.message();
  const Status outside = MakeCommunicator("nccl", backend.get(), 2, 2).status();
  EXPECT_EQ(outside.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(outside.message().find("rank 2"), std::string::npos) << outside.message();
}

TEST(Communicator, NcclWithOneRankIsTheIdentityOnADevice) {
  const Result<std::unique_ptr<Backend>> device = MakeBackend("cuda", {});
  if (!device.ok()) GTEST_SKIP() << device.status().message();
  Backend& backend = **device;
  const auto made = MakeCommunicator("nccl", &backend, 0, 1);
  if (made.status().code() == StatusCode::kNotFound) GTEST_SKIP() << made.status().message();
  ASSERT_TRUE(made.ok()) << made.status().ToString();
  Communicator& nccl = **made;
  Buffer from, to;
  const TensorView x = from.View(backend, 3, 7).value(), y = to.View(backend, 3, 7).value();
  std::vector<float> source(21), got(21);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<float>(i) * 0.37f - 2;
  ASSERT_TRUE(backend.CopyIn(x.data, source.data(), x.size_bytes()).ok());
  ASSERT_TRUE(nccl.AllReduceSum(x).ok());
  ASSERT_TRUE(nccl.Broadcast(x, 0).ok());
  for (const bool gather : {true, false}) {
    ASSERT_TRUE(backend.Fill(y, 0.0f).ok());
    ASSERT_TRUE((gather ? nccl.AllGather(x, y) : nccl.ReduceScatterSum(x, y)).ok());
    ASSERT_TRUE(backend.CopyOut(got.data(), y.data, y.size_bytes()).ok());
    EXPECT_EQ(got, source);
  }
  EXPECT_EQ(nccl.AllReduceSum(2.5).value(), 2.5);
  EXPECT_TRUE(std::isnan(nccl.AllReduceMax(std::nanf("")).value()));
  EXPECT_TRUE(nccl.Barrier().ok());
  EXPECT_FALSE(nccl.Broadcast(x, 1).ok());
}

TEST(ModelConfigFile, RoundTripsAndRefusesWhatTheModelLacks) {
  const ModelConfig model = TinyModel();
  const Json json = ModelConfigToHuggingFace(model, 64, 1, 2);
  EXPECT_EQ(json["bos_token_id"].AsInt(), 1);
  const auto back = ModelConfigFromHuggingFace(json);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(back->model.kv_heads, 2);
  EXPECT_EQ(back->max_positions, 64);
  EXPECT_EQ(CountParameters(back->model), CountParameters(model));
  const std::pair<const char*, Json> bad[] = {
      {"model_type", "gpt2"}, {"attention_bias", true}, {"rope_scaling", Json::Object()},
      {"hidden_act", "gelu"}, {"hidden_size", 33},      {"num_hidden_layers", 0},
      {"vocab_size", Json()}};
  for (const auto& [key, value] : bad) {
    Json changed = json;
    changed.Set(key, value);
    EXPECT_EQ(ModelConfigFromHuggingFace(changed).status().code(), StatusCode::kInvalidArgument)
        << key;
  }
}

}  // namespace
}  // namespace nibble
