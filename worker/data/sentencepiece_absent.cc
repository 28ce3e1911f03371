// SPDX-License-Identifier: Apache-2.0
//
// Compiled instead of sentencepiece_tokenizer.cc on machines without the library.
#include "worker/data/tokenizer_formats.h"

namespace nibble {

Result<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(const std::string& path,
                                                              std::string_view) {
  return UnimplementedError(path +
                            " is a SentencePiece model, and this build has no SentencePiece; "
                            "install libsentencepiece-dev, then configure and build again");
}

}  // namespace nibble
