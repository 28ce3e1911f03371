// SPDX-License-Identifier: Apache-2.0
//
// The report of a study: data as JSON, two figures, a Markdown table, and its place in a document.
// Thread-safety: free functions.
#pragma once

#include <string>

#include "base/json.h"
#include "base/status.h"
#include "worker/study/study_plan.h"
#include "worker/study/study_summary.h"

namespace nibble {

struct ReportOptions {
  std::string docs_folder;  // data/study-ID.json and figures/study-ID-*.svg go below it
  std::string document;     // Markdown file whose block of the study is replaced; may be absent
  std::string machine;      // processor and cores, for the record
};

// Everything a reader needs to redo the statistics: per arm and run the state, spec hash, revision,
// speed, validation curve and a thinned training curve.
Json ReportJson(const StudyPlan& plan, const StudySummary& summary, const ResultLookup& results,
                const std::string& machine);

// The table, figures and remarks as Markdown. Arms are sorted by gap; those without a result say
// why and come last.
std::string ReportMarkdown(const StudyPlan& plan, const StudySummary& summary);

// `document` with the text between "<!-- study ID begin -->" and "<!-- study ID end -->" replaced.
// NOT_FOUND when it has no such block.
Result<std::string> ReplaceBlock(const std::string& document, const std::string& id,
                                 const std::string& text);

// Writes all of it. The document is left alone when it does not exist or has no block of the study.
Status WriteReport(const StudyPlan& plan, const ResultLookup& results,
                   const ReportOptions& options);

// "AMD EPYC 9654, 2 cores".
std::string MachineName();

}  // namespace nibble
