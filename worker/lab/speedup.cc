// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/speedup.h"

#include <array>

#include "worker/spec/recipe_fit.h"

namespace nibble {
namespace {

// A training step is the forward work three times.
constexpr double kPasses = 3;
// Attention and elementwise work of a layer, per token and hidden unit (arXiv 2501.17116): 5s, 36.
constexpr double kAttentionFlops = 5;
constexpr double kElementwiseFlops = 36;

// Sums flops and time, times in units of FLOPs at the BF16 rate.
class Tally {
 public:
  void Add(const std::string& name, double flops, double rate) {
    Sum& sum = Find(name);
    sum.flops += flops;
    sum.time += flops / rate;
  }

  CountedSpeedup Finish(double bf16_time) const {
    double total = 0;
    for (const Sum& sum : sums_) total += sum.time;
    CountedSpeedup out;
    for (const Sum& sum : sums_) {
      out.items.push_back({sum.name, sum.flops, sum.time / total, sum.flops / sum.time});
    }
    out.speedup = bf16_time / total;
    return out;
  }

 private:
  struct Sum {
    std::string name;
    double flops = 0;
    double time = 0;
  };
  Sum& Find(const std::string& name) {
    for (Sum& sum : sums_) {
      if (sum.name == name) return sum;
    }
    sums_.push_back({name, 0, 0});
    return sums_.back();
  }
  std::vector<Sum> sums_;
};

void AddResidual(const LinearRecipe& linear, const GemmPrecision& fprop, double flops,
                 const DeviceRates& device, Tally* tally) {
  const Quant& x = linear.Resolved(Slot::kXf);
  const bool apart = x.pre.enabled && x.pre.comp != OccComp::kNone && !IsWide(x.pre.comp) &&
                     fprop.result == PrecisionClass::kFp4;
  if (!apart) return;
  const double rate = x.pre.comp == OccComp::kE4M3 ? device.fp8 : device.bf16;
  tally->Add("residual", flops * 2 * (1 - x.pre.alpha), rate);
}

}  // namespace

PublishedSpeedup CountAsPublished(double hidden, double seq, double alpha) {
  const double rest = kAttentionFlops * seq + kElementwiseFlops;
  const double bf16 = 24 * hidden + rest;
  constexpr double kDge = 32;
  const auto with_residual = [&](double factor) {
    return bf16 / (6 * hidden + factor * (1 - alpha) * hidden + rest + kDge);
  };
  return {bf16 / (6 * hidden + rest), bf16 / (12 * hidden + rest), with_residual(24),
          with_residual(48)};
}

double DeviceRates::Of(PrecisionClass precision) const {
  switch (precision) {
    case PrecisionClass::kFp32:
      return fp32;
    case PrecisionClass::kBf16:
      return bf16;
    case PrecisionClass::kFp8:
      return fp8;
    case PrecisionClass::kFp4:
      return fp4;
  }
  return bf16;
}

double DeviceRates::OfProduct(const LinearRecipe& recipe, const LinearProduct& product,
                              const GemmPrecision& precision) const {
  if (backend == nullptr) return Of(precision.result);
  return FormOf(*backend, recipe, product, 0, 0, 0).on_codes ? fp4 : bf16;
}

const std::vector<DeviceRates>& KnownDevices() {
  static const std::vector<DeviceRates> devices = {
      {"h100",
       "dense peaks of the H100 SXM data sheet: TF32 495, BF16 989, FP8 1979 TFLOP/s; no FP4 "
       "units, FP4 codes are carried as FP8",
       0.5, 1, 2, 2, nullptr},
      {"b200", "dense peaks of the B200 data sheet: TF32 1.1, BF16 2.25, FP8 4.5, FP4 9 PFLOP/s",
       0.5, 1, 2, 4, nullptr}};
  return devices;
}

CountedSpeedup CountForRecipe(const ModelConfig& model, int64_t seq, const Recipe& recipe,
                              const DeviceRates& device) {
  const auto layers = static_cast<double>(model.layers);
  const auto d = static_cast<double>(model.hidden_size);
  const std::array<LinearShape, kLinearKinds> shapes = BlockLinears(model);
  double linear_flops = 0;  // per token of one block, forward
  Tally tally;
  const int count = static_cast<int>(model.layers);
  for (int layer = 0; layer < count; ++layer) {
    linear_flops = 0;
    for (int kind = 0; kind < kLinearKinds; ++kind) {
      const LinearRecipe& linear = recipe.LinearFor(static_cast<LinearKind>(kind), layer, count);
      const LinearShape& shape = shapes[static_cast<size_t>(kind)];
      const double flops = 2 * static_cast<double>(shape.in) * static_cast<double>(shape.out);
      const RecipePrecision p = PrecisionOf(linear);
      tally.Add("fprop", flops, device.OfProduct(linear, kFprop, p.fprop));
      tally.Add("dgrad", flops, device.OfProduct(linear, kDgrad, p.dgrad));
      tally.Add("wgrad", flops, device.OfProduct(linear, kWgrad, p.wgrad));
      AddResidual(linear, p.fprop, flops, device, &tally);
      linear_flops += flops;
    }
  }
  const double attention = kPasses * layers * kAttentionFlops * static_cast<double>(seq) * d;
  const double elementwise = kPasses * layers * kElementwiseFlops * d;
  const double head = kPasses * 2 * d * static_cast<double>(model.vocab_size);
  tally.Add("attention", attention, device.bf16);
  tally.Add("head", head, device.bf16);
  tally.Add("elementwise", elementwise, device.bf16);
  return tally.Finish((kPasses * layers * linear_flops + attention + head + elementwise) /
                      device.bf16);
}

}  // namespace nibble
