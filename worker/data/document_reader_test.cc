// SPDX-License-Identifier: Apache-2.0
#include "worker/data/document_reader.h"

#include <gtest/gtest.h>
#if NIBBLE_ZSTD
#include <zstd.h>
#endif

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

class DocumentReaderTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-documents").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Put(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(folder_, name);
    EXPECT_TRUE(AtomicWriteFile(path, content).ok());
    return path;
  }
  // The documents, their parts joined.
  static Result<std::vector<std::string>> Read(const std::string& path,
                                               DocumentReaderOptions options = {}) {
    ASSIGN_OR_RETURN(DocumentReader reader, DocumentReader::Open(path, options));
    std::vector<std::string> documents;
    DocumentPart part;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, reader.Next(part));
      if (!more) return documents;
      EXPECT_FALSE(part.text.empty());
      EXPECT_LE(part.text.size(), options.part_bytes);
      if (part.part == 0) documents.emplace_back();
      EXPECT_EQ(part.document, static_cast<int64_t>(documents.size()) - 1);
      documents.back() += part.text;
    }
  }
  std::string folder_;
};

using Documents = std::vector<std::string>;

TEST_F(DocumentReaderTest, TextIsDividedByTheChosenRule) {
  const std::string path =
      Put("t.txt", "\n\na\nb\n\nc\n<|endoftext|>\n \n<|endoftext|>\n\nd <|endoftext|> e\n\n\n");
  DocumentReaderOptions options;
  EXPECT_EQ(*Read(path, options), (Documents{"a\nb\n\nc", "d <|endoftext|> e"}));
  options.documents = TextDocuments::kBlankLines;
  EXPECT_EQ(*Read(path, options),
            (Documents{"a\nb", "c\n<|endoftext|>", "<|endoftext|>", "d <|endoftext|> e"}));
  options.documents = TextDocuments::kFile;
  EXPECT_EQ(*Read(path, options),
            Documents{"a\nb\n\nc\n<|endoftext|>\n \n<|endoftext|>\n\nd <|endoftext|> e"});
}

TEST_F(DocumentReaderTest, EmptyAndBlankFilesHaveNoDocuments) {
  EXPECT_EQ(*Read(Put("a", "")), Documents{});
  EXPECT_EQ(*Read(Put("b", " \n\n\t\n")), Documents{});
  EXPECT_EQ(*Read(Put("c.jsonl", "\n{\"text\": \" \"}\n")), Documents{});
}

TEST_F(DocumentReaderTest, PartsOfAnySizeJoinToTheDocument) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += StrFormat("línea %d with words\n\n", i);
  text += "end";
  const std::string path = Put("t", text);
  for (const size_t part_bytes : {4, 7, 64, 1000, 65536}) {
    DocumentReaderOptions options;
    options.part_bytes = part_bytes;
    EXPECT_EQ(*Read(path, options), Documents{text}) << part_bytes;
  }
}

TEST_F(DocumentReaderTest, CrlfAndByteOrderMarkAreRemoved) {
  EXPECT_EQ(*Read(Put("t", "\xEF\xBB\xBFone\r\ntwo\r\n")), Documents{"one\ntwo"});
}

TEST_F(DocumentReaderTest, JsonlFieldIsTakenVerbatim) {
  const std::string path =
      Put("x.jsonl", "{\"text\": \"a\\n\\nb\\n\", \"id\": 1}\n\n{\"text\": \"<|endoftext|>\"}");
  EXPECT_EQ(*Read(path), (Documents{"a\n\nb\n", "<|endoftext|>"}));
  DocumentReaderOptions options;
  options.field = "body";
  options.format = InputFormat::kJsonl;
  EXPECT_EQ(*Read(Put("y.txt", "{\"body\": \"é\"}\n"), options), Documents{"é"});
}

TEST_F(DocumentReaderTest, BrokenJsonNamesFileAndLine) {
  for (const char* bad :
       {"{\"text\": \"a\"", "not json", "[1]", "{\"other\": \"a\"}", "{\"text\": 5}"}) {
    const Status status =
        Read(Put("x.jsonl", std::string("{\"text\": \"fine\"}\n") + bad + "\n")).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("x.jsonl:2"), std::string::npos) << status.message();
  }
}

TEST_F(DocumentReaderTest, InvalidUtf8NamesLineAndOffsetUnlessLossy) {
  const std::string path = Put("t", "good\nab\xC3(\n");
  const Status status = Read(path).status();
  EXPECT_NE(status.message().find("t:2: not UTF-8: byte 0xC3 at offset 7"), std::string::npos)
      << status.message();
  DocumentReaderOptions options;
  options.lossy = true;
  EXPECT_EQ(*Read(path, options), Documents{"good\nab\xEF\xBF\xBD("});
}

TEST_F(DocumentReaderTest, MissingFileAndFolderAreRefused) {
  EXPECT_EQ(Read(JoinPath(folder_, "none")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Read(folder_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(DocumentReaderTest, OverlongLineIsRefused) {
  const std::string path =
      Put("long", std::string(static_cast<size_t>(kMaxLineBytes) + 300000, 'x'));
  EXPECT_EQ(Read(path).status().code(), StatusCode::kResourceExhausted);
}

#if NIBBLE_ZSTD

std::string Compress(std::string_view text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

TEST_F(DocumentReaderTest, ZstdRoundTripsAlsoInSeveralFrames) {
  std::string lines;
  Documents expected;
  for (int i = 0; i < 20000; ++i) {
    expected.push_back(StrFormat("document %d", i));
    lines += "{\"text\": \"" + expected.back() + "\"}\n";
  }
  EXPECT_EQ(*Read(Put("x.jsonl.zst", Compress(lines))), expected);
  const std::string frames =
      Compress(lines.substr(0, 1000)) + Compress("") + Compress(lines.substr(1000));
  EXPECT_EQ(*Read(Put("y.jsonl.zst", frames)), expected);
  EXPECT_EQ(*Read(Put("t.zst", Compress("plain text\n"))), Documents{"plain text"});
}

TEST_F(DocumentReaderTest, TruncatedOrDamagedZstdIsDataLoss) {
  std::string lines;
  for (int i = 0; i < 3000; ++i) lines += StrFormat("{\"text\": \"line %d\"}\n", i * 7919);
  const std::string whole = Compress(lines);
  for (const size_t size : {size_t{5}, whole.size() / 2, whole.size() - 1}) {
    const Status status = Read(Put("x.jsonl.zst", whole.substr(0, size))).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << size;
    EXPECT_NE(status.message().find("truncated"), std::string::npos) << status.message();
  }
  std::string damaged = whole;
  for (size_t i = 8; i < damaged.size(); i += 3) damaged[i] = static_cast<char>(damaged[i] ^ 0x5A);
  EXPECT_EQ(Read(Put("x.jsonl.zst", damaged)).status().code(), StatusCode::kDataLoss);
}

#endif

}  // namespace
}  // namespace nibble
