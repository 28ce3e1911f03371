// SPDX-License-Identifier: Apache-2.0
#include "kernels/self_test.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "base/strings.h"
#include "kernels/format_reference.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/linear.h"
#include "kernels/recipe/proofs.h"
#include "kernels/self_test_ops.h"
#include "kernels/self_test_paths.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Sizes of the layer that is proved: odd, so that no kernel meets only round numbers.
constexpr int64_t kTokens = 67, kIn = 96, kOut = 41;
constexpr int64_t kGemm = 512;
constexpr int kGemmRounds = 5;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Status Failed(const char* feature, const std::string& what) {
  return InternalError(std::string("self-test of ") + feature + " failed: " + what);
}

// What the backend's codes of x (rows, ...) mean; the codes' scale in `enc`.
Result<std::vector<float>> Decode(Backend& backend, const Quant& quant,
                                  const QuantizeContext& context, const std::vector<float>& x,
                                  int64_t rows, float* enc = nullptr) {
  const int64_t cols = static_cast<int64_t>(x.size()) / rows;
  ASSIGN_OR_RETURN(const DeviceMatrix source, DeviceMatrix::Create(backend, rows, cols, x));
  ASSIGN_OR_RETURN(const DeviceMatrix decoded, DeviceMatrix::Create(backend, rows, cols, x));
  QuantizedTensor codes;
  RETURN_IF_ERROR(backend.Quantize(quant, context, source.view(), &codes, decoded.view()));
  if (enc != nullptr) RETURN_IF_ERROR(backend.CopyOut(enc, codes.enc.data(), sizeof(*enc)));
  return decoded.Read(backend);
}

// All finite BF16 values through Quantize with scale 1 (amax is put to the format's maximum, and
// p2 then gives 1) against the nearest-value definition.
Status CheckElement(Backend& backend, Elem elem, const char* feature) {
  const std::vector<double> magnitudes = FormatMagnitudes(elem);
  const double max = magnitudes.back();
  std::vector<float> x = {static_cast<float>(max)};
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = formats::FromBf16(static_cast<uint16_t>(bits));
    if (std::fabs(static_cast<double>(value)) <= max) x.push_back(value);
  }
  Quant quant;
  quant.elem = elem;
  quant.scale = ScaleRule::kP2;
  quant.scale_max = static_cast<float>(max);
  ASSIGN_OR_RETURN(const std::vector<float> decoded, Decode(backend, quant, {}, x, 1));
  for (size_t i = 0; i < x.size(); ++i) {
    const int code = NearestCode(magnitudes, static_cast<double>(x[i]));
    const double magnitude = magnitudes[static_cast<size_t>(code)];
    const double expected = std::signbit(x[i]) ? -magnitude : magnitude;
    if (static_cast<double>(decoded[i]) != expected ||
        std::signbit(decoded[i]) != std::signbit(expected)) {
      return Failed(feature, StrFormat("%g became %g, expected %g", static_cast<double>(x[i]),
                                       static_cast<double>(decoded[i]), expected));
    }
  }
  return OkStatus();
}

// Mean of 2^16 draws within four standard deviations of x. The first element, 6, makes the scale 1.
Status CheckStochasticRounding(Backend& backend) {
  constexpr int kDraws = 1 << 16;
  Quant quant;
  quant.elem = Elem::kE2M1;
  quant.scale = ScaleRule::kP2;
  quant.scale_max = 6;
  quant.round = Round::kSr24;
  QuantizeContext context;
  context.seed = 11;
  context.step = 3;
  context.stream = 5;
  for (const float value : {0.1f, -0.3f, 1.7f, 2.4f, 4.5f, -5.9f}) {
    const float x = formats::RoundBf16(value);
    std::vector<float> source(kDraws + 1, x);
    source[0] = 6;
    ASSIGN_OR_RETURN(const std::vector<float> decoded, Decode(backend, quant, context, source, 1));
    double sum = 0, squares = 0;
    for (int i = 1; i <= kDraws; ++i) {
      const double y = static_cast<double>(decoded[static_cast<size_t>(i)]);
      sum += y;
      squares += y * y;
    }
    const double mean = sum / kDraws;
    const double deviation = std::sqrt((squares / kDraws - mean * mean) / kDraws);
    if (!(std::fabs(mean - static_cast<double>(x)) <= 4 * deviation)) {
      return Failed("sr24", StrFormat("mean of %g is %g", static_cast<double>(x), mean));
    }
  }
  return OkStatus();
}

