"""Small random pipelines of the real diffusers classes, one file a family."""
