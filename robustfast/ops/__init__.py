"""Fused ops: one public function each, on four backends that agree with the reference."""

from robustfast.ops.backend import OPS, backends, use_backend
from robustfast.ops.pgd_step import pgd_step

__all__ = ["OPS", "backends", "pgd_step", "use_backend"]
