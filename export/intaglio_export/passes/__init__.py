"""Edits of ONNX graphs, one per file, each with its pre- and postconditions."""
