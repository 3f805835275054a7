"""Detectors of adversarial images that look at a network's features: each usable alone, on any torch module.

    from robustfast.evaluation.detectors import KernelDensity, LocalIntrinsicDimensionality, Mahalanobis

    detector = KernelDensity().fit(model, train_loader)     # batches (x, y, ...), clean
    detector.score(x)                                       # [N, layers], higher is cleaner
    Mahalanobis(["blocks.3", "blocks.7"], magnitude=0.001).fit(model, train_loader).score(x)
    lid = LocalIntrinsicDimensionality(k=20).fit(model, train_loader)
    lid.score(x_adv, reference=x)                           # the paper's protocol: blocks of 100 beside their originals

On parts of images, x - G(x) for one:

    KernelDensity().fit(part_model(network, "r"), train_loader)
    KernelDensity(input=part_input(network, "r")).fit(other_classifier, train_loader)

`regression` makes one score of several layers' and chooses a setting; `metrics` says how well scores detect.
"""

from robustfast.evaluation.detectors.detector import CHUNK_BYTES, Detector
from robustfast.evaluation.detectors.kernel_density import BANDWIDTHS, KernelDensity, log_densities
from robustfast.evaluation.detectors.local_intrinsic_dimensionality import (
    NEIGHBOURS,
    LocalIntrinsicDimensionality,
    lid_estimates,
)
from robustfast.evaluation.detectors.mahalanobis import MAGNITUDES, Mahalanobis
from robustfast.evaluation.detectors.metrics import aupr, auroc, detection_accuracy, tnr_at_tpr
from robustfast.evaluation.detectors.parts import part_input, part_model
from robustfast.evaluation.detectors.regression import Outcome, Samples, known_attack, unseen_attack
from robustfast.evaluation.detectors.taps import penultimate, stages, taps

__all__ = [
    "BANDWIDTHS",
    "CHUNK_BYTES",
    "MAGNITUDES",
    "NEIGHBOURS",
    "Detector",
    "KernelDensity",
    "LocalIntrinsicDimensionality",
    "Mahalanobis",
    "Outcome",
    "Samples",
    "aupr",
    "auroc",
    "detection_accuracy",
    "known_attack",
    "lid_estimates",
    "log_densities",
    "part_input",
    "part_model",
    "penultimate",
    "stages",
    "taps",
    "tnr_at_tpr",
    "unseen_attack",
]
