// SPDX-License-Identifier: Apache-2.0
#include <glob.h>

#include <filesystem>
#include <set>

#include "base/files.h"
#include "base/strings.h"
#include "worker/data/token_dataset.h"

namespace nibble {
namespace {

constexpr std::string_view kFileScheme = "file://";

bool IsFolder(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

Result<std::vector<std::string>> ShardsInFolder(const std::string& folder,
                                                const std::string& split) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  const std::string prefix = split.empty() ? "" : split + "-";
  std::vector<std::string> found;
  for (const std::string& name : names) {
    if (name.starts_with(prefix) && name.ends_with(".bin")) found.push_back(JoinPath(folder, name));
  }
  if (found.empty()) {
    return NotFoundError("folder " + folder + " holds no token shard " + prefix +
                         "*.bin; make some with 'nibble tokenize'");
  }
  return found;
}

Result<std::vector<std::string>> ShardsOfPattern(const std::string& pattern) {
  glob_t matches{};
  const int outcome = ::glob(pattern.c_str(), 0, nullptr, &matches);
  std::vector<std::string> found;
  if (outcome == 0) found.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  if (outcome == GLOB_NOSPACE || outcome == GLOB_ABORTED) {
    return UnavailableError("cannot look up the pattern " + pattern);
  }
  if (found.empty()) return NotFoundError("no file matches the token shard pattern " + pattern);
  return found;
}

}  // namespace

Result<std::vector<std::string>> ResolveShards(const std::vector<std::string>& paths,
                                               const std::string& split) {
  if (paths.empty()) return InvalidArgumentError("no token shards given");
  std::vector<std::string> shards;
  for (const std::string& given : paths) {
    const std::string path =
        given.starts_with(kFileScheme) ? given.substr(kFileScheme.size()) : given;
    if (IsFolder(path)) {
      ASSIGN_OR_RETURN(const std::vector<std::string> found, ShardsInFolder(path, split));
      shards.insert(shards.end(), found.begin(), found.end());
    } else if (PathExists(path)) {
      shards.push_back(path);
    } else if (path.find_first_of("*?[") != std::string::npos) {
      ASSIGN_OR_RETURN(const std::vector<std::string> found, ShardsOfPattern(path));
      shards.insert(shards.end(), found.begin(), found.end());
    } else {
      return NotFoundError("token shard " + (path.empty() ? "''" : path) + " does not exist");
    }
  }
  std::set<std::string> seen;
  for (const std::string& shard : shards) {
    std::error_code error;
    if (!seen.insert(std::filesystem::weakly_canonical(shard, error).string()).second) {
      return InvalidArgumentError("token shard " + shard + " is named twice");
    }
  }
  return shards;
}

}  // namespace nibble
