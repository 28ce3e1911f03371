// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_data.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/corpus.h"
#include "worker/data/tokenize.h"
#include "worker/data/train_tokenizer.h"

namespace nibble {
namespace {

constexpr char kStampName[] = "study-data.json";

struct Sources {
  std::string name;
  std::vector<std::string> files;  // empty: Perl's documentation
};

Result<Sources> FindSources(const StudyDataOptions& options) {
  if (!options.text.empty()) return Sources{"own text", options.text};
  const std::string text = JoinPath(options.data_dir, "text");
  const std::string gutenberg = JoinPath(text, "gutenberg");
  if (options.data_dir.empty() || !PathExists(gutenberg)) {
    return Sources{"Perl's documentation", {}};
  }
  Sources sources{"Gutenberg and WikiText-2", {}};
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(gutenberg));
  for (const std::string& name : names) {
    if (name.ends_with(".txt")) sources.files.push_back(JoinPath(gutenberg, name));
  }
  const std::string wikitext = JoinPath(text, "wikitext2-valid.txt");
  if (PathExists(wikitext)) {
    sources.files.push_back(wikitext);
  } else {
    sources.name = "Gutenberg";
  }
  return sources;
}

// One text per source file, or the corpus of Perl's documentation as one.
Result<std::vector<std::string>> ReadTexts(const Sources& sources, const std::string& folder) {
  std::vector<std::string> texts;
  if (sources.files.empty()) {
    const std::string corpus = JoinPath(folder, "perl-doc.txt");
    RETURN_IF_ERROR(WritePerlDocCorpus(corpus, "", 0).status());
    ASSIGN_OR_RETURN(std::string text, ReadFile(corpus, kMaxTextFileBytes));
    texts.push_back(std::move(text));
    return texts;
  }
  for (const std::string& file : sources.files) {
    ASSIGN_OR_RETURN(std::string text, ReadFile(file, kMaxTextFileBytes));
    texts.push_back(std::move(text));
  }
  return texts;
}

Status WriteSplits(const std::vector<std::string>& texts, double fraction,
                   const std::string& train_path, const std::string& validation_path) {
  ASSIGN_OR_RETURN(CorpusWriter train, CorpusWriter::Create(train_path));
  ASSIGN_OR_RETURN(CorpusWriter validation, CorpusWriter::Create(validation_path));
  for (const std::string& text : texts) {
    const size_t cut = HeldOutBegin(text, fraction);
    RETURN_IF_ERROR(train.Add(std::string_view(text).substr(0, cut)));
    RETURN_IF_ERROR(validation.Add(std::string_view(text).substr(cut)));
  }
  RETURN_IF_ERROR(train.Finish());
  return validation.Finish();
}

Result<Json> Tokenize(const std::string& tokenizer, const std::string& text,
                      const std::string& out) {
  TokenizeOptions options;
  options.tokenizer = tokenizer;
  options.out = out;
  options.inputs = {text};
  options.val_fraction = 0;
  options.overwrite = true;
  return TokenizeFiles(options);
}

StudyData Described(const std::string& folder, const Json& stamp) {
  StudyData data;
  data.train_folder = JoinPath(folder, "train");
  data.validation_glob = JoinPath(JoinPath(folder, "validation"), "train-*.bin");
  data.fingerprint = stamp["fingerprint"].AsString();
  data.source = stamp["source"].AsString();
  data.train_tokens = stamp["train_tokens"].AsInt();
  data.validation_tokens = stamp["validation_tokens"].AsInt();
  return data;
}

Result<Json> MakeData(const std::vector<std::string>& texts, const std::string& source,
                      const StudyCorpus& corpus, const std::string& folder) {
  const std::string train = JoinPath(folder, "train.txt");
  const std::string validation = JoinPath(folder, "validation.txt");
  RETURN_IF_ERROR(WriteSplits(texts, corpus.val_fraction, train, validation));
  TrainTokenizerOptions options;
  options.input = train;
  options.out = JoinPath(folder, "tokenizer.model");
  options.vocab_size = corpus.vocab_size;
  RETURN_IF_ERROR(TrainTokenizer(options).status());
  ASSIGN_OR_RETURN(const Json trained, Tokenize(options.out, train, JoinPath(folder, "train")));
  ASSIGN_OR_RETURN(const Json held_out,
                   Tokenize(options.out, validation, JoinPath(folder, "validation")));
  Sha256 hash;
  hash.Update(trained["tokenizer"]["sha256"].AsString());
  for (const Json* index : {&trained, &held_out}) {
    for (const Json& file : (*index)["splits"]["train"]["files"].items()) {
      hash.Update(file["sha256"].AsString());
    }
  }
  return Json::Object({{"source", source},
                       {"fingerprint", hash.HexDigest()},
                       {"train_tokens", trained["splits"]["train"]["tokens"]},
                       {"validation_tokens", held_out["splits"]["train"]["tokens"]}});
}

}  // namespace

size_t HeldOutBegin(std::string_view text, double fraction) {
  const auto from = static_cast<size_t>(static_cast<double>(text.size()) * (1 - fraction));
  const size_t line = text.find('\n', std::min(from, text.size()));
  return line == std::string_view::npos ? text.size() : line + 1;
}

Result<StudyData> PrepareStudyData(const StudyCorpus& corpus, const StudyDataOptions& options) {
  ASSIGN_OR_RETURN(const Sources sources, FindSources(options));
  RETURN_IF_ERROR(MakeDirectories(options.folder));
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, ReadTexts(sources, options.folder));
  Sha256 hash;
  hash.Update(
      StrFormat("%lld %.17g", static_cast<long long>(corpus.vocab_size), corpus.val_fraction));
  for (const std::string& text : texts) hash.Update(Sha256Hex(text));
  const std::string folder = JoinPath(options.folder, hash.HexDigest().substr(0, 12));
  const std::string stamp_path = JoinPath(folder, kStampName);
  const auto stamp = ReadFile(stamp_path, 1 << 20);
  if (stamp.ok()) {
    ASSIGN_OR_RETURN(const Json json, Json::Parse(*stamp));
    return Described(folder, json);
  }
  options.note("tokenizing " + sources.name + " into " + folder);
  RETURN_IF_ERROR(MakeDirectories(folder));
  ASSIGN_OR_RETURN(const Json json, MakeData(texts, sources.name, corpus, folder));
  RETURN_IF_ERROR(AtomicWriteFile(stamp_path, json.Dump(2) + "\n"));
  return Described(folder, json);
}

}  // namespace nibble
