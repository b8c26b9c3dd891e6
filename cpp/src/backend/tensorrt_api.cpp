#include "backend/tensorrt_api.h"

namespace intaglio {

// In the order of the members.
const TensorRtApi kTensorRt10{
    false,
    {3, 11},
    {5, 30, 31, 48, 50, kNoSuchMethod, kNoSuchMethod},
    {17, 21, 22, 24, 28, 37, 48, 49},
    {kNoSuchMethod, kNoSuchMethod, kNoSuchMethod, kNoSuchMethod},
};
const TensorRtApi kTensorRt11{
    true,
    {3, 10},
    {5, 26, 27, 40, 42, kNoSuchMethod, kNoSuchMethod},
    {16, 20, 21, 23, 27, 36, 47, 48},
    {kNoSuchMethod, kNoSuchMethod, kNoSuchMethod, kNoSuchMethod},
};
const TensorRtApi kTensorRtRtx{
    true, {3, 10}, {5, 26, 27, 40, 42, 47, 48}, {16, 20, 21, 23, 27, 36, 47, 48}, {3, 5, 6, 10},
};

}  // namespace intaglio
