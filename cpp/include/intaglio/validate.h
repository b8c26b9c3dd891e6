// Checks a request without running it.
#pragma once

#include <string>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"

namespace intaglio {

// Returns what is wrong with the options, in the order in which generate() checks them; the list is
// empty if generate() would start to run. Messages name options as with_field_names() does, whereas
// the error that generate() throws for the first problem names flags.
std::vector<Problem> validate(const Bundle& bundle, const GenerateOptions& options);

// Returns the notes of generate() about guidance that the options ask for and that no step uses.
// Throws the UsageError or InputError of the first problem.
std::vector<std::string> unused_guidance(const Bundle& bundle, const GenerateOptions& options);

// Returns messages of errors, or notes, with options named as in JSON and Python ("dg_window
// 0.7:0.2 holds no part of the run") instead of by their flags. Commands in backticks and text in
// quotation marks stay as they are.
std::string with_field_names(const std::string& message);
std::vector<std::string> with_field_names(std::vector<std::string> messages);

}  // namespace intaglio
