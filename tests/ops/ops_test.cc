// SPDX-License-Identifier: Apache-2.0
//
// Every declared operation on every backend: values, gradients, threads, non-finite input. The CUDA
// backend is tested where its plug-in and a device are; elsewhere its cases are skipped, saying
// why.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "base/strings.h"
#include "kernels/formats/philox.h"
#include "tests/ops/op_case.h"

namespace nibble::ops {
namespace {

// Uniform in [-1, 1), a multiple of 2^-12 so that float and double agree on it.
double Draw(uint32_t stream, int64_t i) {
  const uint32_t word = formats::RandomWord(42, 0, stream, static_cast<uint64_t>(i));
  return static_cast<double>(static_cast<int32_t>(word >> 19)) * 0x1p-12 - 1.0;
}

Doubles MakeInputs(const OpCase& c) {
  Doubles inputs;
  for (size_t n = 0; n < c.inputs.size(); ++n) {
    const Operand& operand = c.inputs[n];
    std::vector<double> values(static_cast<size_t>(operand.size()));
    for (int64_t i = 0; i < operand.size(); ++i) {
      const double draw = Draw(static_cast<uint32_t>(n), i);
      values[static_cast<size_t>(i)] = operand.id_limit > 0
                                           ? std::floor((draw + 1.0) * 0.5 * operand.id_limit)
                                           : draw + operand.offset;
    }
    inputs.push_back(std::move(values));
  }
  return inputs;
}

// Results of one run on one backend: outputs, then input gradients.
struct RunResult {
  std::vector<std::vector<float>> outputs, gradients;
  Status status;
};

// A case and the backend it runs on.
struct Param {
  OpCase op;
  std::string backend;
};

// Why the backend cannot be tested here, "" when it can.
std::string ReasonToSkip(const std::string& backend) {
  if (backend == "cpu") return "";
  static const std::string reason = MakeBackend("cuda", {}).status().message();
  return reason;
}

class OpRun {
 public:
  OpRun(const Param& param, int threads) : case_(param.op) {
    BackendOptions options;
    options.threads = threads;
    Result<std::unique_ptr<Backend>> made = MakeBackend(param.backend, options);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    backend_ = std::move(*made);
  }

  RunResult Execute(const Doubles& inputs, const std::vector<double>& dout) {
    RunResult result;
    result.status = ExecuteSteps(inputs, dout, &result);
    return result;
  }

 private:
  Result<TensorView> Place(const Operand& operand, const std::vector<double>& values) {
    const DType type = operand.id_limit > 0 ? DType::kI32 : DType::kF32;
    ASSIGN_OR_RETURN(const TensorView view,
                     NewBuffer().View(*backend_, operand.rows, operand.cols, type));
    std::vector<float> floats(values.begin(), values.end());
    std::vector<int32_t> ints(values.begin(), values.end());
    const void* host = operand.id_limit > 0 ? static_cast<const void*>(ints.data()) : floats.data();
    RETURN_IF_ERROR(backend_->CopyIn(view.data, host, view.size_bytes()));
    return view;
  }
  Buffer& NewBuffer() {
    buffers_.push_back(std::make_unique<Buffer>());
    return *buffers_.back();
  }
  Result<std::vector<float>> Fetch(TensorView view) {
    std::vector<float> host(static_cast<size_t>(view.size()));
    RETURN_IF_ERROR(backend_->CopyOut(host.data(), view.data, view.size_bytes()));
    return host;
  }

  Status ExecuteSteps(const Doubles& inputs, const std::vector<double>& dout, RunResult* result) {
    Views in, out, din;
    for (size_t n = 0; n < inputs.size(); ++n) {
      std::vector<double> values = inputs[n];
      if (case_.inputs[n].id_limit > 0) {
        for (double& v : values) v = std::isfinite(v) ? v : 0;
      }
      ASSIGN_OR_RETURN(in.emplace_back(), Place(case_.inputs[n], values));
    }
    for (const Operand& operand : case_.outputs) {
      const std::vector<double> junk(static_cast<size_t>(operand.size()), 1e30);
      ASSIGN_OR_RETURN(out.emplace_back(), Place(operand, junk));
    }
    RETURN_IF_ERROR(case_.forward(*backend_, in, out));
    for (const TensorView& view : out) {
      ASSIGN_OR_RETURN(result->outputs.emplace_back(), Fetch(view));
    }
    if (!case_.backward) return OkStatus();
    ASSIGN_OR_RETURN(const TensorView gradient, Place(case_.outputs[0], dout));
    for (const Operand& operand : case_.inputs) {
      const std::vector<double> zeros(static_cast<size_t>(operand.size()), 0.0);
      Operand floats = operand;
      floats.id_limit = 0;
      ASSIGN_OR_RETURN(din.emplace_back(), Place(floats, zeros));
    }
    RETURN_IF_ERROR(case_.backward(*backend_, in, out, gradient, din));
    for (const TensorView& view : din) {
      ASSIGN_OR_RETURN(result->gradients.emplace_back(), Fetch(view));
    }
    return OkStatus();
  }

