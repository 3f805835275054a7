"""Training objectives: each a generator of phases over a three-way model, by name."""

from robustfast.objectives.aat import AAT, AATPP
from robustfast.objectives.at import AT
from robustfast.objectives.inversion import invert
from robustfast.objectives.objective import Objective, Phase
from robustfast.objectives.pi import PI
from robustfast.objectives.st import ST
from robustfast.objectives.trades import TRADES

__all__ = ["AAT", "AATPP", "AT", "OBJECTIVES", "PI", "ST", "TRADES", "Objective", "Phase", "invert"]

OBJECTIVES: dict[str, type[Objective]] = {
    "st": ST,
    "at": AT,
    "trades": TRADES,
    "aat": AAT,
    "aatpp": AATPP,
    "pi": PI,
}
"""Objectives by name."""
