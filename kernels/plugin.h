// SPDX-License-Identifier: Apache-2.0
//
// Shared objects that a program opens when somebody asks for what they bring: GPU libraries cost
// start-up time and memory, and most machines have none.
// Thread-safety: thread-safe. Ownership: an opened library stays loaded for the life of the
// process.
#pragma once

#include <string>

#include "base/status.h"

namespace nibble {

struct PluginName {
  const char* what;      // for messages: "backend cuda"
  const char* variable;  // environment variable that names the file
  const char* file;      // "libnibble_cuda.so"
  const char* symbol;    // the function it exports
  const char* needs;     // what to install when it does not load: "the CUDA 13 libraries"
  const char* instead;   // "backend cpu"
};

// The address of the plug-in's function. Looked for at the variable's path, beside the running
// program, in ../lib of it. NOT_FOUND names the places; UNAVAILABLE carries the loader's words.
Result<void*> OpenPlugin(const PluginName& name);

}  // namespace nibble
