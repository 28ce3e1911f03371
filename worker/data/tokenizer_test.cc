// SPDX-License-Identifier: Apache-2.0
#include "worker/data/tokenizer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "worker/data/gpt2_pretokenizer.h"
#include "worker/data/test_data.h"
#include "worker/data/unicode.h"

namespace nibble {
namespace {

std::vector<int32_t> IdsOf(const Json& array) {
  std::vector<int32_t> ids;
  for (const Json& id : array.items()) ids.push_back(static_cast<int32_t>(id.AsInt()));
  return ids;
}

// Every row of a cases.jsonl: text -> ids, and ids -> text. Returns the number of rows.
int CheckCases(const Tokenizer& tokenizer, const std::string& cases_path, bool with_bos) {
  const std::string content = ReadFile(cases_path).value();
  int rows = 0;
  for (const std::string& line : StrSplit(content, '\n')) {
    if (line.empty()) continue;
    const auto row = Json::Parse(line);
    EXPECT_TRUE(row.ok()) << line;
    const std::string& text = (*row)["text"].AsString();
    auto ids = tokenizer.Encode(text);
    EXPECT_TRUE(ids.ok());
    if (with_bos) ids->insert(ids->begin(), tokenizer.bos_id());
    EXPECT_EQ(*ids, IdsOf((*row)["ids"])) << line;
    EXPECT_EQ(tokenizer.Decode(*ids).value(), text);
    ++rows;
  }
  return rows;
}

TEST(Unicode, Utf8IsDecodedStrictly) {
  EXPECT_EQ(DecodeUtf8("\xF0\x9F\x99\x82", 0).code_point, U'\U0001F642');
  for (const char* bad : {"\x80", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xF5\x80\x80\x80", "\xE2\x82", "\xC3"}) {
    EXPECT_FALSE(DecodeUtf8(bad, 0).valid);
    EXPECT_EQ(FindInvalidUtf8(std::string("ab") + bad), 2u);
  }
  EXPECT_EQ(FindInvalidUtf8("naïve — 日本"), std::nullopt);
  EXPECT_EQ(ReplaceInvalidUtf8("a\xFF\xC3"), "a\xEF\xBF\xBD\xEF\xBF\xBD");
  std::string all;
  for (const char32_t c : {U'A', U'é', U'日', U'\U0001F642'}) AppendUtf8(c, all);
  EXPECT_EQ(all, "Aé日🙂");
}

TEST(Unicode, ClassesFollowTheGeneralCategories) {
  for (const char32_t c : {U'a', U'Z', U'é', U'Ж', U'日', U'ª', U'\U00010400'}) {
    EXPECT_TRUE(IsUnicodeLetter(c) && !IsUnicodeNumber(c) && !IsUnicodeSpace(c));
  }
  for (const char32_t c : {U'0', U'9', U'²', U'Ⅷ', U'٣', U'½'}) {
    EXPECT_TRUE(IsUnicodeNumber(c) && !IsUnicodeLetter(c) && !IsUnicodeSpace(c));
  }
  for (const char32_t c : {U' ', U'\t', U'\u00A0', U'\u2003', U'\u3000'}) {
    EXPECT_TRUE(IsUnicodeSpace(c) && !IsUnicodeLetter(c));
  }
  for (const char32_t c : {U'_', U'\u0301', U'🙂', U'\0', U'\u200B', U'\U0010FFFF'}) {
    EXPECT_FALSE(IsUnicodeLetter(c) || IsUnicodeNumber(c) || IsUnicodeSpace(c));
  }
}

TEST(Gpt2Pretokenizer, CutsAsThePatternDoes) {
  const auto words = [](std::string_view text) {
    std::vector<std::string> all;
    for (size_t pos = 0; pos < text.size();) {
      const size_t length = Gpt2WordLength(text, pos);
      all.emplace_back(text.substr(pos, length));
      pos += length;
    }
    return StrJoin(all, "|");
  };
  EXPECT_EQ(words("I'm  here"), "I|'m| | here");
  EXPECT_EQ(words("a\n\nb"), "a|\n|\n|b");
  EXPECT_EQ(words("a \n b"), "a| \n| b");
  EXPECT_EQ(words("end  "), "end|  ");
  EXPECT_EQ(words("x's 's !'s"), "x|'s| '|s| !'|s");
  EXPECT_EQ(words("12ab _é"), "12|ab| _|é");
  EXPECT_EQ(words("a\xC2\xA0 b"), "a|\xC2\xA0| b");
  EXPECT_EQ(words("a\xFF\xFE!b"), "a|\xFF\xFE!|b");
  EXPECT_EQ(words("'S 'Re"), "'|S| '|Re");
}

class TokenizerFilesTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-tokenizer").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Put(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(folder_, name);
    EXPECT_TRUE(AtomicWriteFile(path, content).ok());
    return path;
  }
  std::string folder_;
};

// A llama2.c vocabulary: the 259 fixed pieces, then `pieces` with falling scores.
std::string Llama2cVocabulary(const std::vector<std::string>& pieces) {
  std::string out;
  const auto put = [&](const std::string& bytes, float score) {
    const auto length = static_cast<int32_t>(bytes.size());
    out.append(reinterpret_cast<const char*>(&score), 4);
    out.append(reinterpret_cast<const char*>(&length), 4);
    out += bytes;
  };
  const int32_t longest = 40;
  out.append(reinterpret_cast<const char*>(&longest), 4);
  for (const char* special : {"<unk>", "\n<s>\n", "\n</s>\n"}) put(special, 0);
  for (int byte = 0; byte < 256; ++byte) put(StrFormat("<0x%02X>", byte), 0);
  float score = 0;
  for (const std::string& piece : pieces) put(piece, score -= 1);
  return out;
}

TEST_F(TokenizerFilesTest, Llama2cMergesByBestScoreAndFallsBackToBytes) {
  // Ids: 259 " ", 260 "a", 261 "b", 262 "ab", 263 " a", 264 " ab", 265 "ba".
  const std::string path = Put("v", Llama2cVocabulary({" ", "a", "b", "ab", " a", " ab", "ba"}));
  const auto tokenizer = LoadTokenizer(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.name(), "llama2.c");
  EXPECT_EQ(t.vocab_size(), 266);
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(*t.Encode(""), Ids{});
  EXPECT_EQ(*t.Encode("ab"), (Ids{264}));        // "ab" scores best, then " ab"
  EXPECT_EQ(*t.Encode("aba"), (Ids{264, 260}));  // leftmost "ab" before "ba"
  EXPECT_EQ(*t.EncodeContinuation("aba"), (Ids{262, 260}));
  EXPECT_EQ(*t.Encode("a\n"), (Ids{263, 3 + 10}));
  EXPECT_EQ(*t.Encode("é"), (Ids{259, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(*t.Encode("\xFF"), (Ids{259, 3 + 0xFF}));
  EXPECT_EQ(*t.Decode(Ids{1, 264, 259, 3 + 0xC3, 3 + 0xA9, 2}), "ab é");
  EXPECT_EQ(*t.Decode(Ids{}), "");
  EXPECT_EQ(t.Decode(Ids{266}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(t.Decode(Ids{-1}).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TokenizerFilesTest, LongRunsMergeInReasonableTime) {
  const auto t = LoadTokenizer(Put("v", Llama2cVocabulary({" ", "a", "aa", "aaaa"})));
  ASSERT_TRUE(t.ok());
  const auto ids = (*t)->Encode(std::string(400000, 'a'));
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->size(), 1u + 100000u);
}

TEST_F(TokenizerFilesTest, TextOverTheLimitIsRefusedInOnePieceOnly) {
  const auto t = LoadTokenizer(Put("v", Llama2cVocabulary({" ", "a"})));
  const std::string text(static_cast<size_t>(kMaxEncodeBytes) + 1, 'a');
  EXPECT_EQ((*t)->Encode(text).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TokenizerFilesTest, OtherContentIsRefusedWithTheAcceptedForms) {
  for (const std::string& content :
       {std::string(), std::string("hello\n"), std::string(1000, '\0')}) {
    const Status status = LoadTokenizer(Put("x", content)).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("accepted: a SentencePiece model"), std::string::npos)
        << status.message();
  }
  EXPECT_EQ(LoadTokenizer(JoinPath(folder_, "none")).status().code(), StatusCode::kNotFound);
  const std::string empty = JoinPath(folder_, "empty");
  ASSERT_TRUE(MakeDirectories(empty).ok());
  EXPECT_EQ(LoadTokenizer(empty).status().code(), StatusCode::kNotFound);
  // Cut inside a piece: no longer the layout from first to last.
  std::string vocabulary = Llama2cVocabulary({" ", "abc"});
  vocabulary.pop_back();
  EXPECT_FALSE(LoadTokenizer(Put("cut", vocabulary)).ok());
  // Fewer than the fixed pieces.
  EXPECT_NE(LoadTokenizer(Put("few", Llama2cVocabulary({}).substr(0, 4 + 13)))
                .status()
                .message()
                .find("at least 259"),
            std::string::npos);
}

TEST_F(TokenizerFilesTest, Gpt2PairLoadsUnderBothNamesAndFromEitherFile) {
  Json vocabulary = Json::Object();
  int next = 0;
  for (int byte = 0, extra = 0x100; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    std::string piece;
    AppendUtf8(static_cast<char32_t>(printable ? byte : extra++), piece);
    vocabulary.Set(piece, next++);
  }
  vocabulary.Set("ab", 256);
  vocabulary.Set(
      "\xC4\xA0"
      "ab",
      257);  // U+0120 stands for the space
  vocabulary.Set("<|endoftext|>", 258);
  const std::string merges = "#version: 0.2\na b\n\xC4\xA0 ab\n";
  const std::string json_path = Put("encoder.json", vocabulary.Dump());
  const std::string merges_path = Put("vocab.bpe", merges);
  using Ids = std::vector<int32_t>;
  for (const std::string& path : {json_path, merges_path, folder_}) {
    const auto t = LoadTokenizer(path);
    ASSERT_TRUE(t.ok()) << t.status().ToString();
    EXPECT_EQ(*(*t)->Encode("ab ab"), (Ids{256, 257}));
    EXPECT_EQ((*t)->bos_id(), 258);
    EXPECT_EQ((*t)->eos_id(), 258);
    EXPECT_EQ(*(*t)->Decode(Ids{258, 256, 257, 258}), "ab ab");
    EXPECT_EQ(TokenizerFiles(path)->size(), 2u);
    const auto files = ReadTokenizerFiles(path);
    ASSERT_EQ(files->size(), 2u);
    EXPECT_EQ(files->at(0).name, "vocab.json");
    EXPECT_EQ(files->at(0).content, vocabulary.Dump());
    EXPECT_EQ(files->at(1).name, "merges.txt");
    EXPECT_EQ(files->at(1).content, merges);
    EXPECT_EQ(*TokenizerHash(path), *TokenizerHash(folder_));
  }
  // The merges of other files: a piece is missing.
  Put("vocab.bpe", "#version: 0.2\nx y\n");
  EXPECT_NE(LoadTokenizer(folder_).status().message().find("do not belong together"),
            std::string::npos);
  ASSERT_TRUE(RemoveTree(merges_path).ok());
  EXPECT_EQ(LoadTokenizer(json_path).status().code(), StatusCode::kNotFound);
  Put("merges.txt", merges);
  EXPECT_TRUE(LoadTokenizer(json_path).ok());
  Put("encoder.json", "{\"a\": 7}");
  EXPECT_EQ(LoadTokenizer(json_path).status().code(), StatusCode::kInvalidArgument);
  Put("encoder.json", "{\"a\": ");
  EXPECT_EQ(LoadTokenizer(json_path).status().code(), StatusCode::kInvalidArgument);
}

TEST(CutText, CutsWhereNoPieceReachesAcross) {
  EXPECT_EQ(CutText("abc", 10), 3u);
  EXPECT_EQ(CutText("line one\nline two", 10), 8u);
  EXPECT_EQ(CutText("some words without end", 10), 10u);  // before " without"
  EXPECT_EQ(CutText("ééééééééé", 5), 4u);
  EXPECT_EQ(CutText(std::string(100, 'x'), 10), 10u);
  EXPECT_EQ(CutText(std::string(100, '\x80'), 10), 1u);
}

TEST(Tokenizer, Gpt2CasesMatch) {
  const std::string folder = TestDataPath("tokenizers/gpt2");
  if (folder.empty()) GTEST_SKIP() << "no tokenizers/gpt2 under NIBBLE_DATA_DIR";
  const auto t = LoadTokenizer(folder);
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  EXPECT_EQ((*t)->vocab_size(), 50257);
  EXPECT_EQ((*t)->eos_id(), 50256);
  EXPECT_GE(CheckCases(**t, JoinPath(folder, "cases.jsonl"), false), 38);
}

TEST(Tokenizer, Gpt2CountsOfTinyShakespeareMatchThePublishedOnes) {
  const std::string folder = TestDataPath("tokenizers/gpt2");
  const std::string text_path = TestDataPath("text/tinyshakespeare.txt");
  if (folder.empty() || text_path.empty()) GTEST_SKIP() << "no GPT-2 files or tinyshakespeare.txt";
  const auto t = LoadTokenizer(folder);
  const std::string text = ReadFile(text_path).value();
  const size_t cut = text.size() * 9 / 10;
  const auto first = EncodeDocument(**t, std::string_view(text).substr(0, cut));
  const auto last = EncodeDocument(**t, std::string_view(text).substr(cut));
  EXPECT_EQ(first->size(), 301966u);
  EXPECT_EQ(last->size(), 36059u);
  EXPECT_EQ(*first, *(*t)->Encode(std::string_view(text).substr(0, cut)));
}

TEST(Tokenizer, Llama2BinCasesMatch) {
  const std::string folder = TestDataPath("tokenizers/llama2");
  if (folder.empty()) GTEST_SKIP() << "no tokenizers/llama2 under NIBBLE_DATA_DIR";
  const auto t = LoadTokenizer(JoinPath(folder, "tokenizer.bin"));
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  EXPECT_EQ((*t)->name(), "llama2.c");
  EXPECT_EQ((*t)->vocab_size(), 32000);
  EXPECT_GE(CheckCases(**t, JoinPath(folder, "cases.jsonl"), true), 20);
}

TEST(Tokenizer, Tok512EncodesTheReferenceStories) {
  const std::string vocabulary = TestDataPath("oracle/tok512.bin");
  const std::string reference = TestDataPath("oracle/stories260K.reference.json");
  if (vocabulary.empty() || reference.empty()) GTEST_SKIP() << "no oracle under NIBBLE_DATA_DIR";
  const auto t = LoadTokenizer(vocabulary);
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  EXPECT_EQ((*t)->vocab_size(), 512);
  const auto json = Json::Parse(ReadFile(reference).value());
  ASSERT_TRUE(json.ok());
  const Json& stories = (*json)["tinystories_sample"]["stories"];
  ASSERT_GT(stories.size(), 0u);
  for (const Json& story : stories.items()) {
    std::vector<int32_t> ids = (*t)->Encode(story["text"].AsString()).value();
    EXPECT_EQ(*(*t)->Decode(ids), story["text"].AsString());
    ids.insert(ids.begin(), (*t)->bos_id());
    const std::vector<int32_t> expected = IdsOf(story["ids"]);
    if (ids.size() > 257) ids.resize(257);
    EXPECT_EQ(ids, expected);
  }
}

#if NIBBLE_SENTENCEPIECE

TEST(Tokenizer, SentencePieceLlama2CasesMatch) {
  const std::string folder = TestDataPath("tokenizers/llama2");
  if (folder.empty()) GTEST_SKIP() << "no tokenizers/llama2 under NIBBLE_DATA_DIR";
  const auto t = LoadTokenizer(JoinPath(folder, "tokenizer.model"));
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  EXPECT_EQ((*t)->name(), "sentencepiece");
  EXPECT_EQ((*t)->vocab_size(), 32000);
  EXPECT_EQ((*t)->bos_id(), 1);
  EXPECT_EQ((*t)->eos_id(), 2);
  EXPECT_GE(CheckCases(**t, JoinPath(folder, "cases.jsonl"), true), 20);
  const std::vector<int32_t> outside = {32000};
  EXPECT_EQ((*t)->Decode(outside).status().code(), StatusCode::kInvalidArgument);
}

TEST(Tokenizer, DocumentInRunsEqualsOneCall) {
  const std::string model = TestDataPath("tokenizers/llama2/tokenizer.model");
  const std::string text_path = TestDataPath("text/gutenberg/carroll-alice.txt");
  if (model.empty() || text_path.empty()) GTEST_SKIP() << "no Llama 2 model or Gutenberg text";
  const std::string text = ReadFile(text_path).value();
  for (const char* name : {"tokenizer.model", "tokenizer.bin"}) {
    const auto t = LoadTokenizer(JoinPath(DirName(model), name));
    ASSERT_TRUE(t.ok());
    const auto runs = EncodeDocument(**t, text);
    ASSERT_TRUE(runs.ok());
    EXPECT_EQ(*runs, *(*t)->Encode(text)) << name;
    EXPECT_EQ(*(*t)->Decode(*runs), text) << name;
  }
}

TEST(Tokenizer, SentencePieceUnigramKeepsWordsApartAcrossCuts) {
  const std::string path = TestDataPath("tokenizers/sentencepiece-1k/test_model.model");
  if (path.empty()) GTEST_SKIP() << "no tokenizers/sentencepiece-1k under NIBBLE_DATA_DIR";
  const auto t = LoadTokenizer(path);
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  EXPECT_EQ((*t)->vocab_size(), 1000);
  std::vector<int32_t> ids = (*t)->Encode("hello").value();
  const std::vector<int32_t> more = (*t)->EncodeContinuation(" world").value();
  ids.insert(ids.end(), more.begin(), more.end());
  EXPECT_EQ(*(*t)->Decode(ids), "hello world");
}

TEST_F(TokenizerFilesTest, DamagedSentencePieceModelIsRefused) {
  EXPECT_EQ(LoadTokenizer(Put("m", "\x0A\x05\x0A\x7F garbage")).status().code(),
            StatusCode::kInvalidArgument);
  const std::string path = TestDataPath("tokenizers/sentencepiece-1k/test_model.model");
  if (path.empty()) GTEST_SKIP() << "no model to cut under NIBBLE_DATA_DIR";
  const std::string whole = ReadFile(path).value();
  const Status status = LoadTokenizer(Put("cut", whole.substr(0, whole.size() / 2))).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("damaged SentencePiece model"), std::string::npos);
}

#else

TEST_F(TokenizerFilesTest, SentencePieceModelNamesTheMissingPackage) {
  const Status status = LoadTokenizer(Put("m", "\x0A\x05\x0A\x01 model")).status();
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("libsentencepiece-dev"), std::string::npos);
}

#endif

}  // namespace
}  // namespace nibble
