// SPDX-License-Identifier: Apache-2.0
//
// Any text as a line of a journal: refused, or written and read back as the same record.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "worker/spec/journal.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  const Result<JournalRecord> record = DecodeJournalLine(line);
  if (!record.ok()) return 0;
  const std::string written = EncodeJournalLine(*record);
  NIBBLE_CHECK(written.ends_with("\n") && written.find('\n') == written.size() - 1);
  const Result<JournalRecord> again =
      DecodeJournalLine(std::string_view(written).substr(0, written.size() - 1));
  NIBBLE_CHECK(again.ok());
  NIBBLE_CHECK(EncodeJournalLine(*again) == written);
  return 0;
}
