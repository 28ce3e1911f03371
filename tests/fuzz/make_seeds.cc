// SPDX-License-Identifier: Apache-2.0
//
// make-seeds FOLDER: valid inputs for the fuzz targets, FOLDER/<target>/<number>.
#include <cstdio>
#include <string>
#include <vector>

#include "base/files.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/journal.h"
#include "worker/train/safetensors.h"

namespace nibble {
namespace {

Status WriteSeeds(const std::string& folder, const std::vector<std::string>& seeds) {
  RETURN_IF_ERROR(MakeDirectories(folder));
  for (size_t i = 0; i < seeds.size(); ++i) {
    RETURN_IF_ERROR(AtomicWriteFile(JoinPath(folder, std::to_string(i)), seeds[i]));
  }
  return OkStatus();
}

std::vector<std::string> Recipes() {
  std::vector<std::string> seeds;
  for (const std::string& name : BuiltInRecipeNames()) {
    const Result<Recipe> recipe = FindRecipe(name);
    if (recipe.ok()) seeds.push_back(RecipeToJson(*recipe).Dump());
  }
  return seeds;
}

std::vector<std::string> JournalLines() {
  JournalRecord record{3, 1767225600123, StartRecord{0, 100, 1234567, 2048, "fp4", {{"f", "g"}}}};
  std::vector<std::string> seeds;
  const auto add = [&](auto event) {
    record.event = std::move(event);
    std::string line = EncodeJournalLine(record);
    line.pop_back();
    seeds.push_back(std::move(line));
  };
  add(std::get<StartRecord>(record.event));
  add(StepRecord{7, 5.9, 1.1, 3e-4, 14336, .5, 4096});
  add(ValidationRecord{7, 6.1});
  add(HealthRecord{7, "weight_mlp_first", .1, .2, .3, 20, .99, .5, 2, 4, 1});
  add(CheckpointRecord{7, "checkpoints/step-7", 1.5, 99, true});
  add(MemoryRecord{{{"weights", 4}, {"peak_rss", 5}}});
  add(LogRecord{"warning", "a \"quoted\" text"});
  add(EndRecord{kEndCompleted, "", 100, std::string(64, 'a'), 5.5, 5.6});
  return seeds;
}

Result<std::string> TensorFile(const std::string& path, std::vector<SafetensorsEntry> entries,
                               size_t data_bytes) {
  ASSIGN_OR_RETURN(SafetensorsWriter writer,
                   SafetensorsWriter::Create(path, std::move(entries), {{"format", "pt"}}));
  const std::string data(data_bytes, '\x3f');
  RETURN_IF_ERROR(writer.Append(data.data(), data.size()));
  RETURN_IF_ERROR(writer.Finish().status());
  Result<std::string> bytes = ReadFile(path);
  RETURN_IF_ERROR(RemoveTree(path));
  return bytes;
}

Result<std::vector<std::string>> TensorFiles(const std::string& folder) {
  const std::string path = JoinPath(folder, "seed.safetensors");
  std::vector<std::string> seeds;
  ASSIGN_OR_RETURN(seeds.emplace_back(), TensorFile(path, {}, 0));
  ASSIGN_OR_RETURN(seeds.emplace_back(), TensorFile(path, {{"a", "F32", {}}}, 4));
  ASSIGN_OR_RETURN(seeds.emplace_back(),
                   TensorFile(path, {{"X", "BF16", {2, 3}}, {"W", "F32", {1, 3}}}, 24));
  ASSIGN_OR_RETURN(seeds.emplace_back(),
                   TensorFile(path, {{"e", "I64", {0, 5}}, {"c", "U8", {1, 1, 2}}}, 2));
  return seeds;
}

Status MakeSeeds(const std::string& folder) {
  RETURN_IF_ERROR(MakeDirectories(folder));
  ASSIGN_OR_RETURN(const std::vector<std::string> files, TensorFiles(folder));
  RETURN_IF_ERROR(WriteSeeds(JoinPath(folder, "safetensors_fuzz"), files));
  RETURN_IF_ERROR(WriteSeeds(JoinPath(folder, "recipe_fuzz"), Recipes()));
  return WriteSeeds(JoinPath(folder, "journal_fuzz"), JournalLines());
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make-seeds FOLDER\n");
    return 2;
  }
  const nibble::Status status = nibble::MakeSeeds(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "make-seeds: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
