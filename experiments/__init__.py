"""Experiments: one file, one experiment; its docstring holds the command and the result."""
