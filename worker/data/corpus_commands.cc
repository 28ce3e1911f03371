// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "base/strings.h"
#include "worker/data/corpus.h"
#include "worker/data/data_commands.h"

namespace nibble {
namespace {

int Report(const CliArgs& args, const Result<Json>& summary) {
  if (!summary.ok()) return FailCommand(summary.status());
  Json json = *summary;
  json.Set("corpus", args.Get("--out"));
  return PrintSummary(
      args, json,
      StrFormat("%s: %lld documents, %lld bytes of text from %lld files", args.Get("--out").c_str(),
                static_cast<long long>(json["documents"].AsInt()),
                static_cast<long long>(json["bytes"].AsInt()),
                static_cast<long long>(json["files"].AsInt())));
}

int RunPerlDoc(const CliArgs& args) {
  const auto min_bytes = args.GetInt("--min-bytes", 0, std::numeric_limits<int64_t>::max());
  if (!min_bytes.ok()) return FailUsage(min_bytes.status());
  return Report(args, WritePerlDocCorpus(args.Get("--out"), args.Get("--pod-dir"), *min_bytes));
}

int RunFiles(const CliArgs& args) {
  return Report(args, WriteFilesCorpus(args.Get("--out"), args.operands(), args.Has("--lossy")));
}

}  // namespace

std::vector<DataCommand> CorpusCommands() {
  const CliFlag out{"--out", "FILE", "the corpus file to write", "", true};
  return {
      {{"corpus perl-doc",
        "Makes a text corpus from Perl's documentation (Debian package perl-doc).",
        "",
        false,
        {out,
         {"--min-bytes", "N", "fail when the text is shorter", "5000000"},
         {"--pod-dir", "DIR", "take the .pod files of this folder instead", ""}},
        "nibble-data corpus perl-doc --out corpus.txt"},
       RunPerlDoc},
      {{"corpus files",
        "Makes a text corpus from your own UTF-8 text files, one document each.",
        "TEXT...",
        true,
        {out, {"--lossy", "", "replace invalid UTF-8 by U+FFFD instead of refusing it", ""}},
        "nibble-data corpus files --out corpus.txt book.txt notes.txt"},
       RunFiles},
  };
}

}  // namespace nibble
