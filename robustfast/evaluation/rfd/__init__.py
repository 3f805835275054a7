"""The RFD protocol: the tables and figures of "Exploring Robust Features for Improving Adversarial Robustness", one file
each."""

from __future__ import annotations

from robustfast.evaluation.parts import Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = ()
"""In the order they are made: a later part may read the numbers of an earlier one."""
