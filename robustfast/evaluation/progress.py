"""A bar over attacked images: images a second and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["AttackBar", "attack_bar"]


class AttackBar:
    """What is told of the work while the bar stands."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, images: int) -> None:
        """So many more images were attacked."""
        self._bar.advance(self._task, images)

    def skip(self, images: int) -> None:
        """So many need not be attacked after all: they count neither as work nor into the speed."""
        total = self._bar.tasks[0].total or 0
        self._bar.update(self._task, total=total - images)

    def say(self, what: str) -> None:
        """Name what is under way."""
        self._bar.update(self._task, description=what)


@contextmanager
def attack_bar(images: int, console: Console) -> Iterator[AttackBar]:
    """A bar over `images` attacked ones while the block runs."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        _ImagesPerSecond(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield AttackBar(bar, bar.add_task("attacking", total=images))


class _ImagesPerSecond(ProgressColumn):
    """Attacked images a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:,.0f} images/s")
