// SPDX-License-Identifier: Apache-2.0
#include "client/cli/quickstart_report.h"

#include <cmath>

#include "base/files.h"
#include "base/strings.h"
#include "client/cli/job_text.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

constexpr int kComparedSteps = 6;

// NaN (no such value) becomes null.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

double FirstValidationLoss(const RunSummary& run) {
  return run.validation.empty() ? std::nan("") : run.validation.begin()->second;
}

Json MemoryJson(const RunSummary& run) {
  Json memory = Json::Object();
  for (const auto& [name, bytes] : OrderedMemory(run.memory_bytes)) memory.Set(name, bytes);
  return memory;
}

Json HealthJson(const std::map<std::string, v1::HealthPoint>& health) {
  Json json = Json::Object();
  for (const auto& [name, point] : health) {
    Json entry = Json::Object({{"step", point.step()},
                               {"underflow_ratio", point.underflow_ratio()},
                               {"saturation_ratio", point.saturation_ratio()},
                               {"mse", point.mse()},
                               {"snr_db", point.snr_db()},
                               {"cosine", point.cosine()},
                               {"scale_min", point.scale_min()},
                               {"scale_max", point.scale_max()},
                               {"nonfinite_amax", point.nonfinite_amax()}});
    if (name.starts_with("gradient")) entry.Set("grad_noise_ratio", point.grad_noise_ratio());
    json.Set(name, std::move(entry));
  }
  return json;
}

Json RunJson(const QuickstartRun& run) {
  const RunSummary& summary = run.summary;
  const double validation = summary.final_validation_loss();
  return Json::Object({{"job", run.job.id()},
                       {"job_state", summary.state},
                       {"recipe", summary.recipe},
                       {"steps", run.job.progress().step()},
                       {"first_val_loss", Number(FirstValidationLoss(summary))},
                       {"final_val_loss", Number(validation)},
                       {"final_train_loss", Number(summary.final_train_loss())},
                       {"perplexity", Number(std::exp(validation))},
                       {"tokens_per_second", summary.tokens_per_second},
                       {"memory_bytes", MemoryJson(summary)},
                       {"health", HealthJson(run.health)},
                       {"checkpoint", run.job.checkpoint_path()}});
}

void PrintRun(std::ostream& out, const QuickstartRun& run) {
  const RunSummary& summary = run.summary;
  const double first = FirstValidationLoss(summary), last = summary.final_validation_loss();
  out << "  training loss    " << LossText(summary.final_train_loss()) << "\n"
      << "  validation loss  " << LossText(last) << StrFormat(" (perplexity %.2f)", std::exp(last))
      << ", at first " << LossText(first) << StrFormat(" (%.2f)", std::exp(first)) << "\n"
      << "  throughput       " << FormatCount(summary.tokens_per_second) << " tokens/s\n"
      << "  wall time        " << FormatDuration(run.wall_seconds) << "\n"
      << "  checkpoint       " << run.job.checkpoint_path() << "\n\n";
  Table memory({"MEMORY", ">BYTES", ">"});
  for (const auto& [name, bytes] : OrderedMemory(summary.memory_bytes)) {
    memory.AddRow({name, std::to_string(bytes), FormatBytes(static_cast<double>(bytes))});
  }
  for (const std::string& line : memory.Lines(true)) out << "  " << line << "\n";
  out << "\n";
  for (const std::string& line : run.health_lines) out << "  " << line << "\n";
}

}  // namespace

Json QuickstartJson(const QuickstartReport& report) {
  Json json = RunJson(report.runs[0]);
  json.Set("sample", report.sample.empty() ? "" : report.prompt + report.sample);
  json.Set("state_dir", report.state_dir);
  json.Set("wall_seconds", report.wall_seconds);
  if (report.runs.size() > 1) {
    Json compared = Json::Array();
    const double reference = report.runs.back().summary.final_validation_loss();
    for (const QuickstartRun& run : report.runs) {
      Json entry = RunJson(run);
      entry.Set("gap_percent", Number(GapPercent(run.summary.final_validation_loss(), reference)));
      compared.Append(std::move(entry));
    }
    json.Set("compare", std::move(compared));
  }
  return json;
}

void PrintQuickstart(std::ostream& out, const QuickstartReport& report) {
  const QuickstartRun& main = report.runs[0];
  out << "\n"
      << main.summary.recipe << ": " << main.summary.state << " after "
      << main.job.progress().step() << " steps\n";
  PrintRun(out, main);
  if (report.runs.size() > 1) {
    // BF16 is the reference of the gap, so it comes first.
    std::vector<RunSummary> runs;
    for (auto it = report.runs.rbegin(); it != report.runs.rend(); ++it) {
      runs.push_back(it->summary);
    }
    out << "\nSame model, same seed, same data order\n";
    for (const std::string& line : SummaryTable(runs).Lines(true)) out << "  " << line << "\n";
    out << "\n";
    for (const std::string& line : LossTable(runs, kComparedSteps).Lines(true)) {
      out << "  " << line << "\n";
    }
  }
  if (!report.sample.empty()) {
    out << "\nSample\n";
    for (const std::string& line : StrSplit(report.prompt + report.sample, '\n')) {
      out << "  " << line << "\n";
    }
  }
  const std::string trainer = JoinPath(DirName(report.program), "nibble-trainer");
  out << "\nNext\n"
      << "  " << trainer << " generate --checkpoint " << main.job.checkpoint_path()
      << " --prompt \"" << report.prompt << "\"\n"
      << "  " << report.program << " up --state-dir " << report.state_dir
      << "    # keeps a cluster running; then, elsewhere:\n"
      << "  " << report.program << " metrics " << main.job.id() << " -o csv\n"
      << "  " << report.program << " submit -f examples/quickstart.yaml --set data.path="
      << JoinPath(report.state_dir, "data/tokens") << " --set schedule.steps=1000 --watch\n"
      << "Done in " << FormatDuration(report.wall_seconds) << "." << std::endl;
}

}  // namespace nibble::cli