  const OpCase& case_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

std::vector<double> MakeDout(const OpCase& c) {
  std::vector<double> dout(static_cast<size_t>(c.outputs[0].size()), 1.0);
  if (!c.unit_dout) {
    for (size_t i = 0; i < dout.size(); ++i) dout[i] = Draw(99, static_cast<int64_t>(i));
  }
  return dout;
}

double Loss(const OpCase& c, const Doubles& inputs, const std::vector<double>& dout) {
  const std::vector<double> out = c.reference(inputs);
  double loss = 0;
  for (size_t i = 0; i < out.size(); ++i) loss += out[i] * dout[i];
  return loss;
}

class Op : public testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    const std::string reason = ReasonToSkip(GetParam().backend);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};
class OpGradient : public Op {};

TEST_P(Op, EqualsTheReference) {
  const OpCase& c = GetParam().op;
  const Doubles inputs = MakeInputs(c);
  const RunResult result = OpRun(GetParam(), 2).Execute(inputs, MakeDout(c));
  ASSERT_TRUE(result.status.ok()) << result.status.ToString();
  const std::vector<double> expected = c.reference(inputs);
  ASSERT_EQ(result.outputs[0].size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(result.outputs[0][i], expected[i], c.tolerance * (1.0 + std::fabs(expected[i])))
        << i;
  }
}

TEST_P(OpGradient, MatchesFiniteDifferences) {
  const OpCase& c = GetParam().op;
  const Doubles inputs = MakeInputs(c);
  const std::vector<double> dout = MakeDout(c);
  const RunResult result = OpRun(GetParam(), 2).Execute(inputs, dout);
  ASSERT_TRUE(result.status.ok()) << result.status.ToString();
  constexpr double kStep = 1e-5;
  constexpr size_t kSamples = 12;  // coordinates per input
  for (size_t n = 0; n < inputs.size(); ++n) {
    if (!c.inputs[n].differentiable) continue;
    const size_t stride = std::max<size_t>(1, inputs[n].size() / kSamples);
    for (size_t i = 0; i < inputs[n].size(); i += stride) {
      Doubles moved = inputs;
      moved[n][i] = inputs[n][i] + kStep;
      const double above = Loss(c, moved, dout);
      moved[n][i] = inputs[n][i] - kStep;
      const double below = Loss(c, moved, dout);
      const double expected = (above - below) / (2 * kStep);
      ASSERT_NEAR(result.gradients[n][i], expected, 5e-5 * (1.0 + std::fabs(expected)))
          << "input " << n << " element " << i;
    }
  }
}

TEST_P(Op, GivesTheSameBitsForEveryThreadCount) {
  const OpCase& c = GetParam().op;
  const Doubles inputs = MakeInputs(c);
  const RunResult one = OpRun(GetParam(), 1).Execute(inputs, MakeDout(c));
  ASSERT_TRUE(one.status.ok()) << one.status.ToString();
  for (const int threads : {2, 3, 5}) {
    const RunResult many = OpRun(GetParam(), threads).Execute(inputs, MakeDout(c));
    const auto expect_equal = [&](const auto& a, const auto& b) {
      ASSERT_EQ(a.size(), b.size());
      for (size_t n = 0; n < a.size(); ++n) {
        EXPECT_EQ(std::memcmp(a[n].data(), b[n].data(), a[n].size() * sizeof(float)), 0)
            << threads << " threads, tensor " << n;
      }
    };
    expect_equal(one.outputs, many.outputs);
    expect_equal(one.gradients, many.gradients);
  }
}

TEST_P(Op, CarriesNanAndInfinityToTheOutput) {
  const OpCase& c = GetParam().op;
  for (const double odd :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Doubles inputs = MakeInputs(c);
    if (c.inputs.back().id_limit > 0) inputs.back()[0] = 0;
    inputs[0][0] = odd;  // the first row, which every case reads
    const RunResult result = OpRun(GetParam(), 2).Execute(inputs, MakeDout(c));
    ASSERT_TRUE(result.status.ok()) << result.status.ToString();
    bool non_finite = false;
    for (const float value : result.outputs[0]) non_finite |= !std::isfinite(value);
    EXPECT_TRUE(non_finite) << odd << " vanished";
  }
}

std::vector<Param> Params(const std::string& backend, bool backward_only) {
  std::vector<Param> params;
  for (const OpCase& c : AllOpCases()) {
    if (!backward_only || c.backward) params.push_back({c, backend});
  }
  return params;
}

std::string CaseName(const testing::TestParamInfo<Param>& info) { return info.param.op.name; }

INSTANTIATE_TEST_SUITE_P(Cpu, Op, testing::ValuesIn(Params("cpu", false)), CaseName);
INSTANTIATE_TEST_SUITE_P(Cpu, OpGradient, testing::ValuesIn(Params("cpu", true)), CaseName);
#if defined(NIBBLE_CUDA_PLUGIN_BUILT)
INSTANTIATE_TEST_SUITE_P(Cuda, Op, testing::ValuesIn(Params("cuda", false)), CaseName);
INSTANTIATE_TEST_SUITE_P(Cuda, OpGradient, testing::ValuesIn(Params("cuda", true)), CaseName);
#endif

}  // namespace
}  // namespace nibble::ops
