"""Benchmarks: each runs the peer and this library side by side, checks that they agree, then times them in turn."""
