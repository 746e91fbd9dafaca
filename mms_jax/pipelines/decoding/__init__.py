"""Beam search over what the model heard: n-gram language models, lexicons, hotwords."""
