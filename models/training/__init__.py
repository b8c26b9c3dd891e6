"""Training, measuring and searching of the small shipped model (see models/fashion-sd3/README.md)."""
