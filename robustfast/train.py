"""Train a model: ``python -m robustfast.train [PRESET] [--field value ...]``, ``--resume RUN`` to continue."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robustfast.command_line import main_wrapper, parse
from robustfast.errors import UserError
from robustfast.ops.backend import configured_backend
from robustfast.registry import lookup
from robustfast.training.config import TrainConfig
from robustfast.training.fit import fit, resume
from robustfast.training.presets import DEFAULT, FAMILIES, METHODS, PRESETS
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
    with configured_backend(arguments.config.backend):
        _run(arguments)


def _run(arguments: Arguments) -> None:
    if arguments.resume is None:
        path = fit(arguments.config)
    else:
        if arguments.config.out not in (None, arguments.resume):
            raise UserError(
                f"--out {arguments.config.out}: a resumed run stays in its folder; leave --out away"
            )
        path = resume(arguments.resume, arguments.config)
    print(f"run folder: {path}\nevaluate it with: python -m robustfast.evaluate {path}", flush=True)
    if arguments.evaluate:
        # Imported here, so that training needs nothing of the evaluation until it ends.
        from robustfast.evaluation.aat import evaluate_run

        evaluate_run(path, device=arguments.config.device, data_dir=arguments.config.data_dir)


def _resumed(flags: Sequence[str]) -> Path | None:
    """The folder that ``--resume`` names: it decides the defaults of all other flags, so it is read before they are."""
    for position, flag in enumerate(flags):
        if flag.startswith("--resume="):
            return Path(flag.partition("=")[2])
        if flag == "--resume" and position + 1 < len(flags):
            return Path(flags[position + 1])
    return None


def _description(default: TrainConfig) -> str:
    endings = ", ".join(f"-{name}" for name in METHODS)
    return (
        f"Train a model. PRESET is {', '.join(FAMILIES)}, each followed by one of {endings}; "
        f"without one it is {DEFAULT}. The defaults below are those of {default.preset}."
    )


if __name__ == "__main__":
    sys.exit(main_wrapper(main))
