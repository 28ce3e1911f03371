// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/cpu_rates.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/strings.h"
#include "kernels/formats/philox.h"
#include "worker/lab/tensor_file.h"

namespace nibble {
namespace {

constexpr int64_t kSize = 1024;
constexpr int kRounds = 15;

Matrix RandomMatrix(uint32_t stream) {
  Matrix x = MakeMatrix("x", kSize, kSize);
  for (size_t i = 0; i < x.values.size(); ++i) {
    const uint32_t word = formats::RandomWord(1, 0, stream, i);
    x.values[i] = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
  }
  return x;
}

Status QuantizeRows(Backend* backend, const Matrix& x, QuantizedTensor* codes) {
  Quant quant;
  quant.elem = Elem::kE2M1;
  quant.block = Block::kToken;
  quant.scale = ScaleRule::kF32;
  quant.scale_max = ElemMax(Elem::kE2M1);
  return backend->Quantize(quant, {}, x.view(), codes, {});
}

template <typename Work>
Result<double> Seconds(const Work& work) {
  const auto started = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(work());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

}  // namespace

Result<DeviceRates> MeasureCpuRates(Backend* backend) {
  const OpQuery query{Op::kQuantizedGemm, Elem::kE2M1, Elem::kE2M1, kSize, kSize, kSize};
  if (backend->Supports(query) != Support::kFast) {
    return UnimplementedError("this machine has no kernel for products on codes");
  }
  const Matrix a = RandomMatrix(1), b = RandomMatrix(2);
  Matrix out = MakeMatrix("out", kSize, kSize);
  QuantizedTensor a_codes, b_codes;
  RETURN_IF_ERROR(QuantizeRows(backend, a, &a_codes));
  RETURN_IF_ERROR(QuantizeRows(backend, b, &b_codes));
  QuantizedGemmParams params;
  params.transpose_b = Transpose::kYes;
  std::vector<double> ratios;
  for (int round = -1; round < kRounds; ++round) {  // the first one warms up
    ASSIGN_OR_RETURN(const double codes, Seconds([&] {
                       return backend->QuantizedGemm(params, a_codes, b_codes, out.view());
                     }));
    ASSIGN_OR_RETURN(const double fp32, Seconds([&] {
                       return backend->Gemm(GemmMode::kF32, a.view(), Transpose::kNo, b.view(),
                                            Transpose::kYes, false, out.view());
                     }));
    if (round >= 0) ratios.push_back(fp32 / codes);
  }
  std::sort(ratios.begin(), ratios.end());
  DeviceRates rates;
  rates.name = "cpu";
  rates.basis = StrFormat(
      "measured now: %lld^3 on E2M1 codes against FP32, median of %d rounds; decoded products run "
      "in FP32",
      static_cast<long long>(kSize), kRounds);
  rates.fp32 = rates.bf16 = rates.fp8 = 1;
  rates.fp4 = ratios[ratios.size() / 2];
  rates.backend = backend;
  return rates;
}

}  // namespace nibble
