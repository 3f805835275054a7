"""A protocol of parts: made in order, kept one by one, made again only where what they were made of has changed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from robustfast import evaluate
from robustfast.command_line import main_wrapper
from robustfast.data import load
from robustfast.errors import UserError
from robustfast.evaluation import protocols
from robustfast.evaluation.parts import (
    Part,
    PartContext,
    PartResult,
    Request,
    document_path,
    evaluate_parts,
    part_numbers,
)
from robustfast.signals import Stopped
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PRESETS["digits-at"]
    return fit(
        replace(
            config,
            network="one_way",
            epochs=1,
            batch_size=719,
            attack=replace(config.attack, steps=1),
            validate_every=0,
            tensorboard=False,
            device="cpu",
            out=tmp_path_factory.mktemp("runs") / "one",
        )
    )


class Recorded:
    """Parts that remember how often they were made."""

    def __init__(self, run: Path) -> None:
        self.made: list[str] = []
        self.contexts: list[PartContext] = []
        self.run = run
        self.stop = False
        # Each test begins without what another one left.
        for whole in (True, False):
            document_path(run, "toy", whole=whole).unlink(missing_ok=True)
        self.parts = (
            Part("clean", "accuracy on natural images", self.clean),
            Part("again", "twice the first", self.again),
            Part("lent", "another model's accuracy", self.lent, needs=("source",)),
            Part("beside", "how many stand beside it", self.beside, takes=("against",)),
            Part("never", "what this run has not", self.clean, unfit=lambda run: "the run trained none"),
        )

    def clean(self, context: PartContext) -> PartResult:
        self.made.append("clean")
        self.contexts.append(context)
        right = sum(int((context.run.model(x).argmax(1) == y).sum()) for x, y, _ in context.batches())
        return PartResult({"accuracy": right / context.images}, [Table("clean accuracy")])

    def again(self, context: PartContext) -> PartResult:
        if self.stop:
            raise KeyboardInterrupt
        self.made.append("again")
        figure = context.figure("again")
        figure.parent.mkdir(exist_ok=True)
        figure.write_bytes(b"")
        return PartResult({"twice": 2 * context.earlier["clean"]["accuracy"]}, figures=[figure])

    def lent(self, context: PartContext) -> PartResult:
        self.made.append("lent")
        x = next(context.batches())[0]
        return PartResult({"same": bool((context.source()(x) == context.run.model(x)).all())})

    def beside(self, context: PartContext) -> PartResult:
        self.made.append("beside")
        return PartResult({"labels": list(context.others())})

    def __call__(self, **fields: Any) -> tuple[dict[str, Any], str]:
        console = Console(file=io.StringIO(), width=200)
        document = evaluate_parts(
            self.run, "toy", self.parts, Request(device="cpu", **fields), console=console
        )
        return document, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def recorded(run: Path) -> Recorded:
    return Recorded(run)


def test_parts_are_made_in_order_and_kept(recorded: Recorded, run: Path) -> None:
    document, printed = recorded()
    assert recorded.made == ["clean", "again", "beside"]
    assert "lent: left out, needs --source: name a run there" in printed
    assert "never: left out, the run trained none" in printed
    assert "clean accuracy" in printed
    assert json.loads(document_path(run, "toy").read_text()) == document
    parts = document["parts"]
    assert parts["again"]["numbers"]["twice"] == 2 * parts["clean"]["numbers"]["accuracy"]
    assert parts["again"]["figures"] == ["figures/toy-again.png"]
    assert (document["protocol"], document["images"], document["images_in_split"]) == ("toy", 359, 359)
    assert part_numbers(run, "toy", "clean") == parts["clean"]["numbers"]
    assert part_numbers(run, "toy", "lent") is None
    again, printed = recorded()
    assert recorded.made == ["clean", "again", "beside"]
    assert "clean: kept (accuracy on natural images)" in printed
    assert again == document


def test_the_images_are_the_splits_own(recorded: Recorded) -> None:
    recorded(parts=("clean",), images=40, batch_size=16)
    (context,) = recorded.contexts
    batches = list(context.batches())
    assert [len(y) for _, y, _ in batches] == [16, 16, 8]
    positions = torch.cat([index for *_, index in batches])
    assert positions.tolist() == [number * 359 // 40 for number in range(40)]
    test = load("digits", "test", None)
    chosen = test.take(positions)
    assert torch.equal(torch.cat([y for _, y, _ in batches]), chosen.labels)
    whole = list(context.batches(context.training_split))
    assert sum(len(y) for _, y, _ in whole) == 1438
    assert torch.cat([index for *_, index in whole]).tolist() == list(range(1438))


def test_part_of_the_split_has_a_file_of_its_own(recorded: Recorded, run: Path) -> None:
    recorded(parts=("clean",))
    before = document_path(run, "toy").read_bytes()
    document, _ = recorded(parts=("clean",), images=20)
    assert document["images"] == 20
    assert document_path(run, "toy").read_bytes() == before
    assert recorded.made == ["clean", "clean"]
    # Other images, another key: made again.
    recorded(parts=("clean",), images=21)
    assert recorded.made == ["clean"] * 3


def test_a_part_follows_the_model_that_it_needs(recorded: Recorded, run: Path) -> None:
    document, _ = recorded(parts=("lent",), source=str(run))
    assert document["parts"]["lent"]["numbers"] == {"same": True}
    recorded(parts=("lent",), source=str(run))
    assert recorded.made == ["lent"]
    with pytest.raises(UserError, match=r"part lent \(another model's accuracy\): needs --source"):
        recorded(parts=("lent",))
    with pytest.raises(UserError, match=r"part never .*: the run trained none"):
        recorded(parts=("never",))
    with pytest.raises(UserError, match="unknown part 'claen'; did you mean 'clean'"):
        recorded(parts=("claen",))
    with pytest.raises(UserError, match="--images 360: expected 1 to 359"):
        recorded(images=360)


def test_a_part_follows_the_models_that_it_takes_where_they_are_given(recorded: Recorded, run: Path) -> None:
    document, _ = recorded(parts=("beside",))
    assert document["parts"]["beside"]["numbers"] == {"labels": []}
    for _ in range(2):
        document, _ = recorded(parts=("beside",), against=(f"at={run}",))
        assert document["parts"]["beside"]["numbers"] == {"labels": ["at"]}
    assert recorded.made == ["beside"] * 2
    # A part that takes none is not made again for their sake.
    recorded(parts=("clean",))
    recorded(parts=("clean",), against=(f"at={run}",), source=str(run))
    assert recorded.made == ["beside"] * 2 + ["clean"]


def test_an_interruption_keeps_what_is_finished(recorded: Recorded, run: Path) -> None:
    recorded.stop = True
    with pytest.raises(Stopped, match="the same command goes on from there"):
        recorded()
    assert recorded.made == ["clean"]
    recorded.stop = False
    recorded()
    assert recorded.made == ["clean", "again", "beside"]
    document_path(run, "toy").write_text('{"parts": {"clean": {"key"')
    recorded()  # a damaged file holds nothing
    assert recorded.made == ["clean", "again", "beside"] * 2


def test_the_command(
    recorded: Recorded, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(protocols.PROTOCOLS, "toy", recorded.parts)

    def command(*flags: str) -> tuple[int, str, str]:
        code = main_wrapper(evaluate.main, [str(run), *flags])
        return code, *capsys.readouterr()

    assert command("--protocol", "toy", "--parts", "clean,again", "--images", "30", "--device", "cpu")[0] == 0
    assert part_numbers(run, "toy", "again", whole=False)
    # The run's own protocol is another.
    for flags, line in {
        ("--parts", "clean"): r"--parts: for a protocol of parts",
        ("--protocol", "toy", "--eps", "0.1"): "--eps: not with --protocol toy",
        ("--protocol", "toy", "--attacks", "pgd20"): "--attacks: not with --protocol toy",
        ("--protocol", "toi"): "unknown protocol 'toi'",
    }.items():
        code, _, error = command(*flags)
        assert code == 2
        assert line in error
        assert error.count("\n") == 1
    # An objective's protocol is the one that is meant.
    from robustfast.objectives import AT

    monkeypatch.setattr(AT, "protocol", "toy")
    code, out, _ = command("--parts", "clean", "--images", "30", "--device", "cpu")
    assert code == 0
    assert "clean: kept" in out
    code, out, _ = command("--source", str(run), "--parts", "lent", "--images", "30", "--device", "cpu")
    assert (code, recorded.made[-1]) == (0, "lent")
    assert RunFolder.open(run).config.network == "one_way"
