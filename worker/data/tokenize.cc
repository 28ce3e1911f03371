// SPDX-License-Identifier: Apache-2.0
#include "worker/data/tokenize.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/split_writer.h"
#include "worker/data/tokenizer.h"

namespace nibble {
namespace {

constexpr double kMaxValFraction = 0.5;
// Text encoded between two writes.
constexpr int64_t kBatchBytes = int64_t{4} << 20;
// The split is chosen for units of at most this size, and smaller ones where the text is small, so
// that validation gets about kValidationUnits of them.
constexpr int64_t kMaxUnitBytes = 65536;
constexpr int64_t kMinUnitBytes = 256;
constexpr double kValidationUnits = 4;
constexpr std::string_view kIndexFormat = "nibble-tokens";
constexpr std::string_view kLockName = ".lock";

struct Unit {
  std::string text;
  bool validation = false;
  bool continues = false;  // goes on where the same split's last unit ended
  Result<std::vector<int32_t>> ids = InternalError("not encoded");
};

Status CheckOptions(const TokenizeOptions& options) {
  if (options.inputs.empty()) return InvalidArgumentError("no input files given");
  if (options.out.empty()) return InvalidArgumentError("no output folder given");
  if (!(options.val_fraction >= 0 && options.val_fraction <= kMaxValFraction)) {
    return InvalidArgumentError(StrFormat("validation fraction %g: it must be 0 to %g",
                                          options.val_fraction, kMaxValFraction));
  }
  if (options.threads < 0 || options.threads > kMaxTokenizeThreads) {
    return InvalidArgumentError(StrFormat("%d threads: 0 (as many as the machine has) to %d",
                                          options.threads, kMaxTokenizeThreads));
  }
  return OkStatus();
}

// Whether the output may take the place of what is at `out`: nothing, an empty folder, or with
// `overwrite` an earlier output; never anything else.
Status CheckReplaceable(const std::string& out, bool overwrite) {
  if (!PathExists(out)) return OkStatus();
  const auto names = ListDirectory(out);
  if (names.ok() && names->empty()) return OkStatus();
  const auto index = ReadFile(JoinPath(out, "index.json"));
  const auto json = index.ok() ? Json::Parse(*index) : Result<Json>(index.status());
  if (!json.ok() || (*json)["format"].AsString() != kIndexFormat) {
    return AlreadyExistsError(out + " exists and holds something else; name another output folder");
  }
  if (overwrite) return OkStatus();
  return AlreadyExistsError(out + " exists; name another output folder or pass --overwrite");
}

// The folder the output is made in. Removed when destroyed unless it was put in place.
class PartialFolder {
 public:
  static Result<PartialFolder> Make(const std::string& out, bool overwrite) {
    RETURN_IF_ERROR(CheckReplaceable(out, overwrite));
    PartialFolder folder;
    folder.out_ = out;
    while (folder.out_.size() > 1 && folder.out_.ends_with('/')) folder.out_.pop_back();
    folder.path_ = folder.out_ + ".partial";
    RETURN_IF_ERROR(MakeDirectories(folder.path_));
    auto lock = FileLock::Acquire(JoinPath(folder.path_, kLockName));
    if (!lock.ok()) return lock.status().WithContext("another run writes to " + out);
    folder.lock_ = std::move(*lock);
    ASSIGN_OR_RETURN(const std::vector<std::string> left, ListDirectory(folder.path_));
    for (const std::string& name : left) {
      if (name != kLockName) RETURN_IF_ERROR(RemoveTree(JoinPath(folder.path_, name)));
    }
    return folder;
  }
  PartialFolder(PartialFolder&& other) noexcept
      : out_(std::move(other.out_)),
        path_(std::exchange(other.path_, "")),
        lock_(std::move(other.lock_)) {}
  ~PartialFolder() {
    if (!path_.empty()) (void)RemoveTree(path_).ok();
  }

