// SPDX-License-Identifier: Apache-2.0
#include "worker/data/split_writer.h"

namespace nibble {

Status SplitWriter::Frame(int32_t id) {
  if (id == kNoToken) return OkStatus();
  return shards_.Append(std::span<const int32_t>(&id, 1));
}

Status SplitWriter::Append(std::span<const int32_t> ids, bool continues) {
  if (!open_ || !continues) {
    // bos text eos; with one token for both it stands before the text only, as in llm.c.
    if (open_ && tokenizer_.eos_id() != tokenizer_.bos_id()) {
      RETURN_IF_ERROR(Frame(tokenizer_.eos_id()));
    }
    RETURN_IF_ERROR(Frame(tokenizer_.bos_id()));
    open_ = true;
    ++documents_;
  }
  return shards_.Append(ids);
}

Result<Json> SplitWriter::Finish() {
  if (open_ && tokenizer_.eos_id() != tokenizer_.bos_id()) {
    RETURN_IF_ERROR(Frame(tokenizer_.eos_id()));
  }
  ASSIGN_OR_RETURN(const std::vector<ShardFile> files, shards_.Finish());
  Json list = Json::Array();
  for (const ShardFile& file : files) {
    list.Append(Json::Object({{"name", file.name},
                              {"tokens", file.tokens},
                              {"bytes", file.size_bytes},
                              {"sha256", file.sha256}}));
  }
  return Json::Object({{"tokens", shards_.tokens_written()},
                       {"documents", documents_},
                       {"files", std::move(list)}});
}

}  // namespace nibble
