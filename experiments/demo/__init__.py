"""The bundled demo checkpoint: its words, its synthetic speech, its training and its evaluation."""
