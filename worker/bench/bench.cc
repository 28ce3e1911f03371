// SPDX-License-Identifier: Apache-2.0
//
// Rows, reports and test data.
#include "worker/bench/bench.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"

namespace nibble::bench {
namespace {

// A cell of the text table: numbers as they are, summaries by their median, shapes as AxBxC.
std::string Cell(const Json& value) {
  if (value.is_string()) return value.AsString();
  if (value.is_int()) return StrFormat("%lld", static_cast<long long>(value.AsInt()));
  if (value.is_number()) return StrFormat("%.4g", value.AsDouble());
  if (value.is_bool()) return value.AsBool() ? "yes" : "no";
  if (!value.is_object()) return "-";
  if (const Json* median = value.Find("median")) return Cell(*median);
  std::vector<std::string> parts;
  for (const auto& [key, part] : value.members()) parts.push_back(key + "=" + Cell(part));
  return StrJoin(parts, " ");
}

std::string Table(const std::vector<Json>& rows, const std::vector<std::string>& keys) {
  std::vector<size_t> widths;
  for (const std::string& key : keys) {
    size_t width = key.size();
    for (const Json& row : rows) width = std::max(width, Cell(row[key]).size());
    widths.push_back(width);
  }
  std::string text;
  const auto add = [&](const std::string& cell, size_t width) {
    text += cell + std::string(width - cell.size() + 2, ' ');
  };
  for (size_t c = 0; c < keys.size(); ++c) add(keys[c], widths[c]);
  text += "\n";
  for (const Json& row : rows) {
    for (size_t c = 0; c < keys.size(); ++c) add(Cell(row[keys[c]]), widths[c]);
    text += "\n";
  }
  return text;
}

Json ListOf(const std::vector<std::string>& names) {
  Json list = Json::Array();
  for (const std::string& name : names) list.Append(name);
  return list;
}

}  // namespace

void Report::Skip(const std::string& what, const std::string& reason) {
  for (const Json& entry : skipped_) {
    if (entry["name"].AsString() == what && entry["reason"].AsString() == reason) return;
  }
  skipped_.push_back(Json::Object({{"name", what}, {"reason", reason}}));
}

Json Report::ToJson(const std::string& benchmark, const Options& options,
                    const Json& machine) const {
  Json results = Json::Array();
  for (const Json& row : rows_) results.Append(row);
  Json skipped = Json::Array();
  for (const Json& entry : skipped_) skipped.Append(entry);
  return Json::Object({{"benchmark", benchmark},
                       {"options", Json::Object({{"isa", options.isa},
                                                 {"seconds", options.seconds},
                                                 {"quick", options.quick},
                                                 {"all", options.all},
                                                 {"shapes", ListOf(options.shapes)},
                                                 {"recipes", ListOf(options.recipes)},
                                                 {"models", ListOf(options.models)}})},
                       {"machine", machine},
                       {"results", std::move(results)},
                       {"skipped", std::move(skipped)}});
}

std::string Report::ToText(const Json& machine) const {
  std::string text;
  for (const auto& [key, value] : machine.members()) text += key + ": " + Cell(value) + "\n";
  // Every key of any row, in order of appearance, the spread of ratios and clocks left to the JSON.
  std::vector<std::string> keys;
  for (const Json& row : rows_) {
    for (const auto& [key, value] : row.members()) {
      if (key == "clock" || key.ends_with("_p10") || key.ends_with("_p90")) continue;
      if (value.is_object() && value.Find("median") == nullptr && key != "shape") continue;
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    }
  }
  text += "\n" + Table(rows_, keys);
  // Shares by operation, where rows have them: a line each.
  for (const Json& row : rows_) {
    const Json* shares = row.Find("share_by_op");
    if (shares == nullptr) continue;
    text += "\n" + row["name"].AsString() + " " + Cell(row["shape"]) + ", share of the step:";
    for (const auto& [op, share] : shares->members()) {
      text += StrFormat(" %s %.1f%%", op.c_str(), 100 * share.AsDouble());
    }
  }
  for (const Json& entry : skipped_) {
    text += "\nskipped " + entry["name"].AsString() + ": " + entry["reason"].AsString();
  }
  return text + "\n";
}

Json Row(const std::string& name, Json shape, int threads, const std::vector<double>& seconds) {
  return Json::Object({{"name", name},
                       {"shape", std::move(shape)},
                       {"threads", threads},
                       {"clock", ClockName(ClockFor(threads))},
                       {"ms", ToJson(Summarise(seconds), 1e3)}});
}

void AddRatio(const std::string& key, const std::vector<double>& base,
              const std::vector<double>& value, Json* row) {
  const Summary ratios = SummariseRatios(base, value);
  if (ratios.n == 0) return;
  row->Set(key, Significant(ratios.median));
  row->Set(key + "_p10", Significant(ratios.p10));
  row->Set(key + "_p90", Significant(ratios.p90));
}

Result<std::vector<int64_t>> ParseShape(const std::string& text, size_t count) {
  std::vector<int64_t> sizes;
  for (const std::string& part : StrSplit(text, 'x')) {
    const Result<int64_t> size = ParseInt(part);
    if (!size.ok() || *size < 1 || *size > (int64_t{1} << 24)) sizes.assign(count + 1, 0);
    if (size.ok()) sizes.push_back(*size);
  }
  if (sizes.size() == count) return sizes;
  return InvalidArgumentError(StrFormat(
      "shape '%s'; expected %zu numbers of 1 to 16777216 joined by x", text.c_str(), count));
}

Result<std::unique_ptr<Backend>> CpuWithThreads(int threads) {
  BackendOptions options;
  options.threads = threads;
  return MakeBackend("cpu", options);
}

void FillBell(uint32_t stream, float scale, TensorView x) {
  // The sum of the four 16-bit parts of a 64-bit word: bell enough, and fast on large tensors.
  uint64_t state = 0x9E3779B97F4A7C15u * (stream + 1);
  for (int64_t i = 0; i < x.size(); ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    float sum = -2.0f;
    for (int part = 0; part < 4; ++part) {
      sum += static_cast<float>((state >> (16 * part)) & 0xFFFF) * 0x1p-16f;
    }
    x.f32()[i] = 2.0f * sum * scale * (i % 97 == 0 ? 10.0f : 1.0f);
  }
}

Result<TensorView> Tensors::Make(int64_t rows, int64_t cols, DType type) {
  buffers_.push_back(std::make_unique<Buffer>());
  ASSIGN_OR_RETURN(const TensorView view, buffers_.back()->View(backend_, rows, cols, type));
  if (type == DType::kF32) RETURN_IF_ERROR(backend_.Fill(view, 0.0f));
  return view;
}

Result<TensorView> Tensors::MakeBell(uint32_t stream, float scale, int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(const TensorView view, Make(rows, cols));
  FillBell(stream, scale, view);
  return view;
}

}  // namespace nibble::bench
