"""Train a model: ``python -m robustfast.train [PRESET] [--field value ...]``, ``--resume RUN`` to continue."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robustfast.command_line import main_wrapper, parse
from robustfast.distributed import World
from robustfast.errors import SaidElsewhereError, UserError
from robustfast.ops.backend import configured_backend
from robustfast.registry import lookup
from robustfast.signals import Stopped, signal_behind
from robustfast.together import together
from robustfast.training.config import TrainConfig
from robustfast.training.fit import fit, resume
from robustfast.training.presets import DEFAULT, PRESETS, SYSTEMS
from robustfast.training.run_folder import RunFolder

__all__ = ["main"]

PROG = "python -m robustfast.train"


@dataclass(frozen=True)
class Arguments:
    """What the command line can say."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    resume: Path | None = None
    """Continue the run in this folder, as it was configured."""
    evaluate: bool = True
    """Evaluate the finished run and print its table."""


def main(argv: Sequence[str]) -> None:
    """Train what the arguments say, then evaluate it.

    Raises:
        UserError: a mistake in the arguments, the data or the folders.
    """
    arguments = _arguments(argv)
    with World.joined(arguments.config.device) as world, ExitStack() as stack:
        together(world, lambda: stack.enter_context(configured_backend(arguments.config.backend)))
        _run(arguments, world)


def _arguments(argv: Sequence[str]) -> Arguments:
    """What the command line says; with ``--resume`` on top of what the run says."""
    try:
        return _parsed(argv)
    except UserError as error:
        # Each process of a machine reads the same line; they do not know each other yet.
        raise SaidElsewhereError(str(error)) if os.environ.get("LOCAL_RANK", "0") != "0" else error from None


def _parsed(argv: Sequence[str]) -> Arguments:
    name, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    default = lookup("preset", PRESETS, name or DEFAULT)
    if stored := _resumed(flags):
        folder = RunFolder.open(stored)
        if name not in (None, folder.config.preset):
            raise UserError(
                f"--resume {stored} is a run of {folder.config.preset}, not of {name}: leave the preset out"
            )
        default = folder.config
    arguments = parse(
        Arguments,
        flags,
        prog=f"{PROG} [PRESET]",
        description=_description(default),
        default=Arguments(default),
    )
    if arguments.resume is not None and arguments.config.out not in (None, arguments.resume):
        raise UserError(f"--out {arguments.config.out}: a resumed run stays in its folder; leave --out away")
    return arguments


def _run(arguments: Arguments, world: World) -> None:
    if arguments.resume is None:
        path = fit(arguments.config, world)
    else:
        path = resume(arguments.resume, arguments.config, world)
    evaluation = f"evaluate it with: python -m robustfast.evaluate {path}"
    try:
        if world.writes:
            print(f"run folder: {path}\n{evaluation}", flush=True)
        if arguments.evaluate:
            _evaluate(path, arguments.config, world)
    except KeyboardInterrupt as stop:
        raise Stopped(signal_behind(stop), f"{path} is trained; {evaluation}") from None


def _evaluate(path: Path, config: TrainConfig, world: World) -> None:
    # Imported here, so that training needs nothing of the evaluation until it ends.
    from robustfast.evaluation.aat import FILE, evaluate_run

    # What early stopping selects on images of the training split is the run's result; its last epoch is not.
    chosen = {"checkpoint": "best", "file": FILE} if config.early_stop else {}
    evaluate_run(path, device=config.device, data_dir=config.data_dir, world=world, **chosen)


def _resumed(flags: Sequence[str]) -> Path | None:
    """The folder that ``--resume`` names: it decides the defaults of all other flags, so it is read before they are."""
    for position, flag in enumerate(flags):
        if flag.startswith("--resume="):
            return Path(flag.partition("=")[2])
        if flag == "--resume" and position + 1 < len(flags):
            return Path(flags[position + 1])
    return None


def _description(default: TrainConfig) -> str:
    presets = "; ".join(
        f"{', '.join(system.families)}, each followed by one of {', '.join(f'-{name}' for name in system.methods)}"
        for system in SYSTEMS.values()
    )
    return (
        f"Train a model. PRESET is {presets}. Without one it is {DEFAULT}. The defaults below are those of "
        f"{default.preset}."
    )


if __name__ == "__main__":
    sys.exit(main_wrapper(main))
