"""Converters between the Hugging Face layout and every other one that MMS models come in: ``python -m convert``.

Sources are untrusted: pickles are read by an interpreter of our own that knows tensors and plain containers only
(pickles.py), archives are unpacked under limits (archives.py), and neither PyTorch nor the original code is needed.
"""