struct LayerData {
  std::vector<float> x, w, dy, y, dx, dw;
};

LayerData MakeLayerData() {
  return {SelfTestValues(1, kTokens * kIn, 1.0f),
          SelfTestValues(2, kOut * kIn, 0.1f),
          SelfTestValues(3, kTokens * kOut, 1e-3f),
          {},
          {},
          {}};
}

// out(m, n) = sum over k of a and b, addressed by strides, in double; and the FP32 error bound.
Status CheckProduct(const char* feature, const char* name, const std::vector<float>& got, int64_t m,
                    int64_t n, int64_t k, const std::vector<float>& a, int64_t am, int64_t ak,
                    const std::vector<float>& b, int64_t bn, int64_t bk,
                    const std::vector<double>* factor) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, absolute = 0;
      for (int64_t l = 0; l < k; ++l) {
        const double term = static_cast<double>(a[static_cast<size_t>(i * am + l * ak)]) *
                            static_cast<double>(b[static_cast<size_t>(j * bn + l * bk)]);
        sum += term;
        absolute += std::fabs(term);
      }
      const double f = factor == nullptr ? 1.0 : (*factor)[static_cast<size_t>(i * n + j)];
      const double value = static_cast<double>(got[static_cast<size_t>(i * n + j)]);
      const double bound = 4.0 * static_cast<double>(k) * 0x1p-24 * absolute * std::max(1.0, f);
      if (!(std::fabs(value - sum * f) <= bound + 1e-30)) {
        return Failed(feature, StrFormat("%s[%lld, %lld] is %.9g, expected %.9g within %.2g", name,
                                         static_cast<long long>(i), static_cast<long long>(j),
                                         value, sum * f, bound));
      }
    }
  }
  return OkStatus();
}

