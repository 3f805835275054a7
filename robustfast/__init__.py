"""Adversarial training and robust-feature disentanglement at kernel speed."""

from robustfast.ops import backends, pgd_step, use_backend

__all__ = ["__version__", "backends", "pgd_step", "use_backend"]

__version__ = "0.1.0"
