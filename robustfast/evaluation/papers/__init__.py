"""What can be reproduced, each paper in a module of its own; a new one is its module and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robustfast.evaluation.papers import aat, afd, cdvae, rfd
from robustfast.evaluation.reproducible import Reproducible

__all__ = ["ITEMS", "PAPERS", "Paper"]


@dataclass(frozen=True)
class Paper:
    """A paper's tables and figures.

    Attributes:
        title: of its method, as reports name it.
        items: by the name that `python -m robustfast.reproduce` takes.
    """

    title: str
    items: Mapping[str, Reproducible]


PAPERS: dict[str, Paper] = {
    "aat": Paper("Adversarial Asymmetric Training", aat.ITEMS),
    "afd": Paper("Adversarial Feature Desensitization", afd.ITEMS),
    "rfd": Paper("Exploring Robust Features for Improving Adversarial Robustness", rfd.ITEMS),
    "cdvae": Paper(
        "Class-Disentanglement and Applications in Adversarial Detection and Defense", cdvae.ITEMS
    ),
}
"""Papers by the name that their tables begin with."""

ITEMS: dict[str, Reproducible] = {
    name: item for paper in PAPERS.values() for name, item in paper.items.items()
}
"""Everything by name."""
