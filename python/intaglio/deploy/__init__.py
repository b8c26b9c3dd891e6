"""Deploy a bundle to another machine, or to Triton Inference Server."""
