"""Ratios against a peer, measured in one process on one thread: `make bench`, or `python -m tests.benchmarks NAME`."""
