"""The papers' evaluation protocols by name, each of them parts; a new one is its own package and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from robustfast.evaluation import afd, cdvae, rfd
from robustfast.evaluation.parts import Part

__all__ = ["PROTOCOLS"]

PROTOCOLS: dict[str, Sequence[Part]] = {
    "afd": afd.PARTS,
    "rfd": rfd.PARTS,
    "cdvae": cdvae.PARTS,
}
"""Protocol to its parts. (`aat`, `sweep` and `autoattack` are not made of parts: `robustfast.evaluate` knows them.)"""
