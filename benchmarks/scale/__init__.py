"""Full-size configurations with random weights: scripts that `make scale` runs, not tests."""
