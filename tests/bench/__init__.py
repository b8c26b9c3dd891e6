"""Speed of this runtime beside others: `python -m tests.bench`, which `make bench` runs."""
