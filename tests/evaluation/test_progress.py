"""The bar over attacked images: on a terminal alone; what was found on the disk counts neither as work nor as speed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from robustfast.evaluation.progress import attack_bar


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_for_terminals(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with attack_bar(100, console) as bar:
        bar.say("apgd-ce")
        bar.advance(25)
        bar.advance(25)
        bar._bar.refresh()
    shown = console.file.getvalue()
    assert ("apgd-ce" in shown) == terminal
    assert ("images/s" in shown) == terminal
    assert (" 50 %" in shown) == terminal
    if not terminal:
        assert shown == ""


def test_what_is_skipped_is_no_work() -> None:
    with attack_bar(100, Console(file=io.StringIO())) as bar:
        bar.skip(60)
        bar.advance(10)
        task = bar._bar.tasks[0]
        assert (task.completed, task.total) == (10, 40)
        bar.skip(30)
        bar.advance(0)
        assert task.finished
