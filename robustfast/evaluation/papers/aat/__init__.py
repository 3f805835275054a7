"""Adversarial Asymmetric Training (AAT): its tables, and the ablation of figure 2b."""

from __future__ import annotations

from robustfast.evaluation.papers.aat.numbers import TABLES
from robustfast.evaluation.papers.aat.tables import FAMILIES, AATTable, Ablation
from robustfast.evaluation.reproducible import Reproducible

__all__ = ["ITEMS"]

ITEMS: dict[str, Reproducible] = {
    name: (Ablation if name == "aat-ablation" else AATTable)(name) for name in TABLES if name in FAMILIES
}
