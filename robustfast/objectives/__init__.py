"""Training objectives: each a generator of phases over a network, by name."""

from robustfast.objectives.aat import AAT, AATPP
from robustfast.objectives.afd import AFDDCGAN, AFDWGAN
from robustfast.objectives.alp import ALP
from robustfast.objectives.ape_gan import APEGAN
from robustfast.objectives.at import AT
from robustfast.objectives.cdvae import CDVAE
from robustfast.objectives.cdvae_adv import CDVAEAdv
from robustfast.objectives.cdvae_classifier import CDVAEClassifier
from robustfast.objectives.hgd import HGD
from robustfast.objectives.inversion import invert
from robustfast.objectives.mart import MART
from robustfast.objectives.match import Match
from robustfast.objectives.objective import Objective, Phase
from robustfast.objectives.pi import PI
from robustfast.objectives.rfd import RFD
from robustfast.objectives.st import ST
from robustfast.objectives.trades import TRADES

__all__ = [
    "AAT",
    "AATPP",
    "AFDDCGAN",
    "AFDWGAN",
    "ALP",
    "APEGAN",
    "AT",
    "CDVAE",
    "HGD",
    "MART",
    "OBJECTIVES",
    "PI",
    "RFD",
    "ST",
    "TRADES",
    "CDVAEAdv",
    "CDVAEClassifier",
    "Match",
    "Objective",
    "Phase",
    "invert",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "st": ST,
    "at": AT,
    "trades": TRADES,
    "aat": AAT,
    "aatpp": AATPP,
    "pi": PI,
    "mart": MART,
    "alp": ALP,
    "match": Match,
    "afd_dcgan": AFDDCGAN,
    "afd_wgan": AFDWGAN,
    "rfd": RFD,
    "cdvae": CDVAE,
    "cdvae_classifier": CDVAEClassifier,
    "cdvae_adv": CDVAEAdv,
    "hgd": HGD,
    "ape_gan": APEGAN,
}
"""Objectives by name."""
