// SPDX-License-Identifier: Apache-2.0
//
// A whole run on memory that only the backend may touch, as that of a device: training,
// checkpoints, resuming on another backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/self_test.h"
#include "kernels/self_test_ops.h"
#include "worker/bench/sealed_test_backend.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

// Has no rotations.
class UnrotatingBackend final : public SealedBackend {
 public:
  using SealedBackend::SealedBackend;
  Status Rotate(const Rotation&, const QuantizeContext&, bool, ConstTensorView,
                TensorView) override {
    return UnimplementedError("no rotations here");
  }
};

// Its products on codes are a thousandth too large.
class InexactBackend final : public SealedBackend {
 public:
  using SealedBackend::SealedBackend;
  Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                       const QuantizedTensor& b, TensorView out) override {
    RETURN_IF_ERROR(SealedBackend::QuantizedGemm(params, a, b, out));
    return Scale(1.001f, out);
  }
};

// Its products with FP8 operands are about as far off as those of Hopper's tensor cores, which take
// sizes that are multiples of 16; with `all` so are those of other codes.
class RoughBackend final : public bench::TimedBackend {
 public:
  RoughBackend(std::unique_ptr<Backend> inner, bool all)
      : TimedBackend(inner.get(), bench::ClockKind::kWall), inner_(std::move(inner)), all_(all) {}
  Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                       const QuantizedTensor& b, TensorView out) override {
    RETURN_IF_ERROR(TimedBackend::QuantizedGemm(params, a, b, out));
    const auto fp8 = [](Elem elem) { return elem == Elem::kE4M3 || elem == Elem::kE5M2; };
    const bool rough = all_ || fp8(a.elem) || fp8(b.elem);
    const int64_t depth = a.rows * a.cols / out.rows;
    if (!rough || (out.rows | out.cols | depth) % 16 != 0) return OkStatus();
    return Scale(1.0004f, out);
  }

 private:
  std::unique_ptr<Backend> inner_;
  bool all_;
};

// Leaves nothing of what it formed only to quantize it.
class ForgetfulBackend final : public SealedBackend {
 public:
  using SealedBackend::SealedBackend;
  Support Supports(const OpQuery& query) const override {
    const bool forms = query.op == Op::kRmsNorm || query.op == Op::kSwiGlu;
    return forms ? Support::kFast : SealedBackend::Supports(query);
  }
  Status QuantizeFormed(const OperandSource& source, const Quant& quant,
                        const QuantizeContext& context, QuantizedTensor* out) override {
    ++formed;
    RETURN_IF_ERROR(Backend::QuantizeFormed(source, quant, context, out));
    return Fill(source.rows, std::numeric_limits<float>::quiet_NaN());
  }
  Status QuantizeRotated(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                         TensorView rotated_values, QuantizedTensor* out,
                         TensorView decoded) override {
    ++rotated;
    RETURN_IF_ERROR(Backend::QuantizeRotated(quant, context, x, rotated_values, out, decoded));
    return Fill(rotated_values, std::numeric_limits<float>::quiet_NaN());
  }
  Status SwiGluBackwardToCodes(const SwiGluGradientViews& views,
                               const std::array<QuantizeTarget, 2>& dgate,
                               const std::array<QuantizeTarget, 2>& dup) override {
    ++gradients;
    RETURN_IF_ERROR(Backend::SwiGluBackwardToCodes(views, dgate, dup));
    for (const TensorView& x : {views.dout, views.gate, views.up, views.dgate, views.dup}) {
      RETURN_IF_ERROR(Fill(x, std::numeric_limits<float>::quiet_NaN()));
    }
    return OkStatus();
  }
  inline static int formed = 0, rotated = 0, gradients = 0;
};

