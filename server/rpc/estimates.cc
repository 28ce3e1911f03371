// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/estimates.h"

#include <algorithm>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "server/core/fit.h"

namespace nibble::rpc {
namespace {

// Share of the GEMM rate a worker measured (fp32, OpenBLAS) that a whole training step reaches.
// Attention, norms and AdamW run beside the GEMMs; quantizing recipes also round operands.
constexpr double kEfficiencyHighPrecision = 0.5;
constexpr double kEfficiencyQuantized = 0.3;
// With less than this left of a device's memory, a dry run warns.
constexpr double kMemoryMargin = 0.1;
// Vocabulary assumed when the tokenizer's is not known here.
constexpr int64_t kAssumedVocabSize = 32'000;
constexpr int64_t kMaxIndexBytes = 1 << 20;

// The vocabulary that index.json in the data folder names; 0 when it cannot be read here.
int64_t VocabSizeOfData(const std::string& path) {
  const Result<std::string> text = ReadFile(JoinPath(path, "index.json"), kMaxIndexBytes);
  if (!text.ok()) return 0;
  const Result<Json> json = Json::Parse(*text);
  return json.ok() ? (*json)["tokenizer"]["vocab_size"].AsInt() : 0;
}

bool Quantizes(const Recipe& recipe) {
  return std::any_of(recipe.linear.slots.begin(), recipe.linear.slots.end(),
                     [](const Quant& slot) { return slot.has_scale(); });
}

core::Candidate CandidateOf(const core::Controller& controller, const core::Worker& worker) {
  const auto pool = core::PoolCandidates(controller.state(), controller.Available(), worker.pool);
  for (const core::Candidate& candidate : pool) {
    if (candidate.worker->id == worker.id) return candidate;
  }
  return {};
}

// "w-1: text" -> text, of the line about this worker; "" when there is none.
std::string LineOf(const core::Explanation& explanation, const std::string& worker_id) {
  const std::string prefix = worker_id + ": ";
  for (const std::string& line : explanation.workers) {
    if (line.rfind(prefix, 0) == 0) return line.substr(prefix.size());
  }
  return "";
}

struct Place {
  bool fits_idle = false;  // could run there if nothing else did
  bool fits_now = false;
  std::string line;
};

Place Look(const core::Controller& controller, const core::Explanation& explanation,
           const core::Worker& worker, const core::JobSpec& spec) {
  Place place;
  if (worker.pool != spec.queue) {
    place.line = "serves pool '" + worker.pool + "'; the job waits in queue '" + spec.queue + "'";
    return place;
  }
  const core::Candidate candidate = CandidateOf(controller, worker);
  const size_t slots = static_cast<size_t>(spec.resources.slots_per_node);
  const auto count = [&](const core::FitRules& rules) {
    return core::MatchingDevices(candidate, spec.resources, rules).size();
  };
  place.fits_idle = candidate.worker != nullptr && count({.free = false}) >= slots;
  place.fits_now = candidate.worker != nullptr && count({}) >= slots;
  place.line = LineOf(explanation, worker.id);
  return place;
}

}  // namespace

Result<JobEstimate> EstimateJob(const ResolvedSpec& resolved) {
  JobEstimate job;
  RunConfig run = resolved.run;
  if (run.model.vocab_size == 0) run.model.vocab_size = VocabSizeOfData(run.data.path);
  if (run.model.vocab_size == 0) {
    run.model.vocab_size = kAssumedVocabSize;
    job.warnings.push_back(StrFormat(
        "model.vocabSize is not given and '%s/index.json' is not readable for the controller: the "
        "estimate assumes %lld tokens",
        run.data.path.c_str(), static_cast<long long>(kAssumedVocabSize)));
  }
  if (!run.data.path.empty() && run.data.path.front() != '/') {
    job.warnings.push_back("data.path '" + run.data.path +
                           "' is relative: each worker looks for it in its own folder");
  }
  // A job for any device must fit a CPU, too, which offloads nothing.
  if (resolved.proto.resources().device() == kBackendCuda) run.run.backend = kBackendCuda;
  ASSIGN_OR_RETURN(job.run, EstimateRun(run, resolved.recipe));
  const int64_t tokens = run.schedule.micro_batch * run.data.seq_len;
  for (std::string& warning : RecipeWarnings(resolved.recipe, tokens, run.model.hidden_size)) {
    job.warnings.push_back(std::move(warning));
  }
  job.efficiency = Quantizes(resolved.recipe) ? kEfficiencyQuantized : kEfficiencyHighPrecision;
  job.threads = resolved.proto.resources().threads();
  return job;
}

v1::Estimate ToProto(const JobEstimate& job) {
  v1::Estimate out;
  out.set_parameters(job.run.parameters);
  out.set_flops_per_token(job.run.flops_per_token);
  out.set_steps(job.run.steps);
  out.set_tokens_total(job.run.steps * job.run.tokens_per_step);
  auto& memory = *out.mutable_memory_bytes();
  memory["weights"] = job.run.memory.weights;
  memory["gradients"] = job.run.memory.gradients;
  memory["optimizer"] = job.run.memory.optimizer;
  memory["activations"] = job.run.memory.activations;
  memory["quantized"] = job.run.memory.quantized;
  if (job.run.memory.host > 0) memory["host"] = job.run.memory.host;
  memory["total"] = job.run.memory.total();
  for (const std::string& warning : job.warnings) out.add_warnings(warning);
  return out;
}

double StepSeconds(const JobEstimate& job, double gflops, int device_threads) {
  if (gflops <= 0) return 0;
  double rate = gflops * 1e9 * job.efficiency;
  if (job.threads > 0 && device_threads > job.threads) {
    rate *= static_cast<double>(job.threads) / device_threads;
  }
  return job.run.flops_per_token * static_cast<double>(job.run.tokens_per_step) / rate;
}

void AddFits(const core::Controller& controller, const std::map<std::string, WorkerFacts>& facts,
             const core::JobSpec& spec, const JobEstimate& job, v1::Estimate& estimate) {
  const core::Explanation explanation = controller.ExplainSpec(spec);
  for (const auto& [id, worker] : controller.state().workers()) {
    const Place place = Look(controller, explanation, worker, spec);
    v1::Fit& fit = *estimate.add_fits();
    fit.set_worker_id(id);
    fit.set_fits(place.fits_idle);
    if (!place.fits_idle) {
      fit.set_why_not(place.line);
      continue;
    }
    const auto said = facts.find(id);
    if (said == facts.end() || said->second.devices.empty()) continue;
    const v1::Device& device = said->second.devices.front();
    const double step_seconds = StepSeconds(job, device.gflops(), device.threads());
    fit.set_step_seconds(step_seconds);
    fit.set_total_hours(step_seconds * static_cast<double>(job.run.steps) / 3600);
    const auto needed = static_cast<double>(spec.resources.memory_bytes_per_device);
    const auto present = static_cast<double>(device.memory_bytes());
    if (present > 0 && needed > present * (1 - kMemoryMargin)) {
      estimate.add_warnings(StrFormat("on %s the job needs %s of %s: less than %.0f %% to spare",
                                      id.c_str(), FormatBytes(needed).c_str(),
                                      FormatBytes(present).c_str(), kMemoryMargin * 100));
    }
  }
  if (controller.state().workers().empty()) {
    estimate.add_warnings("no worker has registered: times are not known");
  }
}

std::vector<v1::NodeVerdict> Verdicts(const core::Controller& controller,
                                      const core::JobSpec& spec) {
  std::vector<v1::NodeVerdict> verdicts;
  const core::Explanation explanation = controller.ExplainSpec(spec);
  for (const auto& [id, worker] : controller.state().workers()) {
    const Place place = Look(controller, explanation, worker, spec);
    v1::NodeVerdict& verdict = verdicts.emplace_back();
    verdict.set_worker_id(id);
    verdict.set_fits(place.fits_now);
    if (!place.fits_now) verdict.set_why_not(place.line);
  }
  return verdicts;
}

}  // namespace nibble::rpc
