"""Text on both sides of the models: CTC vocabularies to spell what was heard, symbols of what is to be said."""
