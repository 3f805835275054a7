"""The account of a training step: what it counts, and that docs/performance.md says what its file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import account
import account_tables
import pytest
import torch
from torch import Tensor

from robustfast.attacks import folding

RATES = account.Rates(copy=1e12, matrix=1e15, launch=1e-5, gap=1e-6)


def counted(call: Callable[[], Any]) -> dict[str, account.Row]:
    with account.Counter(RATES) as counter:
        call()
    return counter.found["training"]


def stored() -> dict[str, Any]:
    return json.loads(account.RESULT.read_text())


def test_the_page_has_the_tables_of_the_file() -> None:
    page = account.PAGE.read_text()
    tables = account.tables(stored())
    # Each table is on the page.
    assert all(f"<!-- account: {name} -->" in page for name in tables)
    assert account.rendered(page, tables) == page
    assert account.rendered(page, tables | {"passes": "other"}) != page


def test_the_tables_say_what_was_counted() -> None:
    report = stored()
    entry = next(e for e in report["cases"] if (e["network"], e["method"]) == ("preact_resnet18", "AT"))
    step = sum(row["launches"] for row in entry["folded"]["attack step"].values())
    tables = account.tables(report)
    (line,) = [line for line in tables["kinds preact_resnet18"].splitlines() if line.startswith("| **all**")]
    assert line.split("|")[5].strip() == f"{step:,}"
    once = sum(
        row["launches"]
        for name, rows in entry["folded"].items()
        if name != "attack step"
        for row in rows.values()
    )
    assert f"| PreAct-ResNet18 | AT | folded | {10 * step + once:,} |" in tables["steps"]


def test_bytes_and_launches_of_plain_operations() -> None:
    x, weight = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.rand(4, 3, 3, 3, dtype=torch.float64)
    eight = 8
    assert counted(lambda: x.view(-1)[3:].t()) == {"other": account.Row()}
    assert counted(lambda: x.relu())["ReLU"].bytes == 2 * eight * x.numel()
    # In place: read and written.
    assert counted(lambda: x.relu_())["ReLU"].bytes == 2 * eight * x.numel()
    # A copy reads one and writes the other.
    assert counted(lambda: x.clone().copy_(x))["cast"].bytes == 2 * eight * x.numel()
    # One row, read by all.
    assert counted(lambda: x + torch.rand(8, dtype=torch.float64).expand(8, 8))["sum"].bytes == (
        eight * (2 * x.numel() + 8)
    )
    found = counted(lambda: torch.nn.functional.conv2d(x, weight))["convolution"]
    assert found.flops == 2 * (2 * 4 * 6 * 6) * 27
    assert found.bytes == eight * (x.numel() + weight.numel() + 2 * 4 * 36)
    assert found.seconds == pytest.approx(max(found.bytes / 1e12, found.flops / 1e15) + 1e-6)


def test_a_backward_counts_the_gradients_that_it_is_asked_for() -> None:
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    weight = torch.rand(4, 3, 3, 3, requires_grad=True)

    def backward(*inputs: Tensor) -> account.Row:
        out = torch.nn.functional.conv2d(x, weight)
        return counted(lambda: torch.autograd.grad(out.sum(), inputs))["convolution"]

    one, both = backward(x), backward(x, weight)
    assert (one.launches, both.launches) == (1, 2)
    assert both.flops == 2 * one.flops


def test_a_batch_norm_in_train_mode_reads_twice() -> None:
    norm, x = torch.nn.BatchNorm2d(3), torch.rand(4, 3, 8, 8)
    training = counted(lambda: norm(x))["batch norm"].bytes
    evaluation = counted(lambda: norm.eval()(x))["batch norm"].bytes
    assert 4 * x.numel() <= training - evaluation < 4 * x.numel() + 100


def test_passes_are_those_of_the_mathematics() -> None:
    found = {(entry["network"], entry["method"]): entry for entry in stored()["cases"]}
    assert len(found) == 6
    for (_, method), entry in found.items():
        assert round(entry["passes"]) == {"AT": 23, "AAT": 54, "AAT++": 101}[method]
        assert entry["plain_passes"] == {"AT": 33, "AAT": 80, "AAT++": 147}[method]
        # Nothing but the first convolution's gradient to the images is spared.
        assert round(entry["passes"]) - entry["passes"] < 0.2
    assert account.plain_passes("AT") == 33
    assert account.forward_flops("preact_resnet18") == pytest.approx(1.11e9, rel=0.01)
    assert account.forward_flops("wide_resnet34_10") == pytest.approx(13.3e9, rel=0.01)


def test_the_file_is_of_this_code() -> None:
    """Counted anew, one step of the attack costs what the file says, folded: else run bench/account.py again."""
    report = stored()
    rates = account.Rates(**report["rates"])
    entry = next(e for e in report["cases"] if (e["network"], e["method"]) == ("preact_resnet18", "AT"))
    with folding("on"):
        found = account.sections("preact_resnet18", "AT", entry["batch"], rates)["attack step"]
    kept = account_tables.accounts(entry, "folded")["attack step"]
    kinds = ("convolution", "matrix product", "affine_relu", "sum", "attack's own ops")
    assert "batch norm" not in found
    for kind in kinds:
        assert found[kind].launches == kept[kind].launches > 0
        assert found[kind].bytes == kept[kind].bytes
        assert found[kind].flops == kept[kind].flops


def test_what_the_page_says_follows() -> None:
    report = stored()
    launch = report["rates"]["launch"]
    for entry in report["cases"]:
        unfused, folded, _ = rows = [
            account_tables.total(account_tables.whole(account_tables.accounts(entry, column)))
            for column in account_tables.COLUMNS
        ]
        assert 0.6 < folded.bytes / unfused.bytes < 0.72
        bound_by_host = [row.launches * launch > row.seconds for row in rows[:2]]
        assert bound_by_host == [entry["network"] == "preact_resnet18"] * 2
        rates = report["rates"]
        bound_by_bytes = [row.bytes / rates["copy"] > row.flops / rates["matrix"] for row in rows[:2]]
        assert bound_by_bytes == bound_by_host


def test_an_op_reads_and_writes_once() -> None:
    report = stored()
    rows = {(row["op"], row["case"]): row for row in report["ops"]}
    step = rows["`pgd_step`", "256x3x224x224 float32, linf"]
    # Three operands and the result.
    assert step["bytes"] == pytest.approx(4 * 4 * 256 * 3 * 224 * 224, rel=1e-6)
    assert all(row["launches"] == 1 for row in rows.values())
    elements = 128 * 64 * 32 * 32
    for way in ("forward", "backward"):
        # Two bytes in, two out, one bit kept or read.
        found = rows[f"`affine_relu`, {way}", "128x64x32x32 bf16"]["bytes"]
        assert found == pytest.approx(elements * (2 + 2 + 1 / 8), rel=1e-4)
    entry = next(e for e in report["cases"] if (e["network"], e["method"]) == ("preact_resnet18", "AT"))
    whole = account_tables.total(account_tables.accounts(entry, "folded")["attack step"]).seconds
    assert rows["`pgd_step`", "128x3x32x32 float32, linf"]["seconds"] < whole / 100


def test_at_as_people_write_it_makes_weight_gradients() -> None:
    entries = [entry for entry in stored()["cases"] if entry["method"] == "AT"]
    for entry in entries:
        plain, ours = (
            account_tables.accounts(entry, column)["attack step"]["convolution"]
            for column in ("plain", "unfused")
        )
        assert plain.launches == 1.5 * ours.launches
        assert plain.flops == pytest.approx(1.5 * ours.flops, rel=0.01)


def test_folding_takes_batch_norms_and_sums_away() -> None:
    for entry in stored()["cases"]:
        unfused, folded, floor = (
            account_tables.total(account_tables.accounts(entry, column)["attack step"])
            for column in ("unfused", "folded", "floor")
        )
        assert floor.launches < folded.launches < unfused.launches
        assert floor.bytes < folded.bytes < unfused.bytes
        assert folded.flops == unfused.flops == floor.flops
