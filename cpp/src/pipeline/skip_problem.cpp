#include "pipeline/skip_problem.h"

namespace intaglio {

std::optional<Problem> skip_problem(const GenerateOptions& options) {
  if (options.skip && options.skip != "auto") {
    return Problem{"skip", "--skip " + *options.skip +
                               " is unknown: give auto, an interval with --skip-interval, or steps "
                               "with --skip-steps"};
  }
  if (options.skip) {
    return Problem{"skip",
                   "--skip auto takes the bundle's schedule: leave out --skip-interval, "
                   "--skip-window, --skip-steps and --skip-tolerance, or --skip"};
  }
  if (!options.skip_steps.empty() && (options.skip_interval || options.skip_window)) {
    return Problem{"skip_steps",
                   "--skip-steps names the steps: leave out --skip-interval and "
                   "--skip-window, or --skip-steps"};
  }
  if (!options.skip_interval && options.skip_window) {
    return Problem{"skip_window",
                   "--skip-window says where --skip-interval holds: give --skip-interval too"};
  }
  if (!options.skip_interval && options.skip_steps.empty() && options.skip_tolerance) {
    return Problem{"skip_tolerance",
                   "--skip-tolerance says how far a skipped step may be off: give "
                   "--skip-interval or --skip-steps too"};
  }
  return std::nullopt;
}

}  // namespace intaglio
