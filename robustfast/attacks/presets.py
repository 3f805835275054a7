"""The attacks by name, as `--attacks` and `AutoAttack(attacks=...)` spell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustfast.attacks.apgd import APGD
from robustfast.attacks.apgd_t import APGDT
from robustfast.attacks.attack import Attack
from robustfast.attacks.autoattack import AutoAttack
from robustfast.attacks.bim import BIM
from robustfast.attacks.carlini_wagner import CarliniWagner
from robustfast.attacks.ddn import DDN
from robustfast.attacks.deepfool import DeepFool
from robustfast.attacks.fab import FAB
from robustfast.attacks.fab_t import FABT
from robustfast.attacks.fgsm import FGSM
from robustfast.attacks.fgsm_rs import FGSMRS
from robustfast.attacks.jpeg import JPEG
from robustfast.attacks.margin_pgd import MarginPGD
from robustfast.attacks.mim import MIM
from robustfast.attacks.noise import RandomNoise
from robustfast.attacks.pgd import PGD
from robustfast.attacks.pgd_c import PGDC
from robustfast.attacks.pgd_foolbox import PGDFoolbox
from robustfast.attacks.recolor import ReColorAdv
from robustfast.attacks.spsa import SPSA
from robustfast.attacks.square import Square
from robustfast.attacks.stadv import StAdv
from robustfast.attacks.transfer import Transfer

__all__ = ["ATTACKS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """An attack by name: its class, and the settings that make it this one.

    Attributes:
        attack: the class.
        settings: keywords that differ from the class's defaults; a caller's own come on top.
    """

    attack: type[Attack]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: Any, **settings: Any) -> Attack:
        """Build it, with `settings` on top of the preset's own."""
        return self.attack(model, **{**self.settings, **settings})


ATTACKS: dict[str, Preset] = {
    "fgsm": Preset(FGSM),
    "fgsm-rs": Preset(FGSMRS),
    "bim": Preset(BIM),
    "pgd": Preset(PGD),
    "pgd-y": Preset(PGD, {"step": "sign", "random_start": "pixel"}),
    "pgd-c": Preset(PGDC),
    "pgd-foolbox": Preset(PGDFoolbox),
    "mim": Preset(MIM, {"relative_step": 0.1, "steps": 40}),
    "apgd-ce": Preset(APGD),
    "apgd-dlr": Preset(APGD, {"loss": "dlr"}),
    "apgd-t": Preset(APGDT),
    "fab": Preset(FAB),
    "fab-t": Preset(FABT),
    "square": Preset(Square),
    "autoattack": Preset(AutoAttack),
    "cw-l2": Preset(CarliniWagner),
    "cw-pgd": Preset(MarginPGD),
    "ddn": Preset(DDN),
    "deepfool": Preset(DeepFool),
    "stadv": Preset(StAdv),
    "jpeg": Preset(JPEG),
    "recolor": Preset(ReColorAdv),
    "spsa": Preset(SPSA),
    "noise": Preset(RandomNoise),
    "transfer": Preset(Transfer),
}
"""Attack name to what builds it; each is built from a model and keywords and called with images and labels."""