// One of its operations is wrong in one element, or missing.
class FaultyBackend final : public SealedBackend {
 public:
  FaultyBackend(std::unique_ptr<Backend> inner, std::string operation, Status answer)
      : SealedBackend(std::move(inner)), operation_(std::move(operation)), answer_(answer) {}
  Status AttentionBackward(const AttentionParams& params, ConstTensorView dout, ConstTensorView q,
                           ConstTensorView k, ConstTensorView v, ConstTensorView out,
                           ConstTensorView lse, TensorView dq, TensorView dk,
                           TensorView dv) override {
    RETURN_IF_ERROR(SealedBackend::AttentionBackward(params, dout, q, k, v, out, lse, dq, dk, dv));
    return Spoil("attention", dk);
  }
  Status RmsNormBackward(ConstTensorView dout, ConstTensorView x, ConstTensorView weight,
                         ConstTensorView rstd, TensorView dx, bool accumulate_dx,
                         TensorView dweight) override {
    RETURN_IF_ERROR(
        SealedBackend::RmsNormBackward(dout, x, weight, rstd, dx, accumulate_dx, dweight));
    return Spoil("rms_norm", dweight);
  }
  Status RopeBackward(const RopeParams& params, TensorView dx) override {
    RETURN_IF_ERROR(SealedBackend::RopeBackward(params, dx));
    return Spoil("rope", dx);
  }
  Status SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) override {
    RETURN_IF_ERROR(SealedBackend::SwiGluForward(gate, up, out));
    return Spoil("swiglu", out);
  }
  Status EmbeddingBackward(ConstTensorView ids, ConstTensorView dout, TensorView dtable) override {
    RETURN_IF_ERROR(SealedBackend::EmbeddingBackward(ids, dout, dtable));
    return Spoil("embedding", dtable);
  }
  Status CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                      TensorView gradient, TensorView losses) override {
    RETURN_IF_ERROR(SealedBackend::CrossEntropy(logits, targets, gradient_scale, gradient, losses));
    return Spoil("cross_entropy", losses);
  }
  Status AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m, TensorView v,
               TensorView parameter) override {
    RETURN_IF_ERROR(SealedBackend::AdamW(params, gradient, m, v, parameter));
    return Spoil("adamw", v);
  }

 private:
  // The last element becomes an eighth larger, or the operation answers `answer_`.
  Status Spoil(const std::string& operation, TensorView x) {
    if (operation != operation_) return OkStatus();
    if (!answer_.ok()) return answer_;
    return Scale(1.125f, {x.f32() + x.size() - 1, 1, 1});
  }
  std::string operation_;
  Status answer_;
};

class DeviceMemoryTest : public RunTest {
 protected:
  // An environment whose backend "cuda" is the sealed one.
  template <typename Device = SealedBackend>
  static RunEnvironment Sealed() {
    RunEnvironment environment;
    environment.make_backend =
        [](std::string_view name,
           const BackendOptions& options) -> Result<std::unique_ptr<Backend>> {
      ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, MakeBackend("cpu", options));
      if (name == kBackendCpu) return cpu;
      return std::unique_ptr<Backend>(std::make_unique<Device>(std::move(cpu)));
    };
    return environment;
  }
  EndRecord RunOn(const char* backend, const std::string& run, const std::string& recipe,
                  int64_t steps) const {
    RunConfig config = Config(run, recipe, steps);
    config.run.backend = backend;
    return Run(config, Sealed());
  }
};

TEST_F(DeviceMemoryTest, SealedPagesStopTheHost) {
  SealedBackend backend(TestBackend());
  const auto memory = static_cast<float*>(backend.Allocate(64).value());
  ASSERT_TRUE(backend.Fill({memory, 1, 16}, 2.0f).ok());
  EXPECT_DEATH(memory[0] = 1.0f, "");
  float host = 0;
  ASSERT_TRUE(backend.CopyOut(&host, memory, 4).ok());
  EXPECT_EQ(host, 2.0f);
}

TEST_F(DeviceMemoryTest, TheSelfTestProvesADeviceThroughTheBackendAlone) {
  SealedBackend device(TestBackend());
  const auto host = TestBackend();
  const Result<SelfTestReport> report = ProveBackend(device, *host);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(report->features, ProveBackend(*host, *host)->features);
}

TEST_F(DeviceMemoryTest, APathThatTheBackendRefusesIsNotProved) {
  UnrotatingBackend device(TestBackend());
  const auto host = TestBackend();
  const Result<SelfTestReport> report = ProveBackend(device, *host);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  const auto proved = [&](const std::string& feature) {
    return std::count(report->features.begin(), report->features.end(), feature) == 1;
  };
  EXPECT_TRUE(proved("recipe:fp4_ms_paper"));
  EXPECT_FALSE(proved("recipe:quartet"));
  EXPECT_FALSE(proved("recipe:nvfp4_te"));
  bool said = false;
  for (const auto& [feature, why] : report->refused) {
    said |= feature == "recipe:quartet" && why == "no rotations here";
  }
  EXPECT_TRUE(said);
}

