"""Named configurations at the papers' values, each paper's in a file of its own."""

from __future__ import annotations

from robustfast.training.config import TrainConfig
from robustfast.training.presets.aat import SYSTEM as AAT
from robustfast.training.presets.afd import SYSTEM as AFD
from robustfast.training.presets.cdvae import SYSTEM as CDVAE
from robustfast.training.presets.rfd import SYSTEM as RFD
from robustfast.training.presets.system import Method, System

__all__ = ["DEFAULT", "PRESETS", "SYSTEMS", "Method", "System"]

DEFAULT = "digits-aatpp"

SYSTEMS: dict[str, System] = {"aat": AAT, "afd": AFD, "rfd": RFD, "cdvae": CDVAE}
"""The papers' presets by the paper's name."""

PRESETS: dict[str, TrainConfig] = {
    name: config for system in SYSTEMS.values() for name, config in system.presets().items()
}
"""Configurations by name."""
