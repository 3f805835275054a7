"""Pseudo-inputs: the robust way learns from images of robust features only, the non-robust way from the others."""

import copy
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from robustfast.attacks import AttackConfig
from robustfast.data import Dataset, ImageFiles
from robustfast.errors import UserError
from robustfast.models import ThreeWay
from robustfast.models.stored_state import fits_the_model, load
from robustfast.objectives.inversion import invert
from robustfast.objectives.objective import Objective, Phase
from robustfast.seeds import derive
from robustfast.together import together

__all__ = ["PI"]

INVERSION_BATCH = 500  # images inverted at once; the result does not depend on it


class PI(Objective):
    """Cross entropy of h_r on a robust and of h_n on a non-robust version of each image (AAT, section 3.1,
    after Ilyas et al. 2019, arXiv:1905.02175).

    The two versions are read from a file, or made before training by inverting the representations of two
    trained models: image i of the robust set has, to an adversarially trained encoder, the features of training
    image i, and image i of the non-robust set has them to a standard one; both start from the same other image.
    Batches take rows by the images' global index; they are used as they are, also where training images are
    cropped and mirrored. Several processes invert whole batches each, and one of them writes the file.

    Passes: 6F, with `train_s` 12F.

    Raises:
        UserError: from `prepare`: no pseudo-inputs and nothing to make them from, or files that do not fit.
    """

    @dataclass(frozen=True)
    class Config:
        pseudo_inputs: Path | None = None
        """Safetensors file with robust and non_robust, float32 [N, C, H, W] in [0, 1], and labels, int64 [N],
        of the N training images. Where it does not exist yet, it is written from the two weights below."""
        robust_weights: Path | None = None
        """Checkpoint of an `at` run of the same backbone, whose robust encoder is inverted."""
        standard_weights: Path | None = None
        """Checkpoint of an `st` run of the same backbone, whose non-robust encoder is inverted."""
        steps: int = 1000
        """Steps of the inversion."""
        step_size: float = 0.1
        """l2 length of a step of the inversion, in pixel units."""
        train_s: bool = False
        """Also train the standard way, on the natural images."""

        def __post_init__(self) -> None:
            if self.steps < 1 or not 0 < self.step_size < math.inf:
                raise UserError(
                    f"--objective.steps {self.steps} and --objective.step-size {self.step_size}: expected at least 1 "
                    f"and above 0"
                )

    trains = ThreeWay
    main_ways = "srn"

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 12 if settings.train_s else 6

    @classmethod
    def preparation_passes(cls, settings: Any) -> float:
        # Both encoders are inverted, 2F a step.
        return 4 * settings.steps

    def prepare(self, dataset: Dataset | ImageFiles) -> None:
        path, world = self.config.pseudo_inputs, self.world
        # One looks for all, who then do the same.
        if world.broadcast(path is not None and path.exists()):
            tensors = _read(path)
        else:
            tensors = self._invert(dataset)
            if path is not None:
                together(world, lambda: _write(path, tensors) if world.writes else None)
        _check(tensors, dataset, path)
        device = next(self.model.parameters()).device
        self.robust, self.non_robust, self.labels = (
            tensors[name].to(device) for name in ("robust", "non_robust", "labels")
        )

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        labels = self.labels[index]
        losses = {
            "robust": F.cross_entropy(self.model.way("r")(self.robust[index]), labels),
            "non_robust": F.cross_entropy(self.model.way("n")(self.non_robust[index]), labels),
        }
        if self.config.train_s:
            losses["standard"] = F.cross_entropy(self.model.way("s")(x), y)
        yield Phase("model", sum(losses.values()), {name: loss.detach() for name, loss in losses.items()})

    def _invert(self, dataset: Dataset | ImageFiles) -> dict[str, Tensor]:
        """The pseudo-inputs, in every process, each of which makes a part of them."""
        device = next(self.model.parameters()).device
        encoders, pixels = together(self.world, lambda: (self._encoders(), dataset.decode().images))
        images = pixels.to(device, torch.float32) / dataset.scale
        draws = torch.Generator().manual_seed(derive(self.seed, "pseudo-inputs"))
        # Each image starts from the next one of a random cycle, so never from itself.
        cycle = torch.randperm(len(images), generator=draws)
        other = torch.empty_like(cycle)
        other[cycle] = cycle.roll(-1)
        batches = list(
            zip(images.split(INVERSION_BATCH), other.to(device).split(INVERSION_BATCH), strict=True)
        )
        part = self.world.part(len(batches))
        made = {}
        for name, encoder in encoders.items():
            # Zero where others have images: the sum then is all of them, to the bit.
            made[name] = torch.zeros_like(images)
            rows = made[name].split(INVERSION_BATCH)
            for number in part:
                target, start = batches[number]
                rows[number].copy_(
                    invert(
                        encoder,
                        target,
                        images[start],
                        steps=self.config.steps,
                        step_size=self.config.step_size,
                    )[0]
                )
        self.world.wait()
        return {**{name: self.world.sum(value) for name, value in made.items()}, "labels": dataset.labels}

    def _encoders(self) -> dict[str, nn.Module]:
        """What is inverted for each set of images."""
        config = self.config
        if config.robust_weights is None or config.standard_weights is None:
            raise UserError(
                f"pi: no pseudo-inputs at {config.pseudo_inputs}; name their file with --objective.pseudo-inputs, or "
                f"what to make them from with --objective.robust-weights (checkpoint of an at run) and "
                f"--objective.standard-weights (of an st run)"
            )
        return {
            "robust": _encoder(self.model, config.robust_weights, "r"),
            "non_robust": _encoder(self.model, config.standard_weights, "n"),
        }


def _encoder(model: ThreeWay, path: Path, name: str) -> nn.Module:
    """A copy of `model`'s encoder `name` with the weights of a checkpoint."""
    state = _read(path) if path.suffix == ".safetensors" else load(path)
    twin = copy.deepcopy(model)
    backbone, classes = type(model.encoder_r).__name__, model.head[2].out_features
    mend = f"give the checkpoint of a run with the same --model and --dataset ({backbone}, {classes} classes)"
    with fits_the_model(path, mend):
        twin.load_state_dict(state.get("model", state))
    return getattr(twin, f"encoder_{name}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is no readable safetensors file: {str(error).splitlines()[0]}; make it anew"
        ) from error


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    # Under its own name only once it is whole: a killed run must not leave half a file to the next one.
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({name: value.cpu() for name, value in tensors.items()}, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; choose another --objective.pseudo-inputs") from error


def _check(tensors: dict[str, Tensor], dataset: Dataset | ImageFiles, path: Path | None) -> None:
    images = (len(dataset), dataset.channels, dataset.height, dataset.width)
    expected = {
        "robust": (torch.float32, images),
        "non_robust": (torch.float32, images),
        "labels": (torch.int64, images[:1]),
    }
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            raise UserError(f"{path} has no tensor {name!r}: expected {', '.join(expected)}")
        got = tensors[name]
        if got.dtype != dtype or tuple(got.shape) != shape:
            raise UserError(
                f"{path}: {name} is {got.dtype} {tuple(got.shape)}, expected {dtype} {shape} for the "
                f"{len(dataset)} training images of {dataset.name}"
            )
    bounds = {"robust": (0, 1), "non_robust": (0, 1), "labels": (0, dataset.num_classes - 1)}
    for name, (lowest, highest) in bounds.items():
        low, high = (value.item() for value in tensors[name].aminmax())
        # Written so that nan fails too.
        if not (lowest <= low and high <= highest):
            raise UserError(f"{path}: {name} spans {low:g} to {high:g}, expected {lowest} to {highest}")
