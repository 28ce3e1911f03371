// SPDX-License-Identifier: Apache-2.0
//
// Compiled instead of sentencepiece_tokenizer.cc and sentencepiece_trainer.cc on machines without
// the library.
#include "worker/data/tokenizer_formats.h"
#include "worker/data/train_tokenizer.h"

namespace nibble {

Result<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(const std::string& path,
                                                              std::string_view) {
  return UnimplementedError(path +
                            " is a SentencePiece model, and this build has no SentencePiece; "
                            "install libsentencepiece-dev, then configure and build again");
}

Result<std::string> TrainSentencePiece(const std::vector<std::string>&, int64_t,
                                       const std::string&) {
  return UnimplementedError(
      "this build has no SentencePiece, which trains tokenizers; install libsentencepiece-dev, "
      "then configure and build again");
}

}  // namespace nibble
