"""What training writes: checkpoints, the output directory and its model card, logs and the curve."""
