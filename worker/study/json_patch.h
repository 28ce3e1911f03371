// SPDX-License-Identifier: Apache-2.0
//
// Changing JSON by data: whole documents (RFC 7396) and single fields.
// Thread-safety: pure functions.
#pragma once

#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace nibble {

// JSON merge patch (RFC 7396): objects merge member by member, null removes, all else replaces.
Json MergePatch(const Json& target, const Json& patch);

// Sets the member that a dotted path names ("linear.Xf.round"), making the objects on the way; a
// null value removes it. INVALID_ARGUMENT when a part of the path is empty or lies below something
// that is no object.
Status SetPath(Json* target, std::string_view path, const Json& value);

}  // namespace nibble
