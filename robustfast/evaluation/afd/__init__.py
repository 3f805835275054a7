"""Adversarial feature desensitization (Bashivan et al. 2021): the tables and figures of the paper, each a part."""

from robustfast.evaluation.afd.black_box import BLACK_BOX
from robustfast.evaluation.afd.curves import CURVES
from robustfast.evaluation.afd.dimensions import DIMENSIONS
from robustfast.evaluation.afd.hdh import HDH
from robustfast.evaluation.afd.nominal import NOMINAL
from robustfast.evaluation.afd.sensitivity import SENSITIVITY
from robustfast.evaluation.afd.sweeps import SWEEPS
from robustfast.evaluation.afd.transfer import TRANSFER
from robustfast.evaluation.afd.tsne import TSNE
from robustfast.evaluation.parts import Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
    NOMINAL,
    BLACK_BOX,
    SWEEPS,
    CURVES,
    TRANSFER,
    HDH,
    DIMENSIONS,
    SENSITIVITY,
    TSNE,
)
"""In the order in which they are made: the cheap ones first, and what another one reads before it."""
