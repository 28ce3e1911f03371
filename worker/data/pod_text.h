// SPDX-License-Identifier: Apache-2.0
//
// PodToText: plain text out of Perl's "plain old documentation" (perlpod). Thread-safe, no state.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

// Headings, prose, list items and code of a POD file as text: paragraphs separated by blank lines,
// code indented as it was. Formatting codes (B<>, C<>, L<>, E<> ..., nested and with longer
// brackets) give their text; index entries (X<>), =for and =begin blocks, and everything outside
// POD are dropped. Input that is not UTF-8 is read as Latin-1; the result is UTF-8 without control
// characters other than tab and line end. Empty when the file has no POD.
std::string PodToText(std::string_view pod);

}  // namespace nibble
