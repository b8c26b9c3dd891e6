"""Build the plan of test_tensorrt.cpp: y = x + x, over 1 to 8 rows of 3, for every GPU there is."""

import sys
from pathlib import Path

import tensorrt_rtx_bindings as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
x = network.add_input("x", trt.float32, (-1, 3))
y = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
y.name = "y"
network.mark_output(y)
config = builder.create_builder_config()
names = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
config.num_compute_capabilities = len(names)
for i, name in enumerate(names):
    config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
profile = builder.create_optimization_profile()
profile.set_shape("x", (1, 3), (2, 3), (8, 3))
config.add_optimization_profile(profile)
Path(sys.argv[1]).write_bytes(bytes(builder.build_serialized_network(network, config)))
