// SPDX-License-Identifier: Apache-2.0
#include "worker/train/safetensors.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/files.h"

namespace nibble {
namespace {

std::string LengthPrefix(uint64_t length) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return bytes;
}

class SafetensorsTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-safetensors").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  Status OpenBytes(const std::string& bytes) {
    const std::string path = JoinPath(folder_, "x.safetensors");
    EXPECT_TRUE(AtomicWriteFile(path, bytes).ok());
    const auto reader = SafetensorsReader::Open(path);
    return reader.ok() ? OkStatus() : reader.status();
  }
  Status OpenHeader(const std::string& header, size_t data_bytes) {
    return OpenBytes(LengthPrefix(header.size()) + header + std::string(data_bytes, 'x'));
  }

  std::string folder_;
};

TEST_F(SafetensorsTest, WrittenFileReadsBack) {
  const std::string path = JoinPath(folder_, "a.safetensors");
  auto writer =
      SafetensorsWriter::Create(path, {{"b", "F32", {2, 3}}, {"a", "I64", {}}}, {{"format", "pt"}});
  ASSERT_TRUE(writer.ok()) << writer.status().ToString();
  const float matrix[6] = {1, 2, 3, 4, 5, 6};
  const int64_t scalar = -7;
  ASSERT_TRUE(writer->Append(matrix, 8).ok());
  ASSERT_TRUE(writer->Append(matrix + 2, 16).ok());
  ASSERT_TRUE(writer->Append(&scalar, 8).ok());
  const auto digest = writer->Finish();
  ASSERT_TRUE(digest.ok());
  EXPECT_EQ(digest->size_bytes, *FileSizeBytes(path));
  EXPECT_EQ(digest->sha256, DigestFile(path)->sha256);

  const auto reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status().ToString();
  EXPECT_EQ(reader->metadata().at("format"), "pt");
  ASSERT_EQ(reader->entries().size(), 2u);
  const SafetensorsEntry* b = reader->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->elements(), 6);
  EXPECT_EQ(*reader->Read(*b, 4, 4), std::string(reinterpret_cast<const char*>(matrix + 1), 4));
  EXPECT_EQ(reader->Find("c"), nullptr);
}

TEST_F(SafetensorsTest, WriterRefusesTooMuchTooLittleAndUnknownTypes) {
  const std::string path = JoinPath(folder_, "a");
  auto writer = SafetensorsWriter::Create(path, {{"a", "F32", {1}}}, {});
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(writer->Append("12345", 5).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(writer->Finish().status().code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(SafetensorsWriter::Create(JoinPath(folder_, "b"), {{"a", "F31", {1}}}, {}).ok());
  EXPECT_FALSE(
      SafetensorsWriter::Create(JoinPath(folder_, "c"), {{"a", "U8", {1}}, {"a", "U8", {1}}}, {})
          .ok());
}

TEST_F(SafetensorsTest, MalformedFilesAreDataLossAndSayWhy) {
  const std::string good = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  EXPECT_TRUE(OpenHeader(good, 4).ok());
  const auto expect = [](const Status& status, const std::string& words) {
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
    EXPECT_NE(status.message().find(words), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("x.safetensors"), std::string::npos) << status.message();
  };
  expect(OpenBytes("1234567"), "too few");
  expect(OpenBytes(LengthPrefix(uint64_t{1} << 40) + good), "header of 1099511627776 bytes");
  expect(OpenBytes(LengthPrefix(~uint64_t{0}) + good), "header of");
  expect(OpenBytes(LengthPrefix(good.size() + 1) + good), "header of");
  expect(OpenHeader("[1]", 0), "not a JSON object");
  expect(OpenHeader("{", 0), "not JSON");
  expect(OpenHeader(good, 3), "outside the 3 bytes");
  expect(OpenHeader(good, 5), "5 bytes of data, the header describes 4");
  expect(OpenHeader(R"({"a":{"dtype":"Q8","shape":[4],"data_offsets":[0,4]}})", 4), "dtype 'Q8'");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,4]}})", 4), "need 3");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}})", 4), "need -1");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})", 4), "no shape");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4), "outside");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0]}})", 4), "data_offsets");
  expect(OpenHeader(R"({"__metadata__":7})", 0), "__metadata__ is not");
  expect(OpenHeader(R"({"__metadata__":{"k":7}})", 0), "'k' is not a string");
  expect(OpenHeader("{\"" + std::string(5000, 'n') + R"(":{"dtype":"Q8"}})", 0), "dtype 'Q8'");
  expect(OpenHeader(R"({"a":{"dtype":"F64","shape":[4294967296,4294967296],)"
                    R"("data_offsets":[0,4]}})",
                    4),
         "need -1");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
                    5),
         "overlap");
  expect(OpenHeader(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}})",
                    6),
         "gap");
}

TEST_F(SafetensorsTest, ReadOutsideTheTensorIsRefused) {
  const std::string path = JoinPath(folder_, "a");
  auto writer = SafetensorsWriter::Create(path, {{"a", "U8", {4}}, {"b", "U8", {4}}}, {});
  ASSERT_TRUE(writer->Append("abcdefgh", 8).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok());
  const SafetensorsEntry& a = reader->entries()[0];
  EXPECT_EQ(*reader->Read(a, 1, 3), "bcd");
  EXPECT_EQ(*reader->Read(a, 4, 0), "");
  for (const auto& [offset, size] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 5}, {4, 1}, {-1, 2}, {0, -1}, {1, std::numeric_limits<int64_t>::max()}}) {
    EXPECT_EQ(reader->Read(a, offset, size).status().code(), StatusCode::kOutOfRange)
        << offset << " " << size;
  }
}

TEST_F(SafetensorsTest, ReadPastTheEndOfACutFileIsDataLoss) {
  const std::string path = JoinPath(folder_, "a");
  auto writer = SafetensorsWriter::Create(path, {{"a", "U8", {4}}}, {});
  ASSERT_TRUE(writer->Append("abcd", 4).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok());
  const std::string whole = *ReadFile(path);
  ASSERT_TRUE(AtomicWriteFile(path, whole.substr(0, whole.size() - 1)).ok());
  EXPECT_EQ(reader->Read(reader->entries()[0], 0, 4).status().code(), StatusCode::kDataLoss);
  EXPECT_FALSE(SafetensorsReader::Open(path).ok());
}

}  // namespace
}  // namespace nibble
