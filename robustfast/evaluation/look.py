"""Look at a trained run: example images, confusions, inversions; or say why there is nothing to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from robustfast.attacks import AttackConfig
from robustfast.data import Dataset, ImageFiles, feed, load
from robustfast.errors import UserError
from robustfast.evaluation.aat import BATCH, FILE
from robustfast.evaluation.attacks import ATTACKS, DATASET_ATTACKS, EvaluationAttack
from robustfast.evaluation.confusion import Confusions, confusions
from robustfast.evaluation.examples import Examples, make_examples, one_of_each
from robustfast.evaluation.inversions import Inversion, invert_representations
from robustfast.evaluation.predictions import predict
from robustfast.evaluation.run_record import RunRecord
from robustfast.training.fit import data_folder
from robustfast.training.held_out import spread
from robustfast.training.run_folder import Run, load_run
from robustfast.training.threads import cpu_threads

__all__ = ["Look", "LookSettings", "Missing", "attack_of", "look_at"]

Advance = Callable[[str, int, int], None]
"""What is under way ("attacking", "inverting"), how much of it is done, and of how much."""


@dataclass(frozen=True)
class LookSettings:
    """How much to look at.

    Attributes:
        images: example images, from 1.
        attacked: test images to attack for confusions and accuracies by class, spread over the split; 0: none.
        inversion_steps: steps of the representation inversion; 0: none.
        checkpoint: "last", "best", or "evaluated": the weights that the evaluation took, without one those it will take
            (the last ones, or the best where early stopping chooses them).
        device: "auto", "cpu" or "cuda".
        data_dir: folder of the data sets; None takes the run's.
    """

    images: int = 8
    attacked: int = 512
    inversion_steps: int = 0
    checkpoint: Literal["evaluated", "last", "best"] = "evaluated"
    device: str = "auto"
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, least in {"images": 1, "attacked": 0, "inversion_steps": 0}.items():
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {getattr(self, name)}: expected at least {least}")


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        checkpoint: file name of the weights.
        epoch: epochs behind them.
        attack: what the images were attacked with.
        attack_source: where this attack comes from, in words.
        classes: names of the classes, in label order.
        split: images in the test split.
        examples: a handful of images.
        confusions: of many images; None where none were asked for.
        inversions: one for each encoder; empty where none were asked for.
        inversion_steps: how many steps they took.
    """

    checkpoint: str
    epoch: int
    attack: EvaluationAttack
    attack_source: str
    classes: tuple[str, ...]
    split: int
    examples: Examples
    confusions: Confusions | None
    inversions: tuple[Inversion, ...]
    inversion_steps: int


@dataclass(frozen=True)
class Missing:
    """Nothing could be seen, and why."""

    reason: str


def look_at(
    run: RunRecord, settings: LookSettings, advance: Advance = lambda what, done, total: None
) -> Look | Missing:
    """Load a run's weights and test images and look at them.

    Args:
        run: the run.
        settings: how much to look at.
        advance: told of the progress.

    Returns:
        `Missing` where the run has no such checkpoint yet, or its data cannot be read here.

    Raises:
        UserError: a checkpoint that is damaged or of another model, a device that is not there, or images of another
            shape than the run's.
    """
    which = _evaluated(run) if settings.checkpoint == "evaluated" else settings.checkpoint
    if which not in run.checkpoints:
        return Missing(f"{run.path} has no {which} checkpoint yet")
    attack, source = attack_of(run)
    config = run.config
    try:
        split = load(
            config.dataset, "test", settings.data_dir or data_folder(config), image_size=config.image_size
        )
    except UserError as error:
        return Missing(str(error))
    split = run.folder.fitting(split)
    chosen = one_of_each(split.labels, min(settings.images, len(split)))
    try:
        few = _decoded(split.take(chosen))
    except UserError as error:
        return Missing(str(error))
    _check_fits(run, few)
    loaded = load_run(run.path, which=which, device=settings.device)
    device = next(loaded.model.parameters()).device
    threads = cpu_threads(config.threads) if device.type == "cpu" else nullcontext()
    with threads:
        source_of_few = feed(
            few, len(few), seed=config.seed, device=device, loader="resident", shuffle=False, say=None
        )
        x, y, *_ = next(source_of_few.batches(0))
        examples = make_examples(loaded.model, run.ways, x, y, chosen.to(device), attack)
        inversions: tuple[Inversion, ...] = ()
        if steps := settings.inversion_steps:
            inversions = _invert(run, loaded, x, steps, advance)
        found = _confusions(run, loaded, split, attack, settings.attacked, advance)
    return Look(
        checkpoint=loaded.checkpoint.name,
        epoch=loaded.epoch,
        attack=attack,
        attack_source=source,
        classes=split.classes,
        split=len(split),
        examples=examples,
        confusions=found,
        inversions=inversions,
        inversion_steps=steps,
    )


