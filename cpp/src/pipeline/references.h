// Reference images: which a run may take, how large they are, and where their tokens stand.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"

namespace intaglio {

struct Request;  // request.h

// Returns width and height in pixels of what the transformer sees of a reference of that size.
std::pair<int, int> reference_size(const Bundle& bundle, int width, int height);

// Sets the references of options with defaults, scaled and cut as diffusers' pipelines do, or adds
// what is wrong with them.
void set_references(Request& request, const Bundle& bundle, const GenerateOptions& options,
                    std::vector<Problem>& problems);

using Grid = std::pair<std::int64_t, std::int64_t>;  // rows and columns of tokens
// Returns the positions of the tokens of all references, [tokens, 3] float32.
Tensor reference_positions(const Bundle& bundle, const std::vector<Grid>& grids);

}  // namespace intaglio
