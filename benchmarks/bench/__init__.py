"""Speed of this runtime beside others: `python -m benchmarks.bench`, which `make bench` runs."""
