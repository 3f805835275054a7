"""The classes of advertorch 0.2: ``from robustfast.attacks.compat.advertorch import LinfPGDAttack``.

Each is built with ``predict`` first and called by ``.perturb(x, y=None)`` or directly; y None takes the model's own
predictions. The loss is the sum of cross entropies, or `loss_fn(outputs, y)`. eps and eps_iter of the PGD family may be
tensors [B]. On purpose different: images outside [clip_min, clip_max] are an error, weights get no gradients, batch
norms in train mode keep their running statistics, a zero gradient makes no nan, and draws are keyed by one number from
torch's generator per call.
"""

from __future__ import annotations

from typing import NoReturn

from robustfast.attacks.compat.advertorch.base import Attack
from robustfast.attacks.compat.advertorch.momentum import (
    L2MomentumIterativeAttack,
    LinfMomentumIterativeAttack,
    MomentumIterativeAttack,
)
from robustfast.attacks.compat.advertorch.nearest import (
    CarliniWagnerL2Attack,
    DDNL2Attack,
    DeepfoolLinfAttack,
)
from robustfast.attacks.compat.advertorch.one_step import FGM, FGSM, GradientAttack, GradientSignAttack
from robustfast.attacks.compat.advertorch.pgd import (
    L1PGDAttack,
    L2BasicIterativeAttack,
    L2PGDAttack,
    LinfBasicIterativeAttack,
    LinfPGDAttack,
    PGDAttack,
    SparseL1DescentAttack,
)
from robustfast.attacks.compat.advertorch.spsa import LinfSPSAAttack
from robustfast.attacks.compat.model import unsupported

__all__ = [
    "FGM",
    "FGSM",
    "Attack",
    "CarliniWagnerL2Attack",
    "DDNL2Attack",
    "DeepfoolLinfAttack",
    "GradientAttack",
    "GradientSignAttack",
    "L1PGDAttack",
    "L2BasicIterativeAttack",
    "L2MomentumIterativeAttack",
    "L2PGDAttack",
    "LinfBasicIterativeAttack",
    "LinfMomentumIterativeAttack",
    "LinfPGDAttack",
    "LinfSPSAAttack",
    "MomentumIterativeAttack",
    "PGDAttack",
    "SparseL1DescentAttack",
]


def __getattr__(name: str) -> NoReturn:
    raise unsupported("advertorch", name)
