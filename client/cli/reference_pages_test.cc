// SPDX-License-Identifier: Apache-2.0
//
// Keeps docs/reference/job-spec.md and docs/reference/cli.md true: every key and every flag is
// there.
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <string>

#include "base/files.h"
#include "base/strings.h"
#include "client/cli/command_line.h"
#include "nibble/v1/job.pb.h"

namespace nibble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

std::string Page(const std::string& name) {
  return ReadFile(JoinPath(NIBBLE_SOURCE_DIR, "docs/reference/" + name)).value_or("");
}

// Every leaf as `path.key` in a table row.
void ExpectKeys(const Descriptor& descriptor, const std::string& prefix, const std::string& page) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const std::string path = prefix + field.json_name();
    const bool section = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_map() &&
                         field.message_type()->full_name() != "google.protobuf.Duration";
    if (section) {
      ExpectKeys(*field.message_type(), path + ".", page);
    } else {
      EXPECT_NE(page.find("| `" + path + "` |"), std::string::npos)
          << path << " has no row in docs/reference/job-spec.md";
    }
  }
}

TEST(ReferencePages, JobSpecHasARowForEveryKeyAndNoOther) {
  const std::string page = Page("job-spec.md");
  ASSERT_FALSE(page.empty());
  ExpectKeys(*v1::JobSpec::descriptor(), "", page);
  // The other way round: every key in a table exists.
  for (const std::string& line : StrSplit(page, '\n')) {
    if (!line.starts_with("| `")) continue;
    const std::string key = line.substr(3, line.find('`', 3) - 3);
    const Descriptor* descriptor = v1::JobSpec::descriptor();
    const FieldDescriptor* field = nullptr;
    for (const std::string& part : StrSplit(key, '.')) {
      field = nullptr;
      for (int i = 0; descriptor != nullptr && i < descriptor->field_count(); ++i) {
        if (descriptor->field(i)->json_name() == part) field = descriptor->field(i);
      }
      ASSERT_NE(field, nullptr) << key << " is no key of a job";
      descriptor = field->message_type();
    }
  }
}

TEST(ReferencePages, CommandLineHasEverySubcommandAliasAndFlag) {
  const std::string page = Page("cli.md");
  ASSERT_FALSE(page.empty());
  for (const cli::CommandInfo& command : cli::DescribeCommands()) {
    const size_t start = page.find("\n### nibble " + command.name + "\n");
    ASSERT_NE(start, std::string::npos) << command.name;
    const std::string section = page.substr(start, page.find("\n##", start + 5) - start);
    for (const std::string& alias : command.aliases) {
      EXPECT_NE(section.find("`" + alias + "`"), std::string::npos) << command.name << " " << alias;
    }
    for (const cli::OptionInfo& option : command.options) {
      const std::string& name = option.names.back();
      const bool everywhere = page.find("| `" + name) < page.find("\n## Subcommands");
      EXPECT_TRUE(everywhere || section.find("`" + name) != std::string::npos)
          << command.name << " " << name;
    }
    EXPECT_NE(section.find("```"), std::string::npos) << command.name << " has no example";
  }
}

}  // namespace
}  // namespace nibble
