"""The model of the bundle in this folder, under the name that Triton looks for."""

from intaglio.serve.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
