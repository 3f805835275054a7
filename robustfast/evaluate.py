"""Evaluate a run by a paper's protocol: ``python -m robustfast.evaluate RUN``."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from robustfast.command_line import main_wrapper, parse
from robustfast.distributed import World
from robustfast.evaluation.aat import evaluate_run
from robustfast.evaluation.attacks import ATTACKS, EvaluationAttack, attacks_for
from robustfast.ops.backend import configured_backend
from robustfast.together import together
from robustfast.training.run_folder import RunFolder

__all__ = ["main"]

PROG = "python -m robustfast.evaluate"


@dataclass(frozen=True)
class AttackFlags:
    """What differs from the attack preset; any of these makes one attack called "custom"."""

    norm: Literal["linf", "l2", "l1"] | None = None
    """Norm of the ball."""
    eps: float | None = None
    """Radius of the ball, pixels in [0, 1]."""
    step_size: float | None = None
    """Length of one step."""
    steps: int | None = None
    """Gradient steps."""
    step: Literal["auto", "sign", "grad", "topq"] | None = None
    """Direction: auto is sign for linf, unit-norm gradient for l2, top-q for l1."""
    random_start: Literal["ball", "pixel", "none"] | None = None
    """Start: uniform in the ball, U(-eps, eps) per pixel, or the image itself."""
    restarts: int | None = None
    """Independent starts, of which each image keeps the strongest."""


@dataclass(frozen=True)
class Arguments:
    """What the command line can say."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    protocol: Literal["aat"] = "aat"
    """Whose tables: aat is natural accuracy, attacks on each way and on the standard way, detection."""
    attacks: tuple[str, ...] = ()
    """Attack presets; the first one leads the file. Without them the data set's own."""
    attack: AttackFlags = field(default_factory=AttackFlags)
    """One attack by its fields."""
    images: int | None = None
    """Test images, spread evenly over the split; all without it."""
    checkpoint: Literal["last", "best"] = "last"
    """last is what the papers report; best was chosen by test images."""
    batch_size: int | None = None
    """Images a batch; without it the run's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to evaluate; auto takes a GPU where there is one."""
    backend: Literal["auto", "reference", "cpp", "cuda", "triton"] = "auto"
    """Which implementation of the fused ops."""
    data_dir: Path | None = None
    """Folder of the data sets; without it the run's."""


def main(argv: Sequence[str]) -> None:
    """Evaluate the run that the arguments name.

    Raises:
        UserError: a mistake in the arguments, the run or the data.
    """
    arguments = parse(
        Arguments,
        argv,
        prog=PROG,
        description=f"Evaluate a run and print the paper's tables. Attack presets: {', '.join(ATTACKS)}.",
    )

    def chosen() -> tuple[EvaluationAttack, ...]:
        dataset = RunFolder.open(arguments.run).config.dataset
        return attacks_for(dataset, arguments.attacks, **asdict(arguments.attack))

    with World.joined(arguments.device) as world, ExitStack() as stack:
        attacks = together(world, chosen)
        together(world, lambda: stack.enter_context(configured_backend(arguments.backend)))
        evaluate_run(
            arguments.run,
            attacks,
            images=arguments.images,
            checkpoint=arguments.checkpoint,
            device=arguments.device,
            batch_size=arguments.batch_size,
            data_dir=arguments.data_dir,
            world=world,
        )


if __name__ == "__main__":
    sys.exit(main_wrapper(main))
