// SPDX-License-Identifier: Apache-2.0
//
// oneDNN's matmul. oneDNN runs on OpenMP here, so its threads are set through OpenMP.
#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "worker/bench/peers.h"

namespace nibble::bench {
namespace {

using dnnl::memory;
using Type = memory::data_type;
using Tag = memory::format_tag;

dnnl::matmul::primitive_desc Describe(const dnnl::engine& engine, const memory::desc& a,
                                      const memory::desc& b, const memory::desc& out) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, out};
#else
  return {dnnl::matmul::desc(a, b, out), engine};
#endif
}

class Matmul final : public OneDnnGemm {
 public:
  Matmul(int threads) : threads_(threads), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  // b_tag kAny lets the library choose; then B is reordered here.
  void Prepare(const GemmShape& s, Type a_type, Type b_type, Type out_type, const void* a,
               const void* b, bool choose_layout, void* out) {
    omp_set_num_threads(threads_);
    const memory::desc a_desc({s.m, s.k}, a_type, Tag::ab);
    const memory::desc b_desc({s.k, s.n}, b_type, Tag::ba);
    const memory::desc out_desc({s.m, s.n}, out_type, Tag::ab);
    const memory::desc b_any({s.k, s.n}, b_type, Tag::any);
    const auto description = Describe(engine_, a_desc, choose_layout ? b_any : b_desc, out_desc);
    memory weights(b_desc, engine_, const_cast<void*>(b));
    if (description.weights_desc() != b_desc) {
      memory chosen(description.weights_desc(), engine_);
      dnnl::reorder(weights, chosen).execute(stream_, weights, chosen);
      stream_.wait();
      weights = chosen;
    }
    primitive_ = dnnl::matmul(description);
    arguments_ = {{DNNL_ARG_SRC, memory(a_desc, engine_, const_cast<void*>(a))},
                  {DNNL_ARG_WEIGHTS, weights},
                  {DNNL_ARG_DST, memory(out_desc, engine_, out)}};
  }

  Status Run() override {
    try {
      omp_set_num_threads(threads_);
      primitive_.execute(stream_, arguments_);
      stream_.wait();
    } catch (const dnnl::error& error) {
      return InternalError(std::string("oneDNN: ") + error.what());
    }
    return OkStatus();
  }

  // Where int8 operands live.
  std::vector<uint8_t> a_bytes, b_bytes;
  std::vector<int32_t> sums;

 private:
  int threads_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul primitive_;
  std::unordered_map<int, memory> arguments_;
};

Status Refused(const dnnl::error& error) {
  return UnimplementedError(std::string("oneDNN has no such product here: ") + error.what());
}

}  // namespace

std::string OneDnnDescription() {
  const dnnl_version_t* version = dnnl_version();
  return StrFormat("%d.%d.%d", version->major, version->minor, version->patch);
}

Result<std::unique_ptr<OneDnnGemm>> MakeOneDnnF32(const GemmShape& shape, const float* a,
                                                  const float* b, float* out, int threads) {
  try {
    auto matmul = std::make_unique<Matmul>(threads);
    matmul->Prepare(shape, Type::f32, Type::f32, Type::f32, a, b, false, out);
    return std::unique_ptr<OneDnnGemm>(std::move(matmul));
  } catch (const dnnl::error& error) {
    return Refused(error);
  }
}

Result<std::unique_ptr<OneDnnGemm>> MakeOneDnnInt8(const GemmShape& shape, int threads) {
  try {
    auto matmul = std::make_unique<Matmul>(threads);
    // E2M1 codes in half units, plus 12 on the unsigned side.
    static constexpr int kCodes[] = {0, 1, 2, 3, 4, 6, 8, 12};
    matmul->a_bytes.resize(static_cast<size_t>(shape.m * shape.k));
    matmul->b_bytes.resize(static_cast<size_t>(shape.n * shape.k));
    matmul->sums.resize(static_cast<size_t>(shape.m * shape.n));
    uint32_t state = 1;
    const auto next = [&] {
      state = state * 1664525u + 1013904223u;
      const int code = kCodes[(state >> 24) & 7];
      return (state >> 31) != 0 ? -code : code;
    };
    for (uint8_t& byte : matmul->a_bytes) byte = static_cast<uint8_t>(next() + 12);
    for (uint8_t& byte : matmul->b_bytes) byte = static_cast<uint8_t>(next());
    matmul->Prepare(shape, Type::u8, Type::s8, Type::s32, matmul->a_bytes.data(),
                    matmul->b_bytes.data(), true, matmul->sums.data());
    return std::unique_ptr<OneDnnGemm>(std::move(matmul));
  } catch (const dnnl::error& error) {
    return Refused(error);
  }
}

}  // namespace nibble::bench
