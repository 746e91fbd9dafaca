"""Faults that take long to provoke, each with the number of times it was; the quick ones are tests."""
