"""What training shows: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from robustfast.training.progress import Progress


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    with Progress(
        200, done=100, console=Console(file=stream, force_terminal=terminal, width=100)
    ) as progress:
        progress.epoch(2, 2)
        progress.advance(100)
        progress.line("epoch 2/2  loss 0.1  [not markup]  " + "long " * 40)
    return stream.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    assert shown(terminal=False) == "epoch 2/2  loss 0.1  [not markup]  " + "long " * 40 + "\n"


@pytest.mark.parametrize("part", ["epoch 2/2 ", "images/s", "left", "100 %", "loss 0.1", "[not markup]"])
def test_bar_with_rate_and_time_left_on_a_terminal(part: str) -> None:
    assert part in shown(terminal=True)
