// Collects what is wrong with a request.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "intaglio/error.h"

namespace intaglio {

// Runs `check` and adds what it throws as a problem with `field`. Returns whether all is well.
template <typename Check>
bool collect(std::vector<Problem>& problems, const char* field, Check&& check) {
  try {
    std::forward<Check>(check)();
    return true;
  } catch (const Error& error) {
    problems.push_back({field, error.what(), error.code()});
    return false;
  }
}

}  // namespace intaglio
