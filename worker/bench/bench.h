// SPDX-License-Identifier: Apache-2.0
//
// The benchmarks of nibble-bench. Each fills a Report with rows: JSON objects that all have `name`,
// `shape`, `threads`, `clock` and `ms` (median, p10, p90, min, n), the rest by kind
// (docs/performance/cpu.md lists it). A contestant that this machine or build lacks becomes an
// entry of `skipped` with its reason, never a row.
// Thread-safety: one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "worker/bench/measure.h"

namespace nibble::bench {

struct Options {
  int threads = 0;             // 0: the benchmark's own choice (1, or every core for `step`)
  double seconds = 45;         // wall time of the whole benchmark, warm-ups included, roughly
  bool quick = false;          // tiny shapes and few rounds: proves that it runs, measures nothing
  bool all = false;            // every shape, model and recipe instead of the default choice
  bool health = false;         // of `step`: every recipe also with quantization health sampled
  bool with_peers = true;      // OpenBLAS, oneDNN and PyTorch where they exist
  std::string isa = "native";  // or "avx2": see EnvironmentFor in machine.h
  std::vector<std::string> shapes;   // "2048x1536x384"; empty: the default list
  std::vector<std::string> recipes;  // built-in names; empty: the default list
  std::vector<std::string> models;   // of `step`; empty: the default list
};

class Report {
 public:
  void Add(Json row) { rows_.push_back(std::move(row)); }
  void Skip(const std::string& what, const std::string& reason);
  const std::vector<Json>& rows() const { return rows_; }
  // {"benchmark", "options", "machine", "results": [...], "skipped": [...]}
  Json ToJson(const std::string& benchmark, const Options& options, const Json& machine) const;
  // Aligned columns; nested values as their median.
  std::string ToText(const Json& machine) const;

 private:
  std::vector<Json> rows_;
  std::vector<Json> skipped_;
};

Status GemmBench(const Options& options, Report* report);
Status LinearBench(const Options& options, Report* report);
Status QuantizeBench(const Options& options, Report* report);
Status AttentionBench(const Options& options, Report* report);
Status StepBench(const Options& options, Report* report);

// --- Shared by the benchmarks
// ---------------------------------------------------------------------

// The head of a row: name, shape, threads, clock, ms.
Json Row(const std::string& name, Json shape, int threads, const std::vector<double>& seconds);
// Adds `key` (median), `key`_p10 and `key`_p90 of base[i] / value[i].
void AddRatio(const std::string& key, const std::vector<double>& base,
              const std::vector<double>& value, Json* row);

// "2048x1536x384" into `count` numbers of at least 1. INVALID_ARGUMENT.
Result<std::vector<int64_t>> ParseShape(const std::string& text, size_t count);

Result<std::unique_ptr<Backend>> CpuWithThreads(int threads);

// Bell-shaped numbers of standard deviation 1.15 * scale, every 97th ten times as large: outliers
// as activations have them. Same stream, same numbers.
void FillBell(uint32_t stream, float scale, TensorView x);

// Buffers of one backend, alive as long as this.
class Tensors {
 public:
  explicit Tensors(Backend* backend) : backend_(*backend) {}
  Result<TensorView> Make(int64_t rows, int64_t cols, DType type = DType::kF32);
  // The same, filled by FillBell.
  Result<TensorView> MakeBell(uint32_t stream, float scale, int64_t rows, int64_t cols);

 private:
  Backend& backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace nibble::bench
