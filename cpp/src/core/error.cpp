#include "intaglio/error.h"

namespace intaglio {

void throw_problem(const Problem& problem) {
  if (problem.code == ExitCode::bad_input) throw InputError(problem.message);
  throw UsageError(problem.message);
}

}  // namespace intaglio