  const std::string& path() const { return path_; }

  // Replaces the output folder by this one.
  Status PutInPlace() {
    RETURN_IF_ERROR(RemoveTree(JoinPath(path_, kLockName)));
    RETURN_IF_ERROR(SyncDirectory(path_));
    const std::string old = out_ + ".old";
    RETURN_IF_ERROR(RemoveTree(old));
    const bool replaces = PathExists(out_);
    if (replaces) RETURN_IF_ERROR(RenamePath(out_, old));
    RETURN_IF_ERROR(RenamePath(path_, out_));
    path_.clear();
    RETURN_IF_ERROR(SyncDirectory(DirName(out_)));
    return replaces ? RemoveTree(old) : OkStatus();
  }

 private:
  PartialFolder() = default;
  std::string out_;
  std::string path_;
  FileLock lock_;
};

class Pipeline {
 public:
  Pipeline(const TokenizeOptions& options, const Tokenizer& tokenizer, SplitWriter train,
           SplitWriter val)
      : options_(options), tokenizer_(tokenizer), train_(std::move(train)), val_(std::move(val)) {}

  Status Run() {
    int64_t input_bytes = 0;
    for (const std::string& path : options_.inputs) {
      ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
      input_bytes += size;
    }
    const double share = static_cast<double>(input_bytes) * options_.val_fraction;
    const auto unit_bytes =
        std::clamp(static_cast<int64_t>(share / kValidationUnits), kMinUnitBytes, kMaxUnitBytes);
    DocumentReaderOptions reader_options = options_.reader;
    reader_options.part_bytes =
        static_cast<size_t>(options_.val_fraction > 0 ? unit_bytes : kMaxUnitBytes);
    SplitChooser chooser(options_.val_fraction, unit_bytes);
    for (const std::string& path : options_.inputs) {
      ASSIGN_OR_RETURN(DocumentReader reader, DocumentReader::Open(path, reader_options));
      RETURN_IF_ERROR(ReadFileUnits(reader, chooser));
    }
    return EncodeAndWrite();
  }

  Result<Json> Finish() {
    if (documents_ == 0) {
      return InvalidArgumentError("no text in " + StrJoin(options_.inputs, ", ") +
                                  "; an empty corpus cannot be tokenized");
    }
    if (options_.val_fraction > 0 && (val_.tokens() == 0 || train_.tokens() == 0)) {
      return InvalidArgumentError(StrFormat(
          "%lld bytes of text are too few for a validation share of %g; give more text, a larger "
          "--val-fraction, or --val-fraction 0",
          static_cast<long long>(text_bytes_), options_.val_fraction));
    }
    Json splits = Json::Object();
    ASSIGN_OR_RETURN(Json train, train_.Finish());
    splits.Set("train", std::move(train));
    ASSIGN_OR_RETURN(Json val, val_.Finish());
    splits.Set("val", std::move(val));
    return Json::Object(
        {{"text_bytes", text_bytes_}, {"documents", documents_}, {"splits", std::move(splits)}});
  }

 private:
  Status ReadFileUnits(DocumentReader& reader, SplitChooser& chooser) {
    DocumentPart part;
    bool previous_validation = false;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, reader.Next(part));
      if (!more) return OkStatus();
      const auto bytes = static_cast<int64_t>(part.text.size());
      Unit unit;
      unit.validation = chooser.NextIsValidation(bytes);
      unit.continues = part.part > 0 && unit.validation == previous_validation;
      previous_validation = unit.validation;
      documents_ += part.part == 0 ? 1 : 0;
      text_bytes_ += bytes;
      pending_bytes_ += bytes;
      unit.text = std::move(part.text);
      units_.push_back(std::move(unit));
      if (pending_bytes_ >= kBatchBytes) RETURN_IF_ERROR(EncodeAndWrite());
    }
  }

