// SPDX-License-Identifier: Apache-2.0
//
// ops-bench: time of the operations beside the linear layers, at the size of a small training step.
//
//   ops-bench [threads rounds]     default 0 15
//
// Shows wall time and processor time (all threads): on a busy machine only the latter means much.
// 2048 tokens as 8 sequences of 256, width 256, 8 heads, feed-forward 704, vocabulary 4096.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace {

using nibble::Backend;
using nibble::Buffer;
using nibble::DType;
using nibble::Status;
using nibble::TensorView;

constexpr int64_t kBatch = 8, kSeq = 256, kTokens = kBatch * kSeq;
constexpr int64_t kWidth = 256, kHeads = 8, kHeadDim = 32, kForward = 704, kVocabulary = 4096;

struct Timed {
  std::string name;
  std::function<Status()> run;
};

struct Tensors {
  std::vector<std::unique_ptr<Buffer>> buffers;
  nibble::Result<TensorView> Make(Backend& backend, int64_t rows, int64_t cols,
                                  DType type = DType::kF32) {
    buffers.push_back(std::make_unique<Buffer>());
    ASSIGN_OR_RETURN(const TensorView view, buffers.back()->View(backend, rows, cols, type));
    if (type == DType::kF32) {
      for (int64_t i = 0; i < view.size(); ++i) {
        view.f32()[i] = static_cast<float>(i * 7919 % 2003) / 1001.0f - 1.0f;
      }
    } else {
      for (int64_t i = 0; i < view.size(); ++i) {
        view.i32()[i] = static_cast<int32_t>(i * 7919 % kVocabulary);
      }
    }
    return view;
  }
};

nibble::Result<std::vector<Timed>> MakeOps(Backend& b, Tensors& t) {
  ASSIGN_OR_RETURN(const TensorView x, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView y, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView q, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView k, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView v, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView dq, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView dk, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView dv, t.Make(b, kTokens, kWidth));
  ASSIGN_OR_RETURN(const TensorView lse, t.Make(b, kBatch * kHeads, kSeq));
  ASSIGN_OR_RETURN(const TensorView weight, t.Make(b, 1, kWidth));
  ASSIGN_OR_RETURN(const TensorView dweight, t.Make(b, 1, kWidth));
  ASSIGN_OR_RETURN(const TensorView rstd, t.Make(b, 1, kTokens));
  ASSIGN_OR_RETURN(const TensorView gate, t.Make(b, kTokens, kForward));
  ASSIGN_OR_RETURN(const TensorView up, t.Make(b, kTokens, kForward));
  ASSIGN_OR_RETURN(const TensorView hidden, t.Make(b, kTokens, kForward));
  ASSIGN_OR_RETURN(const TensorView dgate, t.Make(b, kTokens, kForward));
  ASSIGN_OR_RETURN(const TensorView dup, t.Make(b, kTokens, kForward));
  ASSIGN_OR_RETURN(const TensorView logits, t.Make(b, kTokens, kVocabulary));
  ASSIGN_OR_RETURN(const TensorView losses, t.Make(b, 1, kTokens));
  ASSIGN_OR_RETURN(const TensorView table, t.Make(b, kVocabulary, kWidth));
  ASSIGN_OR_RETURN(const TensorView m, t.Make(b, kVocabulary, kWidth));
  ASSIGN_OR_RETURN(const TensorView second, t.Make(b, kVocabulary, kWidth));
  ASSIGN_OR_RETURN(const TensorView ids, t.Make(b, 1, kTokens, DType::kI32));
  RETURN_IF_ERROR(b.Fill(second, 1.0f));
  nibble::AttentionParams attention{kBatch, kSeq, kSeq, kHeads, kHeads, kHeadDim};
  nibble::AttentionParams bf16 = attention;
  bf16.mode = nibble::GemmMode::kBf16;
  const nibble::RopeParams rope{kBatch, kSeq, kHeads, kHeadDim};
  Backend* backend = &b;
  std::vector<Timed> ops;
  const auto add = [&](const char* name, std::function<Status()> run) {
    ops.push_back({name, std::move(run)});
  };
  add("embedding forward", [=] { return backend->EmbeddingForward(table, ids, x); });
  add("embedding backward", [=] { return backend->EmbeddingBackward(ids, x, m); });
  add("rms norm forward", [=] { return backend->RmsNormForward(x, weight, 1e-5f, y, rstd); });
  add("rms norm backward",
      [=] { return backend->RmsNormBackward(y, x, weight, rstd, dq, false, dweight); });
  add("rope", [=] { return backend->RopeForward(rope, q); });
  add("attention forward", [=] { return backend->AttentionForward(attention, q, k, v, y, lse); });
  add("attention backward",
      [=] { return backend->AttentionBackward(attention, x, q, k, v, y, lse, dq, dk, dv); });
  add("attention forward, BF16", [=] { return backend->AttentionForward(bf16, q, k, v, y, lse); });
  add("attention backward, BF16",
      [=] { return backend->AttentionBackward(bf16, x, q, k, v, y, lse, dq, dk, dv); });
  add("swiglu forward", [=] { return backend->SwiGluForward(gate, up, hidden); });
  add("swiglu backward", [=] { return backend->SwiGluBackward(hidden, gate, up, dgate, dup); });
  add("residual add", [=] { return backend->Add(x, y, dq); });
  add("cross-entropy, 4096 words",
      [=] { return backend->CrossEntropy(logits, ids, 1e-4f, true, losses); });
  add("head GEMM", [=] {
    return backend->Gemm(nibble::GemmMode::kF32, x, nibble::Transpose::kNo, table,
                         nibble::Transpose::kYes, false, logits);
  });
  add("AdamW, 1M parameters", [=] { return backend->AdamW({}, table, m, second, table); });
  add("sum of squares, 1M", [=] { return backend->SumOfSquares(table).status(); });
  return ops;
}

Status RunAll(int threads, int rounds) {
  nibble::BackendOptions options;
  options.threads = threads;
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, nibble::MakeBackend("cpu", options));
  Tensors tensors;
  ASSIGN_OR_RETURN(const std::vector<Timed> ops, MakeOps(*backend, tensors));
  std::printf("%s; 2048 tokens, width 256, medians of %d\n", backend->description().c_str(),
              rounds);
  for (const Timed& op : ops) {
    std::vector<double> ms, cpu_ms;
    for (int round = 0; round <= rounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      const std::clock_t cpu_start = std::clock();
      RETURN_IF_ERROR(op.run());
      cpu_ms.push_back(1e3 * static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
      ms.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
    }
    ms.erase(ms.begin());  // warm-up
    cpu_ms.erase(cpu_ms.begin());
    std::sort(ms.begin(), ms.end());
    std::sort(cpu_ms.begin(), cpu_ms.end());
    std::printf("%-28s wall %8.2f ms   cpu %8.2f ms\n", op.name.c_str(), ms[ms.size() / 2],
                cpu_ms[cpu_ms.size() / 2]);
  }
  return nibble::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const int rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 15;
  const Status status = RunAll(threads, rounds);
  if (!status.ok()) std::fprintf(stderr, "ops-bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
