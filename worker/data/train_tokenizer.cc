// SPDX-License-Identifier: Apache-2.0
#include "worker/data/train_tokenizer.h"

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/document_reader.h"
#include "worker/data/tokenizer.h"
#include "worker/data/window_order.h"

namespace nibble {
namespace {

// SentencePiece leaves out longer sentences (its max_sentence_length is 4192); we cut them.
constexpr size_t kMaxSentenceBytes = 4096;

Status CheckOptions(const TrainTokenizerOptions& options) {
  if (options.vocab_size < kMinVocabulary || options.vocab_size > kMaxVocabulary) {
    return InvalidArgumentError(StrFormat(
        "vocabulary of %lld: it must be %lld (3 special pieces, 256 bytes, a few characters) to "
        "%lld",
        static_cast<long long>(options.vocab_size), static_cast<long long>(kMinVocabulary),
        static_cast<long long>(kMaxVocabulary)));
  }
  if (options.model_type != "bpe" && options.model_type != "unigram") {
    return InvalidArgumentError(
        UnknownNameMessage("model type", options.model_type, {"bpe", "unigram"}));
  }
  return OkStatus();
}

// A line is taken when its hash falls below the share of the text that is wanted.
bool InSample(uint64_t seed, int64_t line, double share) {
  const uint64_t hash = MixBits(MixBits(seed) ^ static_cast<uint64_t>(line));
  return static_cast<double>(hash >> 11) < share * 0x1p53;
}

struct Sample {
  std::vector<std::string> sentences;
  int64_t bytes = 0;
};

Result<Sample> ReadSample(const TrainTokenizerOptions& options, double share) {
  Sample sample;
  DocumentReaderOptions reader_options;
  reader_options.format = InputFormat::kText;
  ASSIGN_OR_RETURN(DocumentReader reader, DocumentReader::Open(options.input, reader_options));
  DocumentPart part;
  int64_t line_number = 0;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader.Next(part));
    if (!more) return sample;
    for (std::string_view rest = part.text; !rest.empty();) {
      const size_t end = std::min(rest.find('\n'), rest.size());
      const size_t cut = CutText(rest.substr(0, end), kMaxSentenceBytes);
      const std::string_view sentence = rest.substr(0, cut);
      rest.remove_prefix(cut == end && end < rest.size() ? end + 1 : cut);
      if (StrTrim(sentence).empty() || !InSample(options.seed, line_number++, share)) continue;
      sample.bytes += static_cast<int64_t>(sentence.size());
      sample.sentences.emplace_back(sentence);
    }
  }
}

}  // namespace

Result<Json> TrainTokenizer(const TrainTokenizerOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(options.input));
  const bool sampled = size > options.max_train_bytes;
  const double share =
      sampled ? static_cast<double>(options.max_train_bytes) / static_cast<double>(size) : 1.0;
  ASSIGN_OR_RETURN(const Sample sample, ReadSample(options, share));
  if (sample.sentences.empty()) {
    return InvalidArgumentError("no text in " + options.input + " to train a tokenizer on");
  }
  ASSIGN_OR_RETURN(const std::string model,
                   TrainSentencePiece(sample.sentences, options.vocab_size, options.model_type));
  RETURN_IF_ERROR(AtomicWriteFile(options.out, model));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options.out));
  return Json::Object({{"model", options.out},
                       {"vocab_size", tokenizer->vocab_size()},
                       {"requested_vocab_size", options.vocab_size},
                       {"sentences", static_cast<int64_t>(sample.sentences.size())},
                       {"bytes", sample.bytes},
                       {"sampled", sampled},
                       {"sha256", Sha256Hex(model)}});
}

}  // namespace nibble
