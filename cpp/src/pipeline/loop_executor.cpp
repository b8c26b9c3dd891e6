#include "pipeline/loop_executor.h"

#include <string>

#include "intaglio/error.h"

namespace intaglio {

void check_observed(const Bundle& bundle, Role::Kind output, int block) {
  if (!bundle.observed()) {
    throw UsageError(bundle.name + " is not observed and has no " +
                     (output == Role::gate ? "gate" : "hidden_states") +
                     " to read: export it again with --observe");
  }
  if (block < 0 || block >= bundle.blocks) {
    throw UsageError("the transformer has no block " + std::to_string(block) +
                     ": its blocks are 0 to " + std::to_string(bundle.blocks - 1));
  }
}

}  // namespace intaglio
