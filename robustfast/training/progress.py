"""What training shows: a bar with images/s and the time left on a terminal, one line an epoch everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

__all__ = ["Progress", "epoch_line"]


class Progress:
    """Context manager around the training loop.

    Args:
        images: images of the whole training.
        done: images behind a resumed run.
        console: where to show it; None is stdout. The bar appears on terminals only.
    """

    def __init__(self, images: int, *, done: int = 0, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            _ImagesPerSecond(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            # The epoch lines stay, the bar goes.
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "training", total=images, completed=done, began=time.perf_counter(), done=done
        )

    def epoch(self, number: int, of: int) -> None:
        """Name the epoch, counted from 1."""
        self._bar.update(self._task, description=f"epoch {number}/{of}")

    def advance(self, images: int) -> None:
        self._bar.advance(self._task, images)

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar. Not wrapped or coloured, so that it can be searched."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class _ImagesPerSecond(ProgressColumn):
    """Mean rate since this process started training."""

    def render(self, task: Task) -> Text:
        elapsed = time.perf_counter() - task.fields["began"]
        rate = (task.completed - task.fields["done"]) / elapsed if elapsed > 0 else 0.0
        return Text(f"{rate:,.0f} images/s")


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """What a line of metrics.jsonl says, for people."""
    parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {record['loss']:.4f}"]
    for name in ("natural", "adversarial"):
        if name in record:
            accuracies = " ".join(f"{way.upper()} {value:.2%}" for way, value in record[name].items())
            parts.append(f"{name} {accuracies}")
    seconds = record["seconds"] + record.get("check_seconds", 0.0)
    parts += [f"{record['images_per_second']:,.0f} images/s", f"{seconds:.1f} s"]
    return "  ".join(parts)
