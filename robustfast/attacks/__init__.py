"""Attacks: adversarial images from a model, built and called alike."""

from robustfast.attacks.apgd import APGD
from robustfast.attacks.apgd_t import APGDT
from robustfast.attacks.attack import Attack, AttackReport
from robustfast.attacks.autoattack import AutoAttack
from robustfast.attacks.bim import BIM
from robustfast.attacks.carlini_wagner import CarliniWagner
from robustfast.attacks.config import AttackConfig
from robustfast.attacks.ddn import DDN
from robustfast.attacks.deepfool import DeepFool
from robustfast.attacks.fab import FAB
from robustfast.attacks.fab_t import FABT
from robustfast.attacks.fgsm import FGSM
from robustfast.attacks.fgsm_rs import FGSMRS
from robustfast.attacks.folding import fold_report, folding
from robustfast.attacks.jpeg import JPEG
from robustfast.attacks.losses import LOSSES
from robustfast.attacks.margin_pgd import MarginPGD
from robustfast.attacks.mim import MIM
from robustfast.attacks.modes import eval_mode
from robustfast.attacks.noise import RandomNoise
from robustfast.attacks.pgd import PGD, pgd
from robustfast.attacks.pgd_c import PGDC
from robustfast.attacks.pgd_foolbox import PGDFoolbox
from robustfast.attacks.presets import ATTACKS, Preset
from robustfast.attacks.recolor import ReColorAdv
from robustfast.attacks.spsa import SPSA
from robustfast.attacks.square import Square
from robustfast.attacks.stadv import StAdv
from robustfast.attacks.three_way_pgd import ThreeWayPGD
from robustfast.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "APGDT",
    "ATTACKS",
    "BIM",
    "DDN",
    "FAB",
    "FABT",
    "FGSM",
    "FGSMRS",
    "JPEG",
    "LOSSES",
    "MIM",
    "PGD",
    "PGDC",
    "SPSA",
    "Attack",
    "AttackConfig",
    "AttackReport",
    "AutoAttack",
    "CarliniWagner",
    "DeepFool",
    "MarginPGD",
    "PGDFoolbox",
    "Preset",
    "RandomNoise",
    "ReColorAdv",
    "Square",
    "StAdv",
    "ThreeWayPGD",
    "Transfer",
    "eval_mode",
    "fold_report",
    "folding",
    "pgd",
]