TEST_F(DeviceMemoryTest, ADeviceThatMiscomputesIsRefusedByName) {
  InexactBackend device(TestBackend());
  const auto host = TestBackend();
  const Status status = ProveBackend(device, *host).status();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("self-test of linear.fp4 failed"), std::string::npos)
      << status.message();
}

TEST_F(DeviceMemoryTest, RoughSumsOfFp8TensorCoresPassThoseOfFp4DoNot) {
  const auto host = TestBackend();
  RoughBackend hopper(TestBackend(), false);
  const Status passed = ProveBackend(hopper, *host).status();
  EXPECT_TRUE(passed.ok()) << passed.ToString();
  RoughBackend rough(TestBackend(), true);
  const Status status = ProveBackend(rough, *host).status();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("self-test of recipe:"), std::string::npos) << status.message();
}

TEST_F(DeviceMemoryTest, OneWrongElementOfAnyOperationOfAStepIsSeen) {
  const auto host = TestBackend();
  for (const char* operation :
       {"attention", "rms_norm", "rope", "swiglu", "embedding", "cross_entropy", "adamw"}) {
    FaultyBackend device(TestBackend(), operation, OkStatus());
    const Status status = ProveStepOperations(device, *host);
    EXPECT_EQ(status.code(), StatusCode::kInternal) << operation;
    EXPECT_NE(status.message().find(std::string("self-test of ") + operation), std::string::npos)
        << status.message();
  }
  FaultyBackend none(TestBackend(), "none of them", OkStatus());
  const Status passed = ProveStepOperations(none, *host);
  EXPECT_TRUE(passed.ok()) << passed.ToString();
}

TEST_F(DeviceMemoryTest, ADeviceWithoutAnOperationOfEveryStepIsNotOffered) {
  const auto host = TestBackend();
  FaultyBackend device(TestBackend(), "rope", UnimplementedError("no rotary positions here"));
  const Status status = ProveStepOperations(device, *host);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("rope"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("no rotary positions here"), std::string::npos)
      << status.message();
}

TEST_F(DeviceMemoryTest, TrainingTouchesMemoryThroughTheBackendAlone) {
  for (const char* recipe : {"bf16", "fp4_ms_paper", "fp4_foldi8", "fp8_lm", "nvfp4_te"}) {
    SCOPED_TRACE(recipe);
    if (!CheckRecipeFits(TinyModel(), *FindRecipe(recipe), 32).ok()) continue;
    const EndRecord host = RunOn(kBackendCpu, std::string("host-") + recipe, recipe, 8);
    const EndRecord device = RunOn(kBackendCuda, std::string("device-") + recipe, recipe, 8);
    ASSERT_EQ(host.reason, kEndCompleted) << host.message;
    ASSERT_EQ(device.reason, kEndCompleted) << device.message;
    EXPECT_EQ(device.weights_sha256, host.weights_sha256);
  }
}

// An operand wanted as codes alone is read by nobody once they are made, recomputed or not.
TEST_F(DeviceMemoryTest, WhatWasFormedToBeQuantizedIsNotReadAgain) {
  struct Case {
    const char* recipe;
    bool forms, gradients;  // as codes alone: this backend multiplies no FP8 codes
    bool rotates;
  };
  for (const Case& c :
       {Case{"fp4_foldi8", true, true, false}, Case{"fp4_fold8_e4m3", true, false, false},
        Case{"fp4_ms_paper", true, false, false}, Case{"te_fp8_current", false, false, false},
        Case{"nvfp4_te", false, false, true}, Case{"quartet", true, false, true},
        Case{"tetrajet2", true, false, true}, Case{"bf16", false, false, false}}) {
    SCOPED_TRACE(c.recipe);
    const auto config_of = [&](const std::string& run) {
      RunConfig config = Config(run + c.recipe, c.recipe, 4);
      if (!CheckRecipeFits(config.model, *FindRecipe(c.recipe), 32).ok()) {
        config.model = WideModel();
        config.schedule.micro_batch = config.schedule.global_batch = 8;
      }
      return config;
    };
    const EndRecord host = Run(config_of("host-"), Sealed());
    ASSERT_EQ(host.reason, kEndCompleted) << host.message;
    for (const char* recompute : {"none", "norm+swiglu", "block"}) {
      RunConfig config = config_of(std::string(recompute) + "-");
      config.run.backend = kBackendCuda;
      config.memory.recompute = *ParseRecompute(recompute);
      ForgetfulBackend::formed = ForgetfulBackend::rotated = ForgetfulBackend::gradients = 0;
      const EndRecord end = Run(config, Sealed<ForgetfulBackend>());
      ASSERT_EQ(end.reason, kEndCompleted) << end.message;
      EXPECT_EQ(end.weights_sha256, host.weights_sha256);
      EXPECT_EQ(ForgetfulBackend::formed > 0, c.forms);
      EXPECT_EQ(ForgetfulBackend::rotated > 0, c.rotates);
      EXPECT_EQ(ForgetfulBackend::gradients > 0, c.gradients);
    }
  }
}

