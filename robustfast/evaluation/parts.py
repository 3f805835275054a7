"""A paper's evaluation protocol as parts: each one a table or figure, made once, kept at once, resumed part by part.

The file of a protocol, ``evaluation/PROTOCOL.json`` of a run (``PROTOCOL-custom.json`` of part of the test split or of
another checkpoint than the last):

    {"protocol": "afd", "dataset": ..., "images": 10000, "checkpoint": {...}, ...,
     "parts": {NAME: {"key": what it was made with, "shows": ..., "figures": [...], "numbers": {...}}}}

Accuracies are fractions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import robustfast
from robustfast.data import Dataset, ImageFiles, feed, load
from robustfast.errors import UserError
from robustfast.evaluation.document import write
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.partial_results import fingerprint
from robustfast.evaluation.progress import AttackBar, attack_bar
from robustfast.evaluation.subject import BATCH, Subject, named_model, run_subject
from robustfast.registry import lookup
from robustfast.signals import Stopped, signal_behind
from robustfast.training.fit import data_folder
from robustfast.training.held_out import spread
from robustfast.training.run_folder import Run, RunFolder, load_run
from robustfast.training.threads import cpu_threads

__all__ = [
    "Part",
    "PartContext",
    "PartResult",
    "Request",
    "document_path",
    "evaluate_parts",
    "labelled",
    "part_numbers",
]


@dataclass(frozen=True)
class Request:
    """What a user asks of a protocol.

    Attributes:
        parts: names of the parts; none are all that need nothing which is not there.
        images: test images, spread evenly over the split; None takes all.
        checkpoint, device, batch_size, data_dir: as of `robustfast.evaluation.aat.evaluate_run`.
        source: the model whose adversarial images a black-box attack takes: a run folder or ``module:function``.
        against: other runs to stand beside this one, as ``PATH`` or ``LABEL=PATH``.
        inception_weights: file of the Inception-v3 whose features the FID compares.
        steps: of attacks at most, in parts that can do with fewer than the paper's; for trials, whose numbers then say
            nothing. None leaves them theirs.
        seed: of all draws.
    """

    parts: tuple[str, ...] = ()
    images: int | None = None
    checkpoint: Literal["last", "best"] = "last"
    device: str = "auto"
    batch_size: int | None = None
    data_dir: Path | None = None
    source: str | None = None
    against: tuple[str, ...] = ()
    inception_weights: Path | None = None
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class PartResult:
    """What a part came to: plain values for the file, tables for the screen, figures that it wrote."""

    numbers: Mapping[str, Any]
    tables: Sequence[Table] = ()
    figures: Sequence[Path] = ()


@dataclass(frozen=True)
class PartContext:
    """What a part works with.

    Attributes:
        path: the run folder.
        run: its model, in eval mode, and its configuration.
        protocol: the protocol's name.
        request: what was asked for.
        split: the whole test split.
        earlier: numbers of the parts before this one that are there, by name.
        console: for progress; the tables of the result are printed by the caller.
    """

    path: Path
    run: Run
    protocol: str
    request: Request
    split: Dataset | ImageFiles
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(quiet=True))

    @property
    def device(self) -> torch.device:
        return next(self.run.model.parameters()).device

    @property
    def folder(self) -> Path:
        """Where the protocol's files lie."""
        return self.path / "evaluation"

    @property
    def images(self) -> int:
        """How many test images are evaluated."""
        return min(self.request.images or len(self.split), len(self.split))

    @property
    def whole(self) -> bool:
        """Whether these are the numbers that a paper reports: of all test images, by the last checkpoint."""
        return self.images == len(self.split) and self.request.checkpoint == "last"

    @property
    def batch_size(self) -> int:
        return self.request.batch_size or min(self.run.config.batch_size, BATCH)

    def steps(self, own: int) -> int:
        """How many of an attack's `own` steps are taken; a part that asks names "steps" in `Part.takes`."""
        return own if self.request.steps is None else min(own, self.request.steps)

    def figure(self, name: str) -> Path:
        """The file of a figure of this part."""
        return self.path / "figures" / f"{self.protocol}-{name}.png"

    def batches(
        self, dataset: Dataset | ImageFiles | None = None, *, bar: AttackBar | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(x, y, positions in the split) of the evaluated test images, or of all of `dataset`, in their order; they are
        on the model's device, and the positions key an attack's draws."""
        chosen = spread(self.split, self.images) if dataset is None else dataset
        whole = len(self.split) if dataset is None else len(dataset)
        source = feed(
            chosen,
            self.batch_size,
            loader="torch" if self.run.config.loader == "torch" else "auto",
            seed=0,
            device=self.device,
            channels_last=self.run.config.channels_last,
            shuffle=False,
            say=None,
        )
        try:
            for x, y, index, *_ in source.batches(0):
                yield x, y, index * whole // len(chosen)
                if bar is not None:
                    bar.advance(len(y))
        finally:
            source.close()

    @contextmanager
    def progress(self, images: int) -> Iterator[AttackBar]:
        """A bar over so many images, for `batches`."""
        with attack_bar(images, self.console) as bar:
            yield bar

    @cached_property
    def training_split(self) -> Dataset | ImageFiles:
        """The whole training split, unaugmented, with what the run set aside of it to be checked on."""
        return self._load("train")

    def subject(self, way: Literal["s", "r", "n"] | None = None) -> Subject:
        """The run as `robustfast.evaluation.sweep` takes it."""
        return run_subject(
            self.path,
            way=way,
            images=self.request.images,
            checkpoint=self.request.checkpoint,
            device=str(self.device),
            batch_size=self.batch_size,
            data_dir=self.request.data_dir,
        )

    def source(self) -> Callable[[Tensor], Tensor]:
        """The model behind ``--source``."""
        if self.request.source is None:
            raise UserError("this part takes its images from another model: name a run with --source")
        return named_model(self.request.source, self.device)

    def others(self) -> dict[str, Run]:
        """The runs behind ``--against`` by label, the last part of the path where none is given."""
        return {
            label: load_run(path, which=self.request.checkpoint, device=self.device)
            for label, path in map(labelled, self.request.against)
        }

    def _load(self, split: str) -> Dataset | ImageFiles:
        config = self.run.config
        folder = self.request.data_dir or data_folder(config)
        return RunFolder.open(self.path).fitting(
            load(config.dataset, split, folder, image_size=config.image_size)
        )


@dataclass(frozen=True)
class Part:
    """One table or figure.

    Attributes:
        name: as ``--parts`` takes it, and its key in the file.
        shows: what it is, in a few words, with the paper's table or figure.
        make: computes it.
        needs: fields of `Request` that it cannot do without: "source", "against", "inception_weights".
        unfit: why a run has no such part (it trained no discriminator), None where it has.
        takes: fields that it uses where they are given, and does without where they are not.
        wants: for fields of `needs`, what is named there, where "a run" says too little.
    """

    name: str
    shows: str
    make: Callable[[PartContext], PartResult]
    needs: tuple[str, ...] = ()
    unfit: Callable[[Run], str | None] = lambda run: None
    takes: tuple[str, ...] = ()
    wants: Mapping[str, str] = field(default_factory=dict)

    def obstacle(self, run: Run, request: Request) -> str | None:
        """Why the part cannot be made; None where it can."""
        for need in self.needs:
            if not getattr(request, need):
                return f"needs --{need}: name {self.wants.get(need, 'a run')} there"
        return self.unfit(run)


def evaluate_parts(
    path: Path, protocol: str, parts: Sequence[Part], request: Request, *, console: Console | None = None
) -> dict[str, Any]:
    """Make the parts that are asked for, in their order, print their tables and keep their numbers.

    A part that is there, made of the same weights, images and settings, is kept. An interruption loses the part that is
    under way (a sweep loses a batch).

    Returns:
        The document.

    Raises:
        UserError: no run there, an unknown part, one without what it needs, or a folder that cannot be written.
        Stopped: SIGTERM or SIGINT; the same command goes on.
    """
    console = console or Console(highlight=False)
    run = load_run(path, which=request.checkpoint, device=request.device)
    chosen = _chosen(parts, run, request, console)
    context = PartContext(path, run, protocol, request, RunFolder.open(path).fitting(_test(run, request)))
    if request.images is not None and not 1 <= request.images <= len(context.split):
        raise UserError(
            f"--images {request.images}: expected 1 to {len(context.split)}, the test images of {run.config.dataset}"
        )
    file = document_path(path, protocol, whole=context.whole)
    document = _header(context) | {"parts": _stored(file)}
    weights = weights_digest(run.model)
    with cpu_threads(run.config.threads):
        for part in chosen:
            key = _key(part, context, weights)
            if document["parts"].get(part.name, {}).get("key") == key:
                console.print(f"{part.name}: kept ({part.shows})", markup=False, soft_wrap=True)
                continue
            earlier = {name: stored["numbers"] for name, stored in document["parts"].items()}
            console.print(f"{part.name}: {part.shows}", markup=False, soft_wrap=True)
            try:
                result = part.make(replace(context, earlier=earlier, console=console))
            except KeyboardInterrupt as stop:
                then = f"finished parts are in {file}: the same command goes on from there"
                # A part that keeps its own pieces has said where they are.
                raise Stopped(signal_behind(stop), str(stop) or then) from None
            document["parts"][part.name] = {
                "key": key,
                "shows": part.shows,
                "figures": [str(figure.relative_to(path)) for figure in result.figures],
                "numbers": dict(result.numbers),
            }
            write(file, document)
            for table in result.tables:
                console.print(table)
            for figure in result.figures:
                console.print(f"drawn: {figure}", markup=False, soft_wrap=True)
    console.print(f"written: {file}", markup=False, soft_wrap=True)
    return document


def document_path(path: Path, protocol: str, *, whole: bool = True) -> Path:
    """The file of a protocol in a run folder."""
    return path / "evaluation" / f"{protocol}{'' if whole else '-custom'}.json"


def part_numbers(path: Path, protocol: str, part: str, *, whole: bool = True) -> dict[str, Any] | None:
    """The numbers of a part that was made; None where it was not."""
    stored = _stored(document_path(path, protocol, whole=whole)).get(part)
    return None if stored is None else stored["numbers"]


def _chosen(parts: Sequence[Part], run: Run, request: Request, console: Console) -> list[Part]:
    """The parts to make, in the protocol's order; says of each that is left out why."""
    known = {part.name: part for part in parts}
    named = {lookup("part", known, name).name for name in request.parts}
    chosen = []
    for part in parts:
        if named and part.name not in named:
            continue
        reason = part.obstacle(run, request)
        if reason is None:
            chosen.append(part)
        elif named:
            raise UserError(f"part {part.name} ({part.shows}): {reason}")
        else:
            console.print(f"{part.name}: left out, {reason}", markup=False, soft_wrap=True)
    return chosen


def _test(run: Run, request: Request) -> Dataset | ImageFiles:
    config = run.config
    return load(config.dataset, "test", request.data_dir or data_folder(config), image_size=config.image_size)


def _header(context: PartContext) -> dict[str, Any]:
    run = context.run
    return {
        "protocol": context.protocol,
        "robustfast": robustfast.__version__,
        "preset": run.config.preset,
        "method": run.config.method,
        "checkpoint": {"name": context.request.checkpoint, "epoch": run.epoch},
        "dataset": run.config.dataset,
        "split": "test",
        "images": context.images,
        "images_in_split": len(context.split),
        "precision": "fp32",
        "device": context.device.type,
    }


def _stored(file: Path) -> dict[str, Any]:
    """The parts in a file; a damaged one holds none."""
    try:
        found = json.loads(file.read_text())
        return {name: part for name, part in found["parts"].items() if {"key", "numbers"} <= set(part)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _key(part: Part, context: PartContext, weights: str) -> str:
    """What a part is made with: when it changes, the part is made again."""
    request = context.request
    used = {}
    if request.source and "source" in part.needs + part.takes:
        used["source"] = weights_digest(context.source())
    if request.against and "against" in part.needs + part.takes:
        used["against"] = [(label, weights_digest(run.model)) for label, run in context.others().items()]
    if request.inception_weights and "inception_weights" in part.needs + part.takes:
        used["inception_weights"] = _file_digest(request.inception_weights)
    if request.steps and "steps" in part.takes:
        used["steps"] = request.steps
    return fingerprint(
        part=part.name,
        version=robustfast.__version__,
        weights=weights,
        images=context.images,
        seed=request.seed,
        device=context.device.type,
        **used,
    )


def _file_digest(file: Path) -> str:
    try:
        return hashlib.blake2b(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"--inception-weights {file}: cannot be read ({error.strerror}); name the file of weights"
        ) from error


def labelled(text: str) -> tuple[str, Path]:
    """Label and path of one entry of ``--against``."""
    label, equals, path = text.partition("=")
    return (label, Path(path)) if equals else (Path(text).name, Path(text))
