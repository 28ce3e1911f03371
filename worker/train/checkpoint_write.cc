// SPDX-License-Identifier: Apache-2.0
//
// Writing a checkpoint folder; see checkpoint.h.
#include <algorithm>
#include <utility>

#include "base/files.h"
#include "worker/data/tokenizer.h"
#include "worker/train/checkpoint.h"
#include "worker/train/safetensors.h"

namespace nibble {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;
constexpr int kManifestVersion = 1;

// Collects what was written for the manifest.
class FolderWriter {
 public:
  explicit FolderWriter(std::string folder) : folder_(std::move(folder)) {}

  std::string PathOf(const std::string& name) const { return JoinPath(folder_, name); }

  void Add(const std::string& name, const FileDigest& digest) {
    bytes_ += digest.size_bytes;
    files_.Append(
        Json::Object({{"name", name}, {"bytes", digest.size_bytes}, {"sha256", digest.sha256}}));
  }

  Status WriteText(const std::string& name, const std::string& text) {
    ASSIGN_OR_RETURN(const FileDigest digest, WriteFile(name, text));
    Add(name, digest);
    return OkStatus();
  }

  // The manifest, then the folder's names: nothing of the checkpoint is only in memory afterwards.
  Result<int64_t> Finish(int64_t step) {
    const Json manifest =
        Json::Object({{"version", kManifestVersion}, {"step", step}, {"files", files_}});
    ASSIGN_OR_RETURN(const FileDigest digest,
                     WriteFile(kManifestFileName, manifest.Dump(1) + "\n"));
    RETURN_IF_ERROR(SyncDirectory(folder_));
    return bytes_ + digest.size_bytes;
  }

 private:
  Result<FileDigest> WriteFile(const std::string& name, const std::string& text) {
    ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(PathOf(name)));
    RETURN_IF_ERROR(file.Write(text.data(), text.size()));
    return file.Finish();
  }

  std::string folder_;
  Json files_ = Json::Array();
  int64_t bytes_ = 0;
};

struct NamedTensor {
  std::string name;
  const ParameterInfo* info;
  TensorView view;
};

Status WriteTensors(FolderWriter& out, const std::string& name, Backend& backend,
                    const std::vector<NamedTensor>& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const NamedTensor& tensor : tensors) {
    entries.push_back({tensor.name, CheckpointType(tensor.view.dtype), tensor.info->shape()});
  }
  // transformers reads "format" to learn which framework's layout a file has.
  ASSIGN_OR_RETURN(SafetensorsWriter writer,
                   SafetensorsWriter::Create(out.PathOf(name), entries, {{"format", "pt"}}));
  std::vector<uint8_t> chunk;
  for (const NamedTensor& tensor : tensors) {
    const int64_t size = tensor.view.size_bytes();
    for (int64_t begin = 0; begin < size; begin += kChunkBytes) {
      chunk.resize(static_cast<size_t>(std::min(kChunkBytes, size - begin)));
      RETURN_IF_ERROR(backend.CopyOut(chunk.data(), tensor.view.u8() + begin,
                                      static_cast<int64_t>(chunk.size())));
      RETURN_IF_ERROR(writer.Append(chunk.data(), chunk.size()));
    }
  }
  ASSIGN_OR_RETURN(const FileDigest digest, writer.Finish());
  out.Add(name, digest);
  return OkStatus();
}

Status WriteRecipeTensors(FolderWriter& out, const RecipeTensors& tensors) {
  if (tensors.empty()) return OkStatus();
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, values] : tensors) {
    entries.push_back({name, "F32", {static_cast<int64_t>(values.size())}});
  }
  ASSIGN_OR_RETURN(SafetensorsWriter writer,
                   SafetensorsWriter::Create(out.PathOf(kRecipeFileName), entries, {}));
  for (const auto& [name, values] : tensors) {
    RETURN_IF_ERROR(writer.Append(values.data(), values.size() * sizeof(float)));
  }
  ASSIGN_OR_RETURN(const FileDigest digest, writer.Finish());
  out.Add(kRecipeFileName, digest);
  return OkStatus();
}

// What transformers' AutoTokenizer needs beside a SentencePiece model.
std::string TokenizerConfig() {
  return Json::Object({{"tokenizer_class", "LlamaTokenizer"},
                       {"legacy", false},
                       {"add_bos_token", true},
                       {"add_eos_token", false},
                       {"bos_token", "<s>"},
                       {"eos_token", "</s>"},
                       {"unk_token", "<unk>"}})
             .Dump(1) +
         "\n";
}

// Under the names a loader looks for, whatever the run's files are called.
Status CopyTokenizer(FolderWriter& out, const std::vector<std::string>& files) {
  if (files.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const std::vector<NamedContent> copies, ReadTokenizerFiles(files.front()));
  for (const NamedContent& copy : copies) {
    RETURN_IF_ERROR(out.WriteText(copy.name, copy.content));
    if (copy.name == "tokenizer.model") {
      RETURN_IF_ERROR(out.WriteText("tokenizer_config.json", TokenizerConfig()));
    }
  }
  return OkStatus();
}

}  // namespace

Result<int64_t> WriteCheckpoint(const std::string& folder, Backend& backend,
                                const Parameters& parameters, const CheckpointContent& content) {
  FolderWriter out(folder);
  std::vector<NamedTensor> weights, moments;
  for (size_t t = 0; t < parameters.list().size(); ++t) {
    const ParameterInfo& info = parameters.list()[t];
    weights.push_back({info.name, &info, parameters.weight(t)});
    moments.push_back({info.name + ".exp_avg", &info, parameters.first_moment(t)});
    moments.push_back({info.name + ".exp_avg_sq", &info, parameters.second_moment(t)});
  }
  RETURN_IF_ERROR(WriteTensors(out, kWeightsFileName, backend, weights));
  RETURN_IF_ERROR(parameters.SettleMoments());
  RETURN_IF_ERROR(WriteTensors(out, kOptimizerFileName, parameters.moments_backend(), moments));
  RETURN_IF_ERROR(WriteRecipeTensors(out, content.state.recipe_tensors));
  const Json config =
      ModelConfigToHuggingFace(content.model, content.seq_len, content.bos_id, content.eos_id);
  RETURN_IF_ERROR(out.WriteText(kConfigFileName, config.Dump(2) + "\n"));
  RETURN_IF_ERROR(CopyTokenizer(out, content.tokenizer_files));
  RETURN_IF_ERROR(out.WriteText(kStateFileName, content.state.ToJson().Dump(1) + "\n"));
  return out.Finish(content.state.step);
}

}  // namespace nibble
