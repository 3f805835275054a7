"""One page about runs, in numbers and pictures: ``python -m robustfast.report RUN [RUN ...]``."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from robustfast.command_line import main_wrapper, parse
from robustfast.errors import UserError
from robustfast.evaluation.look import LookSettings, Missing, look_at
from robustfast.evaluation.paper_row import paper_rows
from robustfast.evaluation.run_record import RunRecord, read_runs
from robustfast.ops.backend import configured_backend
from robustfast.training.checkpoint import write_durably
from robustfast.visualization.page import page

__all__ = ["main"]

PROG = "python -m robustfast.report"


@dataclass(frozen=True)
class Arguments:
    """What the command line can say."""

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders; the first one is what the others are compared with."""
    out: Path | None = None
    """The page; without it report.html in the run's folder, for several runs comparison.html in the first one's."""
    images: int = 8
    """Example images."""
    attacked: int = 512
    """Test images to attack for the accuracy of each class and the confusions; 0: leave these out."""
    inversion: bool = False
    """Invert the representations of the example images; takes long without a GPU."""
    inversion_steps: int = 10000
    """Steps of the inversion; the paper's 10000."""
    checkpoint: Literal["evaluated", "last", "best"] = "evaluated"
    """Whose weights: evaluated is what the run's evaluation took, last where there is none yet."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data_dir: Path | None = None
    """Folder of the data sets; without it each run's."""


def main(argv: Sequence[str]) -> None:
    """Make the page that the arguments ask for.

    Raises:
        UserError: a mistake in the arguments or the runs, or a page that cannot be written.
    """
    arguments = parse(
        Arguments,
        argv,
        prog=PROG,
        description="Make one self-contained HTML page about runs: tables, curves, attacked images, gradient maps.",
    )
    if arguments.inversion_steps < 1:
        raise UserError(f"--inversion-steps {arguments.inversion_steps}: expected at least 1")
    settings = LookSettings(
        images=arguments.images,
        attacked=arguments.attacked,
        inversion_steps=arguments.inversion_steps if arguments.inversion else 0,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        data_dir=arguments.data_dir,
    )
    if not arguments.runs:
        raise UserError(f"name one run folder or more: {PROG} RUN [RUN ...]")
    runs = read_runs(arguments.runs)
    out = arguments.out or runs[0].path / ("report.html" if len(runs) == 1 else "comparison.html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot make its folder ({error.strerror}); give another") from error
    papers = [paper_rows(run) for run in runs]
    console = Console(highlight=False)
    with configured_backend("auto"):
        looks = []
        for run in runs:
            with _progress(run, console) as advance:
                looks.append(look_at(run, settings, advance))
            if isinstance(looks[-1], Missing):
                console.print(f"{run.label}: no images: {looks[-1].reason}", markup=False, soft_wrap=True)
    text = page(runs, looks, papers, made=time.strftime("%Y-%m-%d %H:%M %z"))
    write_durably(out, lambda file: file.write(text.encode(errors="replace")))
    console.print(f"written: {out} ({len(text) / 2**20:.1f} MiB)", markup=False, soft_wrap=True)


@contextmanager
def _progress(run: RunRecord, console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal, nothing elsewhere; yields the function that moves them."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        tasks = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{run.label}: {what}", total=total)
            bar.update(tasks[what], completed=done)

        yield advance


if __name__ == "__main__":
    sys.exit(main_wrapper(main))