  // Threads encode units as they find them; one writes them in order.
  Status EncodeAndWrite() {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i; (i = next.fetch_add(1)) < units_.size();) {
        units_[i].ids = EncodeDocument(tokenizer_, units_[i].text, units_[i].continues);
      }
    };
    const unsigned machine = std::max(1u, std::thread::hardware_concurrency());
    const auto wanted = static_cast<size_t>(
        options_.threads > 0 ? options_.threads
                             : std::min(machine, static_cast<unsigned>(kMaxTokenizeThreads)));
    std::vector<std::thread> threads;
    for (size_t i = 1; i < std::min(wanted, units_.size()); ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    for (const Unit& unit : units_) {
      if (!unit.ids.ok()) return unit.ids.status();
      RETURN_IF_ERROR((unit.validation ? val_ : train_).Append(*unit.ids, unit.continues));
    }
    units_.clear();
    pending_bytes_ = 0;
    return OkStatus();
  }

  const TokenizeOptions& options_;
  const Tokenizer& tokenizer_;
  SplitWriter train_;
  SplitWriter val_;
  std::vector<Unit> units_;
  int64_t pending_bytes_ = 0;
  int64_t text_bytes_ = 0;
  int64_t documents_ = 0;
};

// Copies the tokenizer's files from `path` into `folder`, so that the shards carry what decodes
// them, and describes the copy.
Result<Json> PutTokenizer(const Tokenizer& tokenizer, const std::string& path,
                          const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<NamedContent> copies, ReadTokenizerFiles(path));
  Json files = Json::Array();
  for (const NamedContent& copy : copies) {
    RETURN_IF_ERROR(AtomicWriteFile(JoinPath(folder, copy.name), copy.content));
    files.Append(Json::Object({{"name", copy.name},
                               {"bytes", static_cast<int64_t>(copy.content.size())},
                               {"sha256", Sha256Hex(copy.content)}}));
  }
  ASSIGN_OR_RETURN(const std::string hash, TokenizerHash(folder));
  return Json::Object({{"name", tokenizer.name()},
                       {"vocab_size", tokenizer.vocab_size()},
                       {"bos_id", tokenizer.bos_id()},
                       {"eos_id", tokenizer.eos_id()},
                       {"sha256", hash},
                       {"file", copies.front().name},
                       {"files", std::move(files)}});
}

}  // namespace

Result<Json> TokenizeFiles(const TokenizeOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options.tokenizer));
  ASSIGN_OR_RETURN(PartialFolder folder, PartialFolder::Make(options.out, options.overwrite));
  ASSIGN_OR_RETURN(Json tokenizer_json, PutTokenizer(*tokenizer, options.tokenizer, folder.path()));

  const TokenWidth width = TokenWidthFor(tokenizer->vocab_size());
  TokenShardWriter::Options writer{folder.path(), "train", width, tokenizer->vocab_size(),
                                   options.shard_tokens};
  ASSIGN_OR_RETURN(TokenShardWriter train, TokenShardWriter::Create(writer));
  writer.prefix = "val";
  ASSIGN_OR_RETURN(TokenShardWriter val, TokenShardWriter::Create(writer));
  Pipeline pipeline(options, *tokenizer, SplitWriter(*tokenizer, std::move(train)),
                    SplitWriter(*tokenizer, std::move(val)));
  RETURN_IF_ERROR(pipeline.Run());
  ASSIGN_OR_RETURN(const Json counts, pipeline.Finish());

  Json index = Json::Object({{"format", kIndexFormat},
                             {"version", 1},
                             {"tokenizer", std::move(tokenizer_json)},
                             {"token_bytes", static_cast<int>(width)}});
  for (const auto& [key, value] : counts.members()) index.Set(key, value);
  RETURN_IF_ERROR(AtomicWriteFile(JoinPath(folder.path(), "index.json"), index.Dump(2) + "\n"));
  RETURN_IF_ERROR(folder.PutInPlace());
  return index;
}

}  // namespace nibble
