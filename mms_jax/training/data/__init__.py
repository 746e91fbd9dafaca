"""Data sets as clips and labels: found, read, checked, given vocabularies, and drawn from in a fixed order."""