def attack_of(run: RunRecord) -> tuple[EvaluationAttack, str]:
    """The attack a run is shown under, and where it comes from: its evaluation, its data set's, or its training.

    Raises:
        UserError: the evaluation's attack cannot be read.
    """
    if run.document is not None:
        return _stored(run, run.document["attack"]), "that of the run's evaluation"
    if names := DATASET_ATTACKS.get(run.config.dataset):
        return ATTACKS[names[0]], f"the first that {run.config.dataset} is evaluated under"
    return EvaluationAttack("training", run.config.attack), "that of the run's training, at full strength"


def _stored(run: RunRecord, stored: Mapping[str, Any]) -> EvaluationAttack:
    try:
        fields = ("eps", "step_size", "steps", "norm", "step")
        strength = AttackConfig(
            **{name: stored[name] for name in fields}, random_start=stored["random_start"] or "none"
        )
        return EvaluationAttack(stored["name"], strength, stored["restarts"], stored["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.path / FILE} is damaged ({type(error).__name__}: {error}); delete it and run "
            f"python -m robustfast.evaluate {run.path}"
        ) from None


def _evaluated(run: RunRecord) -> Literal["last", "best"]:
    if run.document is not None:
        name = run.document.get("checkpoint", {}).get("name")
        return "best" if name == "best" else "last"
    return "best" if run.config.early_stop and "best" in run.checkpoints else "last"


def _decoded(images: Dataset | ImageFiles) -> Dataset:
    return images.decode() if isinstance(images, ImageFiles) else images


def _check_fits(run: RunRecord, images: Dataset) -> None:
    found, wanted = (images.channels, images.num_classes), (run.folder.channels, run.folder.num_classes)
    if found != wanted:
        raise UserError(
            f"{run.path} was trained on images with {wanted[0]} channels and {wanted[1]} classes, the {images.name} "
            f"found here has {found[0]} and {found[1]}; give the folder of its data with --data-dir"
        )


def _invert(
    run: RunRecord, loaded: Run, x: torch.Tensor, steps: int, advance: Advance
) -> tuple[Inversion, ...]:
    # A way that several encoders feed has no representation of its own.
    encoders = "".join(way for way in run.ways if len(loaded.model.encoders(way)) == 1)
    done = 0

    def on_steps(now: int) -> None:
        nonlocal done
        done += now
        advance("inverting", done, steps * len(encoders))

    advance("inverting", 0, steps * len(encoders))
    seed = run.config.seed
    return tuple(invert_representations(loaded.model, encoders, x, steps=steps, seed=seed, on_steps=on_steps))


def _confusions(
    run: RunRecord,
    loaded: Run,
    split: Dataset | ImageFiles,
    attack: EvaluationAttack,
    images: int,
    advance: Advance,
) -> Confusions | None:
    if not images:
        return None
    chosen = _decoded(spread(split, images))
    source = feed(
        chosen,
        min(run.config.batch_size, BATCH),
        seed=run.config.seed,
        device=next(loaded.model.parameters()).device,
        loader="resident",
        channels_last=run.config.channels_last,
        shuffle=False,
        say=None,
    )
    done = 0

    def on_batch(now: int) -> None:
        nonlocal done
        done += now
        advance("attacking", done, len(chosen))

    advance("attacking", 0, len(chosen))
    built = {attack.name: attack.build(loaded.model, run.ways)}
    found = predict(loaded.model, source.batches(0), built, ways=run.ways, on_batch=on_batch)
    return confusions(found, split.num_classes)
