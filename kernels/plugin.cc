// SPDX-License-Identifier: Apache-2.0
#include "kernels/plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "base/strings.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> Places(const PluginName& name) {
  if (const char* named = std::getenv(name.variable); named != nullptr && *named != '\0') {
    return {named};
  }
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const fs::path folder = program.parent_path();
  return {(folder / name.file).string(), (folder.parent_path() / "lib" / name.file).string()};
}

}  // namespace

Result<void*> OpenPlugin(const PluginName& name) {
  const std::string what = std::string(name.what) + ": ";
  const std::string instead = std::string("use ") + name.instead;
  const std::vector<std::string> places = Places(name);
  for (const std::string& place : places) {
    if (!fs::exists(place)) continue;
    void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      return UnavailableError(what + "cannot load " + place + ": " + dlerror() + "; install " +
                              name.needs + ", or " + instead);
    }
    void* symbol = dlsym(library, name.symbol);
    if (symbol != nullptr) return symbol;
    return UnavailableError(what + place + " has no " + name.symbol +
                            "; it is not the plug-in asked for");
  }
  return NotFoundError(what + "the plug-in was not found at " + StrJoin(places, " or ") +
                       "; build it with -DNIBBLE_CUDA=ON, set " + name.variable + ", or " +
                       instead);
}

}  // namespace nibble
