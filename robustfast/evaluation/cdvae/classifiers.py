"""Classifiers of an image's parts: those that the run itself trained, and those that other runs trained for them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from robustfast.errors import UserError
from robustfast.evaluation.parts import PartContext, Request, labelled
from robustfast.models import ClassDisentangled, OneWay
from robustfast.training.run_folder import Run, RunFolder, load_run

__all__ = [
    "SHOWN",
    "classifiers",
    "no_generator",
    "parts_of",
    "promised",
    "same_weights",
    "split_network",
]

SHOWN = {"x": "x", "r": "R(x)", "g": "G(x)"}
"""Part to what tables call it, in the order of the paper's table 3."""

# The objective whose runs are classifiers of a part by another run's G.
_METHOD = "cdvae_classifier"


def no_generator(run: Run) -> str | None:
    """Why a run cannot split images; None where it can."""
    model = run.model
    if isinstance(model, ClassDisentangled) and model.generator is not None:
        return None
    return (
        f"{run.path.name} ({run.config.method}) has no auto-encoder that splits images, as cdvae trains one"
    )


def split_network(run: Run) -> ClassDisentangled:
    """The network of a run that splits images, in eval mode.

    Raises:
        UserError: the run has no auto-encoder.
    """
    reason = no_generator(run)
    if reason is not None:
        raise UserError(f"{reason}; evaluate a run of cdvae")
    assert isinstance(run.model, ClassDisentangled)
    return run.model


def classifiers(context: PartContext) -> dict[str, OneWay]:
    """By part "x", "g", "r": what classifies it, of normalised images, in eval mode on the context's device.

    The run's own classifiers, then those of the runs of ``--source`` and ``--against``. A run gives none that is only
    attacked or compared with: ``module:function``, a network that does not go by parts, or one that trained a G of its
    own, whose parts are other ones than this run's. Of ``--against`` those are printed, but for runs of cdvae, which
    stand beside this one in figure 4.

    Raises:
        UserError: a run of another data set, or of images of another shape, normalisation or number of classes; a
            classifier that was trained on the parts of another G; or one part from two runs.
    """
    network = split_network(context.run)
    found = {part: network.classifier(part) for part in parts_of(network)}
    givers = dict.fromkeys(found, context.path)
    unused = []
    for flag, path, which in _named(context):
        # Again the run itself, or one that both flags name.
        if path.resolve() in {giver.resolve() for giver in givers.values()}:
            continue
        run = load_run(path, which=which, device=context.device)
        if not _comparable(flag, run, context):
            if flag == "--against" and run.config.method != "cdvae":
                unused.append(str(path))
            continue
        assert isinstance(run.model, ClassDisentangled)
        for part in parts_of(run.model):
            if part in found:
                raise UserError(
                    f"{flag} {path}: a classifier of {SHOWN[part]}, and so has {givers[part]}; name one run for a part"
                )
            found[part], givers[part] = run.model.classifier(part), path
    if unused:
        line = (
            f"--against {' '.join(unused)}: no classifier of a part of this run's images, and not used as one"
        )
        context.console.print(line, markup=False, soft_wrap=True)
    return found


def parts_of(network: ClassDisentangled) -> list[str]:
    """The parts that a network has classifiers of."""
    return [part for part in SHOWN if hasattr(network, f"classifier_{part}")]


def promised(request: Request) -> set[str]:
    """The parts whose classifiers the runs that a request names were trained to be, by their configuration alone."""
    paths = [path for _, path in map(labelled, request.against)]
    if request.source is not None and Path(request.source).is_dir():
        paths.append(Path(request.source))
    configs = [RunFolder.open(path).config for path in paths]
    return {config.objective.part for config in configs if config.method == _METHOD}


def _named(context: PartContext) -> list[tuple[str, Path, str]]:
    """Flag, folder and checkpoint of each run that the request names."""
    request = context.request
    runs = []
    if request.source is not None and Path(request.source).is_dir():
        # As the model behind --source is attacked: by its last checkpoint.
        runs.append(("--source", Path(request.source), "last"))
    runs += [("--against", path, request.checkpoint) for _, path in map(labelled, request.against)]
    return runs


def _comparable(flag: str, run: Run, context: PartContext) -> bool:
    """Whether a run has classifiers of this run's parts.

    Raises:
        UserError: it is one of other images.
    """
    theirs, ours = RunFolder.open(run.path), RunFolder.open(context.path)
    if run.config.dataset != context.run.config.dataset:
        raise UserError(
            f"{flag} {run.path}: trained on {run.config.dataset}, {context.path} on {context.run.config.dataset}; "
            f"name runs of one data set"
        )
    if _shape(theirs) != _shape(ours):
        raise UserError(
            f"{flag} {run.path}: trained on {_shape(theirs)}, {context.path} on {_shape(ours)}; name runs of the same "
            f"images"
        )
    network, own = run.model, split_network(context.run)
    if not isinstance(network, ClassDisentangled):
        return False
    if not all(
        torch.equal(getattr(network.normalisation, name), getattr(own.normalisation, name))
        for name in ("mean", "std")
    ):
        raise UserError(
            f"{flag} {run.path}: {run.config.network} normalises images otherwise than {context.run.config.network} of "
            f"{context.path}; name runs of one family of networks"
        )
    if network.generator is None or same_weights(network.generator, own.generator):
        return True
    if run.config.method == _METHOD:
        raise UserError(
            f"{flag} {run.path}: its classifier was trained on parts by another G than that of {context.path}; train "
            f"one with --start-from {context.path}"
        )
    return False


def _shape(folder: RunFolder) -> str:
    size = "" if folder.size is None else f" of {folder.size[1]}x{folder.size[0]}"
    return f"{folder.num_classes} classes and {folder.channels}-channel images{size}"


def same_weights(one: nn.Module, other: nn.Module | None) -> bool:
    """Whether two modules hold the same weights and buffers under the same names, to the bit."""
    mine, theirs = one.state_dict(), {} if other is None else other.state_dict()
    return mine.keys() == theirs.keys() and all(
        value.shape == theirs[key].shape and torch.equal(value, theirs[key]) for key, value in mine.items()
    )
