"""Text side of the models: CTC vocabularies."""