// D of the scaled weight by the C library's pow, from the row's scale.
std::vector<double> DgeFactors(const std::vector<float>& w) {
  static constexpr double kGrid[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  std::vector<double> factors(w.size());
  for (int64_t row = 0; row < kOut; ++row) {
    float amax = 0;
    for (int64_t i = 0; i < kIn; ++i) {
      amax = std::max(amax, std::fabs(w[static_cast<size_t>(row * kIn + i)]));
    }
    const float enc = 6.0f / amax;
    for (int64_t i = 0; i < kIn; ++i) {
      const size_t at = static_cast<size_t>(row * kIn + i);
      const double a = std::min(6.0, static_cast<double>(std::fabs(w[at] * enc)));
      int cell = 0;
      while (cell < 6 && a >= kGrid[cell + 1]) ++cell;
      const double u = 2 * (a - kGrid[cell]) / (kGrid[cell + 1] - kGrid[cell]) - 1;
      factors[at] = std::min(3.0, 0.2 * std::pow(std::fabs(u), -0.8));
    }
  }
  return factors;
}

// One layer forward and backward; its three products in double from the decoded operands.
Status CheckLayer(Backend& backend, const char* recipe_name, const char* feature) {
  ASSIGN_OR_RETURN(const Recipe recipe, FindRecipe(recipe_name));
  const LinearRecipe& linear_recipe = recipe.linear;
  LayerData d = MakeLayerData();
  LinearWorkspace workspace(&backend);
  LinearInput input(&workspace, linear_recipe, 0);
  QuantizedLinear linear(&workspace, linear_recipe, 0);
  const auto matrix = [&](const std::vector<float>& values, int64_t rows) {
    return DeviceMatrix::Create(backend, rows, static_cast<int64_t>(values.size()) / rows, values);
  };
  ASSIGN_OR_RETURN(const DeviceMatrix x_matrix, matrix(d.x, kTokens));
  ASSIGN_OR_RETURN(const DeviceMatrix w_matrix, matrix(d.w, kOut));
  ASSIGN_OR_RETURN(const DeviceMatrix dy_matrix, matrix(d.dy, kTokens));
  ASSIGN_OR_RETURN(const DeviceMatrix y, matrix(d.dy, kTokens));
  ASSIGN_OR_RETURN(const DeviceMatrix dx, matrix(d.x, kTokens));
  ASSIGN_OR_RETURN(const DeviceMatrix dw, matrix(std::vector<float>(d.w.size(), 0.0f), kOut));
  const ConstTensorView w = w_matrix.view();
  RETURN_IF_ERROR(input.Set({}, x_matrix.view()));
  RETURN_IF_ERROR(linear.Forward({}, input, w, 1, y.view()));
  RETURN_IF_ERROR(linear.Backward({}, dy_matrix.view(), input, w, 1, dx.view(), false, dw.view()));
  ASSIGN_OR_RETURN(d.y, y.Read(backend));
  ASSIGN_OR_RETURN(d.dx, dx.Read(backend));
  ASSIGN_OR_RETURN(d.dw, dw.Read(backend));
  std::vector<float> x = d.x, weight = d.w, dy = d.dy;
  const auto decode = [&](Slot slot, std::vector<float>& values, int64_t rows) -> Status {
    const Quant& quant = linear_recipe.slot(slot);
    if (!quant.has_scale()) return OkStatus();
    ASSIGN_OR_RETURN(values, Decode(backend, quant, {}, values, rows));
    return OkStatus();
  };
  RETURN_IF_ERROR(decode(Slot::kXf, x, kTokens));
  RETURN_IF_ERROR(decode(Slot::kWf, weight, kOut));
  RETURN_IF_ERROR(decode(Slot::kGd, dy, kTokens));
  std::vector<double> factors;
  if (linear_recipe.weight_estimator.dge()) factors = DgeFactors(d.w);
  RETURN_IF_ERROR(
      CheckProduct(feature, "Y", d.y, kTokens, kOut, kIn, x, kIn, 1, weight, kIn, 1, nullptr));
  RETURN_IF_ERROR(
      CheckProduct(feature, "dX", d.dx, kTokens, kIn, kOut, dy, kOut, 1, weight, 1, kIn, nullptr));
  return CheckProduct(feature, "dW", d.dw, kOut, kIn, kTokens, dy, 1, kOut, x, 1, kIn,
                      factors.empty() ? nullptr : &factors);
}

// Clamping bounds by sorting, and clamped body plus residual against the source.
Status CheckClamping(Backend& backend) {
  LayerData d = MakeLayerData();
  std::vector<float> sorted = d.x;
  std::sort(sorted.begin(), sorted.end());
  Quant quant = FindRecipe("fp4_ms_paper")->linear.slot(Slot::kXf);
  quant.block = Block::kTensor;
  quant.pre.comp = OccComp::kBf16;
  const formats::QuantileIndices index =
      formats::OccIndices(quant.pre.alpha, static_cast<int64_t>(sorted.size()));
  const float low = sorted[static_cast<size_t>(index.low)];
  const float high = sorted[static_cast<size_t>(index.high)];
  float enc = 0;
  ASSIGN_OR_RETURN(const std::vector<float> decoded,
                   Decode(backend, quant, {}, d.x, kTokens, &enc));
  const float amax = std::max(std::fabs(low), std::fabs(high));
  if (enc != 6.0f / amax) {
    return Failed("occ", StrFormat("scale is %.9g, expected %.9g", static_cast<double>(enc),
                                   static_cast<double>(6.0f / amax)));
  }
  for (size_t i = 0; i < d.x.size(); ++i) {
    const float clamped = std::clamp(d.x[i], low, high);
    const float body = formats::DecodeE2M1(formats::EncodeE2M1(clamped * enc)) / enc;
    const float expected = body + formats::RoundBf16(d.x[i] - clamped);
    if (decoded[i] != expected) {
      return Failed(
          "occ", StrFormat("element %zu is %.9g, expected %.9g", i, static_cast<double>(decoded[i]),
                           static_cast<double>(expected)));
    }
  }
  return OkStatus();
}

Result<double> MeasureGemm(Backend& backend) {
  Buffer a, b, c;
  ASSIGN_OR_RETURN(const TensorView left, a.View(backend, kGemm, kGemm));
  ASSIGN_OR_RETURN(const TensorView right, b.View(backend, kGemm, kGemm));
  ASSIGN_OR_RETURN(const TensorView out, c.View(backend, kGemm, kGemm));
  RETURN_IF_ERROR(backend.Fill(left, 0.5f));
  RETURN_IF_ERROR(backend.Fill(right, 0.25f));
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kGemmRounds; ++round) {
    const Clock::time_point start = Clock::now();
    RETURN_IF_ERROR(
        backend.Gemm(GemmMode::kF32, left, Transpose::kNo, right, Transpose::kYes, false, out));
    RETURN_IF_ERROR(backend.Synchronize());
    best = std::min(best, SecondsSince(start));
  }
  float corner = 0;
  RETURN_IF_ERROR(backend.CopyOut(&corner, out.data, sizeof(corner)));
  if (corner != 0.125f * kGemm) return Failed("gemm.fp32", "constant matrices multiply wrongly");
  return 2.0 * kGemm * kGemm * kGemm / best * 1e-9;
}

