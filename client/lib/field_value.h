// SPDX-License-Identifier: Apache-2.0
//
// FieldValue: text into a field of a protobuf message, with messages a person can act on.
//
// Accepts what people write: 20e9 for whole numbers, 4GiB for fields named *_bytes, 1h30m or
// D-HH:MM:SS for durations. Thread-safety: pure functions on the message given.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <string>

#include "base/status.h"

namespace nibble {

// True for fields that one scalar of text fills: numbers, booleans, strings, enums and Duration.
bool TakesText(const google::protobuf::FieldDescriptor& field);

// "a whole number", "true or false", "a duration such as 90m", ...: for "expects ...".
std::string ExpectedForm(const google::protobuf::FieldDescriptor& field);

// Sets `field` of `message`, or appends to it when it is repeated. `quoted`: the text stood in
// quotes, so it is no number. Precondition: TakesText(field). INVALID_ARGUMENT says what was
// expected and what was given.
Status SetFieldFromText(const google::protobuf::FieldDescriptor& field, const std::string& text,
                        bool quoted, google::protobuf::Message* message);

}  // namespace nibble
