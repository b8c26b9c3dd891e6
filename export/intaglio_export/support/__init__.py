"""Helpers that know nothing of models: memory, silence, patching, and the package's own files."""
