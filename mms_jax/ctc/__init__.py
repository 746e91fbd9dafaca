"""Connectionist temporal classification (Graves et al. 2006)."""

from mms_jax.ctc.loss import ctc_loss, is_feasible

__all__ = ["ctc_loss", "is_feasible"]
