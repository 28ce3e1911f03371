// SPDX-License-Identifier: Apache-2.0
//
// linear-bench: time of one linear layer, forward and backward, under each built-in recipe.
//
//   linear-bench [tokens in out threads rounds]     default 2048 256 1024 0 15
//
// Recipes are interleaved round by round, so a busy machine disturbs all alike; medians are shown.
// "cpu" is processor time of all threads: on a busy machine only that means much.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/formats/philox.h"
#include "kernels/linear.h"

namespace {

using nibble::Backend;
using nibble::Buffer;
using nibble::Status;
using nibble::TensorView;

struct Shape {
  int64_t tokens = 2048, in = 256, out = 1024;
  int threads = 0, rounds = 15;
};

// Sums of four uniform numbers: bell-shaped, with every 97th value ten times as large.
void FillBell(uint32_t stream, float scale, TensorView x) {
  for (int64_t i = 0; i < x.size(); ++i) {
    const nibble::formats::PhiloxWords words =
        nibble::formats::RandomGroup(7, 0, stream, static_cast<uint64_t>(i));
    float sum = -2.0f;
    for (const uint32_t word : words.word) sum += static_cast<float>(word >> 8) * 0x1p-24f;
    x.f32()[i] = sum * scale * (i % 97 == 0 ? 10.0f : 1.0f);
  }
}

struct Layer {
  Layer(Backend* backend, const nibble::Recipe& r)
      : recipe(r),
        workspace(std::make_unique<nibble::LinearWorkspace>(backend)),
        input(workspace.get(), r.linear, 0),
        linear(workspace.get(), r.linear, 0) {}
  nibble::Recipe recipe;
  std::unique_ptr<nibble::LinearWorkspace> workspace;
  nibble::LinearInput input;
  nibble::QuantizedLinear linear;
  std::vector<double> forward_ms, backward_ms, cpu_ms;
};

double MsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Tensors {
  Buffer x, w, dy, y, dx, dw;
};

Status RunOnce(const Shape& s, Backend& backend, Tensors& t, uint32_t round, Layer* layer) {
  ASSIGN_OR_RETURN(const TensorView x, t.x.View(backend, s.tokens, s.in));
  ASSIGN_OR_RETURN(const TensorView w, t.w.View(backend, s.out, s.in));
  ASSIGN_OR_RETURN(const TensorView dy, t.dy.View(backend, s.tokens, s.out));
  ASSIGN_OR_RETURN(const TensorView y, t.y.View(backend, s.tokens, s.out));
  ASSIGN_OR_RETURN(const TensorView dx, t.dx.View(backend, s.tokens, s.in));
  ASSIGN_OR_RETURN(const TensorView dw, t.dw.View(backend, s.out, s.in));
  nibble::LinearStep step;
  step.step = round;
  const std::clock_t cpu_start = std::clock();
  auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(layer->input.Set(step, x));
  RETURN_IF_ERROR(layer->linear.Forward(step, layer->input, w, round, y));
  layer->forward_ms.push_back(MsSince(start));
  start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(layer->linear.Backward(step, dy, layer->input, w, round, dx, false, dw));
  layer->backward_ms.push_back(MsSince(start));
  layer->cpu_ms.push_back(1e3 * static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
  return nibble::OkStatus();
}

Status RunAll(const Shape& s) {
  nibble::BackendOptions options;
  options.threads = s.threads;
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, nibble::MakeBackend("cpu", options));
  Tensors tensors;
  ASSIGN_OR_RETURN(const TensorView x, tensors.x.View(*backend, s.tokens, s.in));
  ASSIGN_OR_RETURN(const TensorView w, tensors.w.View(*backend, s.out, s.in));
  ASSIGN_OR_RETURN(const TensorView dy, tensors.dy.View(*backend, s.tokens, s.out));
  ASSIGN_OR_RETURN(const TensorView dw, tensors.dw.View(*backend, s.out, s.in));
  FillBell(1, 1.0f, x);
  FillBell(2, 0.05f, w);
  FillBell(3, 1e-4f, dy);
  RETURN_IF_ERROR(backend->Fill(dw, 0.0f));
  std::vector<std::unique_ptr<Layer>> layers;
  for (const std::string& name : nibble::BuiltInRecipeNames()) {
    ASSIGN_OR_RETURN(const nibble::Recipe recipe, nibble::FindRecipe(name));
    layers.push_back(std::make_unique<Layer>(backend.get(), recipe));
  }
  for (int round = 0; round <= s.rounds; ++round) {
    for (const auto& layer : layers) {
      RETURN_IF_ERROR(RunOnce(s, *backend, tensors, static_cast<uint32_t>(round), layer.get()));
      if (round == 0) {  // warm-up
        layer->forward_ms.clear();
        layer->backward_ms.clear();
        layer->cpu_ms.clear();
      }
    }
  }
  std::printf("%s; tokens %lld, in %lld, out %lld, median of %d rounds\n",
              backend->description().c_str(), static_cast<long long>(s.tokens),
              static_cast<long long>(s.in), static_cast<long long>(s.out), s.rounds);
  std::printf("%-16s %10s %10s %10s %8s %12s %12s\n", "recipe", "forward ms", "backward", "cpu",
              "/ fp32", "tokens/cpu-s", "saved X");
  const double base = Median(layers[0]->cpu_ms);
  for (const auto& layer : layers) {
    const double cpu = Median(layer->cpu_ms);
    std::printf("%-16s %10.2f %10.2f %10.2f %8.2f %12.0f %12s\n", layer->recipe.name.c_str(),
                Median(layer->forward_ms), Median(layer->backward_ms), cpu, cpu / base,
                1e3 * static_cast<double>(s.tokens) / cpu,
                nibble::FormatBytes(static_cast<double>(layer->input.saved_bytes())).c_str());
  }
  return nibble::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  Shape shape;
  if (argc > 3) {
    shape.tokens = std::atoll(argv[1]);
    shape.in = std::atoll(argv[2]);
    shape.out = std::atoll(argv[3]);
  }
  if (argc > 4) shape.threads = std::atoi(argv[4]);
  if (argc > 5) shape.rounds = std::max(1, std::atoi(argv[5]));
  const Status status = RunAll(shape);
  if (!status.ok()) std::fprintf(stderr, "linear-bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
