"""What is evaluated: one way of a run, or any model that a function of the user's returns, with its test images."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustfast.data import Dataset, Feed, ImageFiles, feed, load
from robustfast.errors import UserError
from robustfast.training.fit import data_folder
from robustfast.training.held_out import spread
from robustfast.training.run_folder import RunFolder, load_run, resolve_device

__all__ = ["Subject", "imported_model", "model_subject", "named_model", "run_subject"]

BATCH = 256
"""The largest batch that is taken unasked: that of a run on many GPUs need not fit on one of them."""

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model with the images it is evaluated on.

    Attributes:
        model: images [B, C, H, W] in [0, 1] -> logits [B, K], on the device of `source`.
        source: the images, in batches, in the split's order.
        images_in_split: how many there are of which those of `source` are spread.
        dataset: the data set's name.
        header: what it is, as plain values for a file.
        label: what tables call it.
        folder: where its numbers go unless told otherwise; None where the user has to say.
        threads: of the CPU; None leaves them.
    """

    model: Model
    source: Feed
    images_in_split: int
    dataset: str
    header: Mapping[str, Any]
    label: str
    folder: Path | None = None
    threads: int | None = None

    @property
    def images(self) -> int:
        return len(self.source.dataset)

    def positions(self, index: Tensor) -> Tensor:
        """Positions in the split of images by their numbers among those evaluated, which key an attack's draws: an
        image meets the same ones whatever others are evaluated beside it."""
        return index * self.images_in_split // self.images


def run_subject(
    path: Path,
    *,
    way: Literal["s", "r", "n"] | None = None,
    images: int | None = None,
    checkpoint: Literal["last", "best"] = "last",
    device: str = "auto",
    batch_size: int | None = None,
    data_dir: Path | None = None,
) -> Subject:
    """One way of a run on its test split.

    Args:
        path: the run folder.
        way: which way; None is the robust one where it was trained, else the one that was.
        others: as `robustfast.evaluation.aat.evaluate_run`.

    Raises:
        UserError: no run there, a damaged one, a way it did not train, or data missing.
    """
    run = load_run(path, which=checkpoint, device=device)
    config = run.config
    ways = config.ways
    chosen = way or config.main_way
    if chosen not in ways:
        raise UserError(f"--way {chosen}: {path} trained {', '.join(ways)} alone ({config.method})")
    found = load(config.dataset, "test", data_dir or data_folder(config), image_size=config.image_size)
    split = RunFolder.open(path).fitting(found)
    return Subject(
        run.model.way(chosen),
        _source(
            split,
            images,
            min(config.batch_size, BATCH) if batch_size is None else batch_size,
            device=next(run.model.parameters()).device,
            # The one that can be had wherever a run is evaluated; where another was named, whatever suits this machine.
            loader="torch" if config.loader == "torch" else "auto",
            channels_last=config.channels_last,
        ),
        len(split),
        config.dataset,
        {
            "preset": config.preset,
            "method": config.method,
            "way": chosen,
            "checkpoint": {"name": checkpoint, "epoch": run.epoch},
        },
        f"{path.name}, way {chosen.upper()}",
        path / "evaluation",
        config.threads,
    )


def model_subject(
    spec: str,
    arguments: Sequence[str] = (),
    *,
    dataset: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    images: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    data_dir: Path | None = None,
) -> Subject:
    """A user's own model on the test split of a data set.

    Args:
        spec: ``module:function``, as `imported_model`.
        arguments: of the function, ``name=value``.
        dataset: the data set's name.
        num_classes: K, where it is not the data set's number of classes.
        others: as `robustfast.evaluation.aat.evaluate_run`.

    Raises:
        UserError: no such function, one that returns no model, logits of another number of classes, or data missing.
    """
    if dataset is None:
        raise UserError(
            f"--model {spec}: name the data set it is evaluated on with --dataset, such as cifar10"
        )
    target = resolve_device(device)
    found = load(dataset, "test", data_dir or _data_folder(), image_size=image_size)
    model = imported_model(spec, arguments)
    if isinstance(model, nn.Module):
        model = model.to(target).eval()
    source = _source(found, images, BATCH if batch_size is None else batch_size, device=target)
    _check_classes(spec, model, source, found.num_classes if num_classes is None else num_classes)
    return Subject(
        model,
        source,
        len(found),
        dataset,
        {"model": spec, "model_args": list(arguments)},
        spec,
    )


