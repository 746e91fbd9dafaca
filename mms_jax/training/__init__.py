"""Training of adapters and whole models with CTC: data, step, loop, checkpoints, the files that come out."""
