"""Training, measuring and searching of the small shipped model; models/fashion-sd3 has its card."""
