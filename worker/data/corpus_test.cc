// SPDX-License-Identifier: Apache-2.0
#include "worker/data/corpus.h"

#include <gtest/gtest.h>

#include "worker/data/pod_text.h"

namespace nibble {
namespace {

TEST(PodToText, KeepsProseAndCodeAndDropsMarkup) {
  EXPECT_EQ(PodToText("use strict;\n\n=head1 NAME\n\nfoo - B<bold> and C<code>\n\n"
                      "    my $x = 1;\n      B<kept in code>\n\n=cut\n\nsub f {}\n"),
            "NAME\n\nfoo - bold and code\n\n    my $x = 1;\n      B<kept in code>\n");
}

TEST(PodToText, ResolvesNestedAndLongBracketedCodes) {
  const auto inlined = [](const std::string& text) { return PodToText("=pod\n\n" + text + "\n"); };
  EXPECT_EQ(inlined("B<a I<b C<c>> d>"), "a b c d\n");
  EXPECT_EQ(inlined("C<< $x->{y} >> and C<<< a << b >>>"), "$x->{y} and a << b\n");
  EXPECT_EQ(inlined("1 E<lt> 2 E<gt> E<0x41>E<66>E<eacute>E<0101> E<nosuch>."), "1 < 2 > ABéA .\n");
  EXPECT_EQ(inlined("X<index entry>aZ<>b S<no break>"), "ab no break\n");
  EXPECT_EQ(inlined("L<the text|perlfunc/open> L<perlop> L<perlre/\"Sec\"> L</\"Here\">"),
            "the text perlop Sec in perlre Here\n");
  EXPECT_EQ(inlined("L<https://example.org/a/b>"), "https://example.org/a/b\n");
  EXPECT_EQ(inlined("a < b, X< never closed, ZZ<>"), "a < b, X< never closed, Z\n");
}

TEST(PodToText, ListsAndForeignBlocks) {
  EXPECT_EQ(PodToText("=over 4\n\n=item *\n\nfirst\n\n=item -s I<FILE>\n\nsecond\n\n=back\n\n"
                      "=begin html\n\n<b>no</b>\n\n=head1 no\n\n=end html\n\n=for comment\nno\n\n"
                      "last\n"),
            "first\n\n-s FILE\n\nsecond\n\nlast\n");
}

TEST(PodToText, OddInputsGiveCleanText) {
  EXPECT_EQ(PodToText(""), "");
  EXPECT_EQ(PodToText("no pod here\n"), "");
  EXPECT_EQ(PodToText("=pod\r\n\r\nwindows\r\n"), "windows\n");
  EXPECT_EQ(PodToText("=pod\n\nlatin \xE9\x01\n"), "latin é\n");
  EXPECT_EQ(PodToText("=pod\n\ntext\n=head1 close by\n"), "text\n\nclose by\n");
  std::string deep = "=pod\n\n";
  for (int i = 0; i < 100; ++i) deep += "B<";
  EXPECT_FALSE(PodToText(deep + "x" + std::string(100, '>') + "\n").empty());
}

class CorpusTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("nibble-corpus").value();
    out_ = JoinPath(folder_, "corpus.txt");
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Put(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(folder_, name);
    EXPECT_TRUE(AtomicWriteFile(path, content).ok());
    return path;
  }
  std::string folder_;
  std::string out_;
};

TEST_F(CorpusTest, FilesBecomeSeparatedDocuments) {
  const std::string a = Put("a", "\n\none\r\ntwo\n\n\n");
  const std::string b = Put("b", "\xEF\xBB\xBFthree");
  const std::string empty = Put("c", " \n");
  const auto summary = WriteFilesCorpus(out_, {a, empty, b}, false);
  ASSERT_TRUE(summary.ok()) << summary.status().ToString();
  EXPECT_EQ(*ReadFile(out_), "one\ntwo\n<|endoftext|>\nthree\n");
  EXPECT_EQ((*summary)["documents"].AsInt(), 2);
  EXPECT_EQ((*summary)["bytes"].AsInt(), FileSizeBytes(out_).value());
}

TEST_F(CorpusTest, InvalidUtf8IsNamedUnlessLossy) {
  const std::string bad = Put("bad", "ok\nabc\xFFz");
  const Status status = WriteFilesCorpus(out_, {bad}, false).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("bad is not UTF-8: byte 0xFF at offset 6"), std::string::npos)
      << status.message();
  EXPECT_FALSE(PathExists(out_));
  EXPECT_FALSE(PathExists(out_ + ".partial"));
  ASSERT_TRUE(WriteFilesCorpus(out_, {bad}, true).ok());
  EXPECT_EQ(*ReadFile(out_), "ok\nabc\xEF\xBF\xBDz\n");
}

TEST_F(CorpusTest, EmptyCorpusAndMissingFilesAreRefused) {
  EXPECT_EQ(WriteFilesCorpus(out_, {Put("e", "")}, false).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteFilesCorpus(out_, {JoinPath(folder_, "no")}, false).status().code(),
            StatusCode::kNotFound);
  EXPECT_FALSE(PathExists(out_));
}

TEST_F(CorpusTest, PerlDocFromAFolderIsSortedAndWithoutCopies) {
  Put("b.pod", "=head1 B\n\nsame\n");
  Put("a.pod", "=head1 A\n\nfirst\n");
  Put("c.pod", "=head1 B\n\nsame\n");
  const auto summary = WritePerlDocCorpus(out_, folder_, 10);
  ASSERT_TRUE(summary.ok()) << summary.status().ToString();
  EXPECT_EQ(*ReadFile(out_), "A\n\nfirst\n<|endoftext|>\nB\n\nsame\n");
  const Status few = WritePerlDocCorpus(out_, folder_, 1000).status();
  EXPECT_EQ(few.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(few.message().find("fewer than the 1000"), std::string::npos) << few.message();
}

TEST_F(CorpusTest, FolderWithoutPodIsNamed) {
  const Status status = WritePerlDocCorpus(out_, folder_, 10).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find(folder_), std::string::npos);
}

TEST_F(CorpusTest, InstalledPerlDocGivesFiveMegabytes) {
  const auto summary = WritePerlDocCorpus(out_, "", 5'000'000);
  if (!summary.ok() && summary.status().code() == StatusCode::kNotFound) {
    EXPECT_NE(summary.status().message().find("perl-doc"), std::string::npos);
    GTEST_SKIP() << "the package perl-doc is not installed";
  }
  ASSERT_TRUE(summary.ok()) << summary.status().ToString();
  EXPECT_GE((*summary)["bytes"].AsInt(), 5'000'000);
  EXPECT_GE((*summary)["documents"].AsInt(), 100);
}

}  // namespace
}  // namespace nibble
