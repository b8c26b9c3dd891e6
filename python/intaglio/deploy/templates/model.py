"""The model of this folder's bundle; Triton looks for it here."""

from intaglio.serve.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
