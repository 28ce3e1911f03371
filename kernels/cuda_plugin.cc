// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "base/strings.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> PluginPlaces() {
  if (const char* named = std::getenv("NIBBLE_CUDA_PLUGIN"); named != nullptr && *named != '\0') {
    return {named};
  }
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const fs::path folder = program.parent_path();
  return {(folder / kCudaPluginFile).string(),
          (folder.parent_path() / "lib" / kCudaPluginFile).string()};
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  const std::vector<std::string> places = PluginPlaces();
  for (const std::string& place : places) {
    if (!fs::exists(place)) continue;
    void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      return UnavailableError("backend cuda: cannot load " + place + ": " + dlerror() +
                              "; install the CUDA 13 libraries, or use backend cpu");
    }
    const auto make = reinterpret_cast<MakeCudaBackendFn>(dlsym(library, kMakeCudaBackendSymbol));
    if (make == nullptr) {
      return UnavailableError("backend cuda: " + place + " has no " + kMakeCudaBackendSymbol +
                              "; it is not a Nibble plug-in");
    }
    std::unique_ptr<Backend> backend;
    RETURN_IF_ERROR(make(kCudaPluginVersion, options, &backend));
    return backend;
  }
  return NotFoundError(
      "backend cuda: the plug-in was not found at " + StrJoin(places, " or ") +
      "; build it with -DNIBBLE_CUDA=ON, set NIBBLE_CUDA_PLUGIN, or use backend cpu");
}

}  // namespace nibble
