"""Adversarial training and robust-feature disentanglement at kernel speed."""

from robustfast.ops import (
    asymmetric_cross_entropy,
    augment,
    backends,
    pgd_step,
    random_start,
    three_way_head,
    use_backend,
)

__all__ = [
    "__version__",
    "asymmetric_cross_entropy",
    "augment",
    "backends",
    "pgd_step",
    "random_start",
    "three_way_head",
    "use_backend",
]

__version__ = "0.2.0"