def imported_model(spec: str, arguments: Sequence[str] = ()) -> Model:
    """What the function of ``module:function`` or ``file.py:function`` returns, called with ``name=value`` arguments.

    Modules are looked for in the current directory first. Values are read as JSON where they are JSON (``3``, ``0.5``,
    ``true``), else as text.

    Raises:
        UserError: a spec of another form, no such module or function, or a result that is no callable.
    """
    name, colon, attribute = spec.rpartition(":")
    if not colon or not name or not attribute:
        raise UserError(f"--model {spec}: expected module:function, such as mymodels:resnet")
    function = getattr(_module(spec, name), attribute, None)
    if not callable(function):
        raise UserError(f"--model {spec}: {name} has no function {attribute}")
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--model-args {argument}: expected name=value,name=value")
        try:
            keywords[key] = json.loads(value)
        except json.JSONDecodeError:
            keywords[key] = value
    try:
        inspect.signature(function).bind(**keywords)
    except TypeError as error:
        raise UserError(
            f"--model {spec}: cannot be called with these arguments ({error}); see --model-args"
        ) from None
    except ValueError:
        pass  # no signature to be had of a builtin
    model = function(**keywords)
    if not callable(model):
        raise UserError(
            f"--model {spec} returned {type(model).__name__}, expected a module or a function of images"
        )
    return model


def named_model(spec: str, device: torch.device) -> Model:
    """A model to make adversarial images against: a run folder (its robust way where it was trained, else the one that
    was), or ``module:function``.

    Raises:
        UserError: neither is there.
    """
    if Path(spec).is_dir():
        run = load_run(Path(spec), device=device)
        return run.model.way(run.config.main_way)
    model = imported_model(spec)
    return model.to(device).eval() if isinstance(model, nn.Module) else model


def _source(
    split: Dataset | ImageFiles,
    images: int | None,
    batch_size: int,
    *,
    device: torch.device,
    loader: str = "auto",
    channels_last: bool = False,
) -> Feed:
    if images is not None and not 1 <= images <= len(split):
        raise UserError(f"--images {images}: expected 1 to {len(split)}, the test images of {split.name}")
    return feed(
        spread(split, len(split) if images is None else images),
        batch_size,
        loader=loader,
        seed=0,
        device=device,
        channels_last=channels_last,
        shuffle=False,
        say=None,
    )


def _module(spec: str, name: str) -> Any:
    if name.endswith(".py"):
        found = importlib.util.spec_from_file_location(Path(name).stem, name)
        if found is None or found.loader is None or not Path(name).is_file():
            raise UserError(f"--model {spec}: there is no file {name}")
        module = importlib.util.module_from_spec(found)
        sys.modules.setdefault(Path(name).stem, module)
        found.loader.exec_module(module)
        return module
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own asks for: its trace says which
        raise UserError(
            f"--model {spec}: there is no module {name} here ({here}) or among those installed"
        ) from None


def _data_folder() -> Path:
    return Path(os.environ.get("ROBUSTFAST_DATA") or "data")


def _check_classes(spec: str, model: Model, source: Feed, classes: int) -> None:
    x = next(iter(source.batches(0)))[0][:1]
    with torch.no_grad():
        # A copy: what a model writes on its images must not reach the data set.
        logits = model(x.clone())
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1 or logits.shape[1] < 2:
        came = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"--model {spec} returned {came} for one image, expected logits [1, {classes}]")
    if logits.shape[1] != classes:
        raise UserError(
            f"--model {spec} returned {logits.shape[1]} logits, the data set has {classes} classes; if that is meant, "
            f"give --num-classes {logits.shape[1]}"
        )