// The same numbers but for the order of sums.
TEST_F(DeviceMemoryTest, ABackendThatStoresBf16MultipliesIt) {
  const EndRecord host = RunOn(kBackendCpu, "host", "bf16", 8);
  ASSERT_EQ(host.reason, kEndCompleted) << host.message;
  int64_t products = 0;
  RunEnvironment environment;
  environment.make_backend = [&](std::string_view, const BackendOptions& options) {
    return Result<std::unique_ptr<Backend>>(
        std::make_unique<NarrowBackend>(MakeBackend("cpu", options).value(), &products));
  };
  RunConfig config = Config("device", "bf16", 8);
  config.run.backend = kBackendCuda;
  const EndRecord device = Run(config, environment);
  ASSERT_EQ(device.reason, kEndCompleted) << device.message;
  const int64_t layers = 7 * config.model.layers;
  const int64_t passes = config.schedule.global_batch / config.schedule.micro_batch * 8;
  EXPECT_GT(products, 3 * (layers + 1) * passes);  // and those of validation
  EXPECT_NEAR(device.final_validation_loss, host.final_validation_loss, 1e-4);
}

// Checkpoints are read and written in between, too.
TEST_F(DeviceMemoryTest, MomentsOnTheHostGiveTheSameRun) {
  for (const char* recipe : {"bf16", "fp8_lm"}) {
    const EndRecord kept = RunOn(kBackendCpu, std::string("kept-") + recipe, recipe, 8);
    const std::string run = std::string("offloaded-") + recipe;
    RunConfig config = Config(run, recipe, 8);
    config.run.backend = kBackendCuda;
    config.memory.offload_optimizer = true;
    RunEnvironment environment = Sealed();
    int asked = 0;
    environment.stop_requested = [&asked] { return asked++ == 3; };
    ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
    const EndRecord end = Run(config, Sealed());
    ASSERT_EQ(end.reason, kEndCompleted) << end.message;
    EXPECT_EQ(end.weights_sha256, kept.weights_sha256) << recipe;
    const auto memory = Only<MemoryRecord>(Journal(run));
    ASSERT_FALSE(memory.empty());
    EXPECT_GT(memory.back().bytes.at("host"), memory.back().bytes.at("optimizer")) << recipe;
  }
}

TEST_F(DeviceMemoryTest, CheckpointsMoveBetweenBackends) {
  const EndRecord whole = RunOn(kBackendCpu, "whole", "fp4_ms_paper", 12);
  ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
  for (const bool device_first : {true, false}) {
    const std::string run = device_first ? "there" : "back";
    const char* first = device_first ? kBackendCuda : kBackendCpu;
    const char* second = device_first ? kBackendCpu : kBackendCuda;
    // Stopped after four steps, gone on with elsewhere.
    RunConfig config = Config(run, "fp4_ms_paper", 12);
    config.run.backend = first;
    RunEnvironment environment = Sealed();
    int asked = 0;
    environment.stop_requested = [&asked] { return asked++ == 4; };
    ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
    config.run.backend = second;
    const EndRecord end = Run(config, Sealed());
    ASSERT_EQ(end.reason, kEndCompleted) << end.message;
    EXPECT_EQ(end.weights_sha256, whole.weights_sha256);
  }
}

}  // namespace
}  // namespace nibble
