// SPDX-License-Identifier: Apache-2.0
#include "worker/train/host_memory.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {

int64_t HostMemoryBytes() {
  const int64_t physical =
      static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGE_SIZE);
  const std::string limit = ReadFile("/sys/fs/cgroup/memory.max").value_or("max");
  const Result<int64_t> bytes = ParseInt(StrTrim(limit));
  return bytes.ok() && *bytes > 0 ? std::min(physical, *bytes) : physical;
}

std::string HostProcessorName() {
  for (const std::string& line : StrSplit(ReadFile("/proc/cpuinfo").value_or(""), '\n')) {
    if (line.starts_with("model name")) {
      return std::string(StrTrim(std::string_view(line).substr(line.find(':') + 1)));
    }
  }
  utsname names{};
  return ::uname(&names) == 0 ? names.machine : "cpu";
}

}  // namespace nibble