// What checks have found: features proved or refused by the backend, and failures.
class Findings {
 public:
  static constexpr size_t kMostFailures = 8;  // a device that is lost fails everything

  // Not OK once there are too many failures.
  Status Add(const std::string& feature, const Status& outcome) {
    if (outcome.ok()) {
      report.features.push_back(feature);
    } else if (outcome.code() == StatusCode::kUnimplemented) {
      report.refused.emplace_back(feature, outcome.message());
    } else if (failures_.empty() || failures_.back() != outcome.message()) {
      code_ = failures_.empty() ? outcome.code() : code_;
      failures_.push_back(outcome.message());
    }
    return failures_.size() < kMostFailures ? OkStatus() : Failures();
  }
  Status Failures() const {
    return failures_.empty() ? OkStatus() : Status(code_, StrJoin(failures_, "; "));
  }
  SelfTestReport report;

 private:
  StatusCode code_ = StatusCode::kInternal;  // of the first failure
  std::vector<std::string> failures_;
};

}  // namespace

Result<SelfTestReport> ProveBackend(Backend& backend, Backend& reference) {
  const Clock::time_point start = Clock::now();
  Findings findings;
  SelfTestReport& report = findings.report;
  report.backend = std::string(backend.name());
  report.description = backend.description();
  report.memory_bytes = backend.memory_bytes();
  const auto prove = [&](const std::string& feature, const Status& outcome) {
    return findings.Add(feature, outcome);
  };
  RETURN_IF_ERROR(prove("e2m1", CheckElement(backend, Elem::kE2M1, "e2m1")));
  RETURN_IF_ERROR(prove("e4m3", CheckElement(backend, Elem::kE4M3, "e4m3")));
  RETURN_IF_ERROR(prove("e5m2", CheckElement(backend, Elem::kE5M2, "e5m2")));
  RETURN_IF_ERROR(prove("sr24", CheckStochasticRounding(backend)));
  RETURN_IF_ERROR(prove("occ", CheckClamping(backend)));
  RETURN_IF_ERROR(prove("gemm.fp32", CheckLayer(backend, "fp32", "gemm.fp32")));
  RETURN_IF_ERROR(prove("linear.fp8", CheckLayer(backend, "te_fp8_current", "linear.fp8")));
  // Its weight gradient carries D.
  const Status fp4 = CheckLayer(backend, "fp4_ms_paper", "linear.fp4");
  RETURN_IF_ERROR(prove("linear.fp4", fp4));
  RETURN_IF_ERROR(prove("dge", fp4));
  // Without these nothing trains: they are no feature, and what the backend refuses is missing.
  const Status operations = ProveStepOperations(backend, reference);
  if (!operations.ok()) RETURN_IF_ERROR(prove("operations", operations));
  RETURN_IF_ERROR(prove(kStateProof, ProveRoundedState(backend, reference)));
  RETURN_IF_ERROR(prove(kWireProof, ProveWire(backend, reference)));
  RETURN_IF_ERROR(prove(kWeightRuleProof, ProveWeightRule(backend, reference)));
  for (const std::string& name : BuiltInRecipeNames()) {
    ASSIGN_OR_RETURN(const Recipe recipe, FindRecipe(name));
    RETURN_IF_ERROR(prove(kRecipeProof + name, ProveRecipe(backend, reference, recipe)));
  }
  RETURN_IF_ERROR(findings.Failures());
  ASSIGN_OR_RETURN(report.gemm_gflops, MeasureGemm(backend));
  report.seconds = SecondsSince(start);
  return report;
}

Result<SelfTestReport> RunSelfTest(std::string_view backend_name, const BackendOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(backend_name, options));
  if (backend_name == "cpu") return ProveBackend(*backend, *backend);
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> reference, MakeBackend("cpu", {}));
  return ProveBackend(*backend, *reference);
}

}  // namespace nibble
