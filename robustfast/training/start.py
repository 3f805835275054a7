"""Weights to start a run from: parts of models that other runs trained, and files of weights."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.stored_state import load
from robustfast.training.run_folder import load_run

__all__ = ["start_from"]

COUNT = "num_batches_tracked"
"""What the count of batches is called in a batch norm's state."""


def start_from(model: nn.Module, entries: tuple[str, ...], *, say: Callable[[str], Any] = print) -> None:
    """Load the weights that ``--start-from`` names into a model, in the order of the entries.

    A part is a child of the model: RUN gives each child of its model that has a namesake here of the same weights.
    PART=RUN gives one part, which may also lie inside a child (``robust.encoder``): the namesake in the other model, or
    where that has none the one child with the same weights. PART=FILE takes a state dict (.pt, .pth, .safetensors),
    and leaves out its output layer ``fc``, which the encoders here do not have. Files from before batch norms counted
    their batches lack those counts, which then stay 0.

    Args:
        model: changed in place.
        entries: as in ``TrainConfig.start_from``.
        say: told in one line what each entry gave.

    Raises:
        UserError: no run or file there, no such part, or weights of other names or shapes.
    """
    for entry in entries:
        part, place = _taken_apart(entry)
        path = Path(place)
        if not path.exists():
            raise UserError(
                f"--start-from {entry}: there is no {path}; expected RUN, PART=RUN or PART=FILE, runs by their folders"
            )
        if part is None and path.is_file():
            raise UserError(
                f"--start-from {entry}: a file of weights is for one part; name it as PART={path}"
            )
        if part is not None and path.is_file():
            say(f"starts from {path}: {part}{_from_file(model, part, path)}")
        elif part is not None:
            found = _one(load_run(path, device="cpu").model, part, _part(model, part, path), path)
            _part(model, part, path).load_state_dict(found)
            say(f"starts from {path}: {part}")
        else:
            say(f"starts from {path}: {', '.join(_namesakes(model, path))}")


def _taken_apart(entry: str) -> tuple[str | None, str]:
    """Part, None where none is named, and place. Runs may be called after settings: sweep/lr=0.1 is no part."""
    part, equals, place = entry.partition("=")
    return (part, place) if equals and not Path(entry).exists() else (None, entry)


def _namesakes(model: nn.Module, path: Path) -> list[str]:
    """Load all children of the run's model that fit one here, and tell their names."""
    theirs = _parts(load_run(path, device="cpu").model)
    here, given = _parts(model), []
    for name, child in here.items():
        if name in theirs and _fits(child, state := theirs[name].state_dict()):
            child.load_state_dict(state)
            given.append(name)
    if not given:
        fitting = [
            name for name in here if sum(_fits(here[name], one.state_dict()) for one in theirs.values()) == 1
        ]
        advice = (
            f"its weights fit as {' or '.join(f'{name}={path}' for name in fitting)}"
            if fitting
            else "name a run whose model has a part of this one"
        )
        raise UserError(
            f"--start-from {path}: its model has {_listed(theirs)}, this one {_listed(here)}: none of the same name "
            f"and weights; {advice}"
        )
    return given


def _one(other: nn.Module, name: str, part: nn.Module, path: Path) -> dict[str, Tensor]:
    """The weights of `other` for a part of this model."""
    children = _parts(other)
    namesake = _inside(other, name)
    if namesake is not None and _fits(part, state := namesake.state_dict()):
        return state
    fitting = {key: state for key, child in children.items() if _fits(part, state := child.state_dict())}
    if len(fitting) != 1:
        which = f"{_listed(fitting)} all have" if fitting else f"none of {_listed(children)} has"
        raise UserError(
            f"--start-from {name}={path}: {which} the weights of {name} here; expected one part of a run"
        )
    return next(iter(fitting.values()))


def _from_file(model: nn.Module, name: str, file: Path) -> str:
    part = _part(model, name, file)
    state = _read(file, name)
    expected = part.state_dict()
    # ResNets of torchvision: the classifier on ImageNet's classes.
    output = [key for key in state if key.startswith("fc.") and key not in expected]
    kept = {key: value for key, value in state.items() if key not in output}
    kept |= {key: count for key, count in expected.items() if key.endswith(COUNT) and key not in kept}
    if not _fits(part, kept):
        wrong = sorted(set(kept) ^ set(expected)) or [
            key for key, value in kept.items() if not _same(value, expected[key])
        ]
        raise UserError(
            f"--start-from {name}={file}: it holds other weights than {name} has, first {wrong[0]}; expected a state "
            f"dict of {len(expected)} tensors with the names and shapes of {type(part).__name__}"
        )
    part.load_state_dict(kept)
    return f" without {', '.join(output)}" if output else ""


def _read(file: Path, name: str) -> dict[str, Any]:
    """The state dict in a file."""
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        elif zipfile.is_zipfile(file):
            state = load(file)
        else:
            # The format of torch before 1.6, in which older published weights still come; it has no checksums.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # Of bytes that are no such file, torch's reader of the old format raises whatever they lead it to.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"--start-from {name}={file}: not a readable file of weights ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(
            f"--start-from {name}={file}: it holds no state dict, but {type(state).__name__}; expected names to tensors"
        )
    return state


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The children that have weights: one that has none would fit any other of its name."""
    return {name: child for name, child in model.named_children() if child.state_dict()}


def _part(model: nn.Module, name: str, place: Path) -> nn.Module:
    found = _inside(model, name)
    if found is None:
        children = _listed(_parts(model))
        raise UserError(
            f"--start-from {name}={place}: the model has no part {name!r}; expected one of {children}"
        )
    return found


def _inside(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name) if name else None
    except AttributeError:
        return None


def _fits(part: nn.Module, state: dict[str, Any]) -> bool:
    own = part.state_dict()
    return own.keys() == state.keys() and all(_same(state[key], value) for key, value in own.items())


def _same(value: Any, expected: Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == expected.shape


def _listed(parts: dict[str, Any]) -> str:
    return ", ".join(parts) or "no parts"
