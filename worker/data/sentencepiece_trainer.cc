// SPDX-License-Identifier: Apache-2.0
//
// The one file that knows SentencePiece's training header.
#include <sentencepiece_trainer.h>

#include <unordered_map>

#include "base/strings.h"
#include "worker/data/train_tokenizer.h"

namespace nibble {
namespace {

class VectorIterator : public sentencepiece::SentenceIterator {
 public:
  explicit VectorIterator(const std::vector<std::string>& sentences) : sentences_(sentences) {}
  bool done() const override { return next_ >= sentences_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sentences_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& sentences_;
  size_t next_ = 0;
};

}  // namespace

Result<std::string> TrainSentencePiece(const std::vector<std::string>& sentences,
                                       int64_t vocab_size, const std::string& model_type) {
  // The choices of LLaMA's tokenizer. One thread: sums over several would depend on their number.
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", model_type},
      {"vocab_size", std::to_string(vocab_size)},
      {"hard_vocab_limit", "false"},
      {"byte_fallback", "true"},
      {"character_coverage", "0.9995"},
      {"split_digits", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  VectorIterator iterator(sentences);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, &model);
  if (status.ok()) return model;
  return InvalidArgumentError(
      StrFormat("SentencePiece cannot train a %s vocabulary of %lld on %zu lines: %s; try another "
                "--vocab-size or more text",
                model_type.c_str(), static_cast<long long>(vocab_size), sentences.size(),
                status.ToString().c_str()));
}

}  // namespace nibble
