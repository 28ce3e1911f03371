// SPDX-License-Identifier: Apache-2.0
//
// The one file that knows SentencePiece's inference header. Its library carries a protobuf of its
// own, so no program that links it may also link gRPC.
#include <sentencepiece_processor.h>

#include "base/strings.h"
#include "worker/data/tokenizer_formats.h"

namespace nibble {
namespace {

using sentencepiece::SentencePieceProcessor;

// A serialized normalizer_spec { add_dummy_prefix: false }. Protobuf merges a message field that
// occurs twice, so appended to a model it overrides just that field.
constexpr std::string_view kNoDummyPrefix("\x1a\x02\x18\x00", 4);

class SentencePieceTokenizer : public Tokenizer {
 public:
  Status Load(const std::string& path, std::string_view content) {
    const std::string model(content);
    RETURN_IF_ERROR(LoadInto(whole_, path, model));
    RETURN_IF_ERROR(LoadInto(continuation_, path, model + std::string(kNoDummyPrefix)));
    // A model that strips white space would glue the words on both sides of a cut together; there
    // the dummy prefix stands for the space.
    std::vector<int> ids;
    strips_space_ = !continuation_.Encode(" ", &ids).ok() || ids.empty();
    return OkStatus();
  }

  Result<std::vector<int32_t>> Encode(std::string_view text) const override {
    return EncodeWith(whole_, text);
  }

  Result<std::vector<int32_t>> EncodeContinuation(std::string_view text) const override {
    return EncodeWith(strips_space_ ? whole_ : continuation_, text);
  }

  Result<std::string> Decode(std::span<const int32_t> ids) const override {
    RETURN_IF_ERROR(CheckIds(ids, vocab_size()));
    std::string text;
    const auto status = whole_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
    if (!status.ok()) return InternalError("SentencePiece cannot decode: " + status.ToString());
    return text;
  }

  int32_t vocab_size() const override { return whole_.GetPieceSize(); }
  int32_t bos_id() const override { return whole_.bos_id(); }
  int32_t eos_id() const override { return whole_.eos_id(); }
  std::string_view name() const override { return "sentencepiece"; }

 private:
  static Status LoadInto(SentencePieceProcessor& processor, const std::string& path,
                         const std::string& model) {
    const auto status = processor.LoadFromSerializedProto(model);
    if (!status.ok() || processor.GetPieceSize() <= 0) {
      return InvalidArgumentError(path + " is a damaged SentencePiece model: " +
                                  (status.ok() ? "it has no pieces" : status.ToString()));
    }
    return OkStatus();
  }

  static Result<std::vector<int32_t>> EncodeWith(const SentencePieceProcessor& processor,
                                                 std::string_view text) {
    RETURN_IF_ERROR(CheckEncodeSize(text));
    std::vector<int> ids;
    const auto status = processor.Encode(absl::string_view(text.data(), text.size()), &ids);
    if (!status.ok()) return InternalError("SentencePiece cannot encode: " + status.ToString());
    return std::vector<int32_t>(ids.begin(), ids.end());
  }

  SentencePieceProcessor whole_;
  SentencePieceProcessor continuation_;
  bool strips_space_ = false;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(const std::string& path,
                                                              std::string_view content) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>();
  RETURN_IF_ERROR(tokenizer->Load(path, content));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace nibble
