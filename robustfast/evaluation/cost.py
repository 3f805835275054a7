"""How long a run takes here: passes counted on paper, times the seconds of one pass measured in a moment.

F is one forward of one encoder on one image; an input-gradient pass and a weight-gradient pass cost about F each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from robustfast.data import Dataset, ImageFiles
from robustfast.evaluation.attacks import EvaluationAttack
from robustfast.models import backbone
from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup
from robustfast.training.config import TrainConfig
from robustfast.training.precision import Precision
from robustfast.training.run_folder import resolve_device

__all__ = ["evaluation_passes", "passes_left", "preparation_passes", "seconds_per_pass", "training_passes"]


def training_passes(config: TrainConfig) -> float:
    """F per training image of an epoch, as the objective counts them (AAT++ with ten attack steps: 101F)."""
    return lookup("objective", OBJECTIVES, config.method).passes(config.objective, config.attack)


def preparation_passes(config: TrainConfig) -> float:
    """F per training image before the first epoch, such as those that make pseudo-inputs."""
    return lookup("objective", OBJECTIVES, config.method).preparation_passes(config.objective)


def evaluation_passes(attacks: Sequence[EvaluationAttack], ways: str) -> float:
    """F per test image: all `ways` on natural images, then each attacked through itself and predicted."""
    encoders = {"s": 2, "r": 1, "n": 1}
    natural = min(2, sum(encoders[way] for way in ways))
    attacked = 0
    for attack in attacks:
        gradients = 2 * attack.strength.steps * attack.restarts
        attacked += sum(encoders[way] * (gradients + 1) for way in ways)
    return natural + attacked


def passes_left(
    config: TrainConfig, ways: str, evaluation: float, *, epochs: int, train: int, test: int
) -> float:
    """F that a run still takes: training, checks on held-out images, evaluation.

    Args:
        config: the run.
        ways: the ways it trains.
        evaluation: F per test image of its evaluation in the end.
        epochs: epochs that are done.
        train, test: images of an epoch, and of the evaluation.
    """
    left = config.epochs - epochs
    passes = left * train * training_passes(config)
    if epochs == 0:
        passes += train * preparation_passes(config)
    if config.validate_every:
        # The check attacks the robust and the non-robust way, or the one way there is, as training does.
        check = evaluation_passes(
            [EvaluationAttack("held out", config.attack)], ways.replace("s", "") or ways
        )
        passes += -(-left // config.validate_every) * config.validate_images * check
    return passes + test * evaluation


def seconds_per_pass(config: TrainConfig, dataset: Dataset | ImageFiles) -> float:
    """Seconds of one F on one image, from a forward and input-gradient pass of the run's backbone on its device.

    Batches double until one takes 0.3 s or has the run's size: less is noise, more is waiting.

    Args:
        config: backbone, device, precision, memory format and batch size.
        dataset: gives the shape of the images.
    """
    device = resolve_device(config.device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        net = backbone(config.model, in_channels=dataset.channels).to(device, memory_format=layout).eval()
    net.requires_grad_(False)
    precision = Precision(config.precision, device)

    def run(batch: int) -> float:
        shape = (batch, dataset.channels, dataset.height, dataset.width)
        x = torch.full(shape, 0.5, device=device, requires_grad=True)
        x = x.to(memory_format=layout)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        with precision.autocast():
            features = net(x)
        torch.autograd.grad(F.relu(features.float()).sum(), x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    batch = 1
    run(batch)
    seconds = run(batch)
    while seconds < 0.3 and batch < config.batch_size:
        batch = min(2 * batch, config.batch_size)
        seconds = run(batch)
    # The last size once more: its first run paid for memory and chosen algorithms.
    return min(seconds, run(batch)) / (2 * batch)
