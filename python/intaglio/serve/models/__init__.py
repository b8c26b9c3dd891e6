"""The models that are served, and their cached prompt embeddings."""
