"""Fused ops: one public function each, on four backends that agree with the reference."""

from robustfast.ops.affine_relu import affine_relu
from robustfast.ops.apgd_step import apgd_step
from robustfast.ops.apgd_track import apgd_track
from robustfast.ops.asymmetric_cross_entropy import asymmetric_cross_entropy
from robustfast.ops.augment import augment
from robustfast.ops.backend import OPS, backends, prepare, use_backend
from robustfast.ops.dlr_loss import dlr_loss
from robustfast.ops.fab_projection import fab_projection
from robustfast.ops.l1_projection import l1_projection
from robustfast.ops.margin_loss import margin_loss
from robustfast.ops.pgd_step import pgd_step
from robustfast.ops.random_start import random_start
from robustfast.ops.reparameterise import reparameterise
from robustfast.ops.three_way_head import three_way_head

__all__ = [
    "OPS",
    "affine_relu",
    "apgd_step",
    "apgd_track",
    "asymmetric_cross_entropy",
    "augment",
    "backends",
    "dlr_loss",
    "fab_projection",
    "l1_projection",
    "margin_loss",
    "pgd_step",
    "random_start",
    "reparameterise",
    "three_way_head",
    "use_backend",
]

prepare()
