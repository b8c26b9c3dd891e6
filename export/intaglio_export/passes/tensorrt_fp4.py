"""TensorRT's operator that quantises activations to FP4, with a scale in FP8 for each block."""

BLOCK = 16  # numbers that share a scale
DOMAIN, DYNAMIC = "trt", "TRT_FP4DynamicQuantize"
