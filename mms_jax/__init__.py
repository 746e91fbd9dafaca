"""Meta's MMS speech models in JAX/Flax."""
