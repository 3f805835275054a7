"""Accuracy against eps: numbers stand up to a second computation, an interrupted sweep to one that was not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from robustfast.attacks import DDN, PGD, Attack
from robustfast.attacks.compaction import remaining
from robustfast.command_line import main_wrapper
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.evaluation import sweep_batches
from robustfast.evaluation.attack_names import parse, parse_all
from robustfast.evaluation.grids import area
from robustfast.evaluation.model_digests import code_digest, weights_digest
from robustfast.evaluation.partial_results import PartialResults, data_digest
from robustfast.evaluation.repeated_passes import MeanOfPasses
from robustfast.evaluation.subject import Subject, imported_model, model_subject
from robustfast.evaluation.sweep import sweep
from robustfast.evaluation.sweep_batches import BatchWork
from robustfast.evaluation.sweep_document import read
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.evaluation.sweep_tables import eps_labels

TOYS = Path(__file__).parent / "toy_models.py"
EPS = (0.0, 0.05, 0.1, 0.2)
QUICK = SweepSettings(probes=False)
Sweep = Callable[..., dict[str, Any]]


def subject(toy: str = "digits", images: int = 50, batch_size: int = 16, **more: Any) -> Subject:
    return model_subject(
        f"{TOYS}:{toy}", dataset="digits", images=images, device="cpu", batch_size=batch_size, **more
    )


def attacks(*names: str, eps: tuple[float, ...] = EPS, **settings: Any) -> list[SweepAttack]:
    return [SweepAttack(named, eps, settings) for named in parse_all(names)]


@pytest.fixture
def swept(tmp_path: Path) -> Sweep:
    """swept(attacks, settings, **subject) -> the document."""

    def run(chosen: list[SweepAttack], settings: SweepSettings = QUICK, **more: Any) -> dict[str, Any]:
        console = Console(file=io.StringIO())
        return sweep(subject(**more), chosen, settings, out=tmp_path / "out", console=console)

    return run


def test_numbers_stand_up_to_a_second_computation(swept: Sweep) -> None:
    document = swept(attacks("pgd10", "pgd5-l2"))
    whole = subject(batch_size=50)
    ((x, y, index, _),) = whole.source.batches(0)
    model, position = whole.model, whole.positions(index)
    natural = model(x).argmax(1) == y
    assert document["natural"] == pytest.approx(natural.double().mean().item())
    samples = document["per_sample"]
    assert samples["index"] == position.tolist() == [k * 359 // 50 for k in range(50)]
    assert samples["label"] == y.tolist()
    assert samples["correct"] == natural.int().tolist()
    for name, norm, steps in (("pgd10", "linf", 10), ("pgd5-l2", "l2", 5)):
        record = document["attacks"][name]
        for k, eps in enumerate(EPS):
            x_adv = (
                PGD(model, eps=eps, relative_step=0.25, steps=steps, norm=norm)(x, y, position) if eps else x
            )
            fooled = (model(x_adv).argmax(1) != y) | ~natural
            assert samples["fooled"][name][k] == fooled.int().tolist()
            assert record["accuracy"][k] == pytest.approx(1 - fooled.double().mean().item())
            order = {"linf": torch.inf, "l2": 2}[norm]
            longest = torch.linalg.vector_norm((x_adv - x)[natural].flatten(1).double(), order, dim=1).max()
            assert record["largest"][k] == pytest.approx(longest.item(), abs=1e-9)
            assert record["largest"][k] <= eps + 1e-6
        assert record["auc"] == pytest.approx(area(EPS, record["accuracy"]))
        assert record["gradients"] == {"zero": 0, "nonfinite": 0, "attacked": 3 * int(natural.sum())}
        assert record["attack"]["steps"] == steps
        assert (record["attack"]["step_size"], record["attack"]["relative_step"]) == (None, 0.25)


def test_the_worst_case_is_taken_image_by_image_and_norm_by_norm(swept: Sweep) -> None:
    document = swept(attacks("pgd3", "fgsm-rs", "square20", "pgd5-l2"))
    fooled = {name: torch.tensor(rows) for name, rows in document["per_sample"]["fooled"].items()}
    together = fooled["pgd3"] | fooled["fgsm-rs"] | fooled["square20"]
    worst = document["worst_case"]["linf"]
    assert worst["attacks"] == ["pgd3", "fgsm-rs", "square20"]
    assert worst["accuracy"] == pytest.approx((1 - together.double().mean(1)).tolist())
    assert worst["auc"] == pytest.approx(area(EPS, worst["accuracy"]))
    assert document["worst_case"]["l2"]["accuracy"] == document["attacks"]["pgd5-l2"]["accuracy"]


def test_the_worst_case_stands_where_all_attacks_were_run(swept: Sweep) -> None:
    chosen = [*attacks("pgd3"), *attacks("fgsm", eps=(0.0, 0.1, 0.3))]
    assert swept(chosen)["worst_case"]["linf"]["eps"] == [0.0, 0.1]


def test_an_attack_that_looks_for_the_nearest_image_runs_once(
    swept: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = DDN._run
    monkeypatch.setattr(DDN, "_run", lambda self, x, *rest: calls.append(len(x)) or run(self, x, *rest))
    grid = (0.0, 0.2, 0.4, 0.8)
    document = swept(attacks("ddn20", eps=grid))
    assert len(calls) == 4  # batches, whatever the number of radii
    distance = document["per_sample"]["distance"]["ddn20"]
    correct = document["per_sample"]["correct"]
    assert all((value == 0) == (not right) for value, right in zip(distance, correct, strict=True))
    for k, eps in enumerate(grid):
        assert document["per_sample"]["fooled"]["ddn20"][k] == [
            int(not right or (value is not None and 0 < value <= eps))
            for value, right in zip(distance, correct, strict=True)
        ]
    monkeypatch.undo()
    whole = subject(batch_size=50)
    ((x, y, index, _),) = whole.source.batches(0)
    x_adv = DDN(whole.model, eps=None, steps=20)(x, y, whole.positions(index))
    lengths = (x_adv - x).flatten(1).double().norm(dim=1)
    for value, length, right in zip(distance, lengths.tolist(), correct, strict=True):
        assert value is None or not right or value == pytest.approx(length, abs=1e-6)


def test_what_was_found_may_be_pulled_into_the_ball(swept: Sweep) -> None:
    grid = (0.0, 0.1, 0.3, 0.6)
    by_distance = swept(attacks("ddn5", eps=grid))
    pulled = swept(attacks("ddn5", eps=grid), SweepSettings(minimal="clip", probes=False))
    assert by_distance["per_sample"]["distance"] == pulled["per_sample"]["distance"]
    more = torch.tensor(pulled["per_sample"]["fooled"]["ddn5"])
    less = torch.tensor(by_distance["per_sample"]["fooled"]["ddn5"])
    # Five steps overshoot: part of the way back an image is still taken for another.
    assert (more >= less).all()
    assert more.sum() > less.sum()


def test_an_attack_that_finds_nothing_has_no_distance(swept: Sweep) -> None:
    document = swept(attacks("deepfool1-l2"), toy="quantised")
    distance = document["per_sample"]["distance"]["deepfool1-l2"]
    assert None in distance
    assert document["attacks"]["deepfool1-l2"]["accuracy"][-1] > 0


def test_monotone_attacks_only_what_is_left(swept: Sweep) -> None:
    # Random starts alone: what fools at one radius need not at a larger one.
    again = swept(attacks("pgd1", random_start=True))
    kept = swept(attacks("pgd1", random_start=True), SweepSettings(monotone=True, probes=False))
    rows = torch.tensor(kept["per_sample"]["fooled"]["pgd1"])
    assert (rows[1:] >= rows[:-1]).all()
    expected = torch.tensor(again["per_sample"]["fooled"]["pgd1"]).cummax(0).values
    assert torch.equal(rows, expected)
    right = [int(row.numel() - row.sum()) for row in rows]
    assert kept["attacks"]["pgd1"]["gradients"]["attacked"] == sum(right[:-1])
    assert again["attacks"]["pgd1"]["gradients"]["attacked"] == 3 * right[0]


def test_how_images_are_cut_into_batches_does_not_matter(swept: Sweep) -> None:
    chosen = attacks("pgd5", "square20", "ddn5", eps=(0.0, 0.05, 0.1))
    one, other = swept(chosen, batch_size=50), swept(chosen, batch_size=7)
    assert one["per_sample"] == other["per_sample"]
    assert one["attacks"] == other["attacks"]


def test_batches_of_few_sizes_find_the_same(swept: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where what is left of a batch is filled up with copies of its last image."""
    grid = (0.0, 0.1)
    chosen = [
        *attacks("pgd3", "ddn5", eps=grid),
        *attacks("autoattack", eps=grid, steps=5, queries=20),
    ]
    settings = SweepSettings(minimal="clip", monotone=True, probes=False)
    own = swept(chosen, settings, toy="quantised", images=24)
    sizes: list[int] = []

    def filled(done: torch.Tensor, *, static: bool) -> Any:
        found = remaining(done, static=True)
        sizes.append(len(found.rows) - found.count)
        return found

    monkeypatch.setattr(sweep_batches, "remaining", filled)
    other = swept(chosen, settings, toy="quantised", images=24)
    assert any(sizes)
    assert own == other


def test_an_image_is_attacked_alike_among_few_and_among_all(swept: Sweep) -> None:
    chosen = attacks("pgd3", eps=(0.0, 0.1))
    few, all_of_them = swept(chosen, images=50), swept(chosen, images=359, batch_size=256)
    at = {index: k for k, index in enumerate(all_of_them["per_sample"]["index"])}
    rows = [at[index] for index in few["per_sample"]["index"]]
    for mine, others in zip(
        few["per_sample"]["fooled"]["pgd3"], all_of_them["per_sample"]["fooled"]["pgd3"], strict=True
    ):
        assert mine == [others[k] for k in rows]


def test_attacks_with_bounds_of_their_own_stand_apart(swept: Sweep) -> None:
    document = swept([*attacks("pgd3"), *attacks("stadv3", eps=(0.0, 0.05, 0.1))])
    assert set(document["worst_case"]) == {"linf", "stadv"}
    assert document["attacks"]["stadv3"]["largest"] == [0.0, None, None]


def test_eps_0_alone_attacks_nothing(swept: Sweep) -> None:
    document = swept(attacks("pgd3", eps=(0.0,)))
    assert document["attacks"]["pgd3"]["accuracy"] == [document["natural"]]
    assert document["attacks"]["pgd3"]["auc"] is None
    assert document["attacks"]["pgd3"]["gradients"]["attacked"] == 0


def test_the_file_holds_the_document_and_a_line_for_each_row(tmp_path: Path, swept: Sweep) -> None:
    document = swept(attacks("pgd3", "ddn5"), SweepSettings())
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {"sweep.json", "sweep-linf.png", "sweep-l2.png"}
    # Through JSON, as it has no tuples.
    assert read(out / "sweep.json") == json.loads(json.dumps(document))
    text = (out / "sweep.json").read_text()
    assert f'"correct": {json.dumps(document["per_sample"]["correct"], separators=(",", ":"))}' in text
    for norm in ("linf", "l2"):
        image = imread(out / f"sweep-{norm}.png")
        assert image.shape[1] > 600
        assert image[..., :3].std() > 0.05


def test_another_sweep_replaces_the_one_before_and_says_so(tmp_path: Path) -> None:
    def said(chosen: list[SweepAttack], images: int = 20) -> str:
        console = Console(file=io.StringIO(), width=80)
        sweep(subject(images=images), chosen, QUICK, out=tmp_path, console=console)
        return console.file.getvalue()

    line = f"replaces the sweep of pgd2, pgd2-l2 in {tmp_path}; --out takes another folder\n"
    both = attacks("pgd2", "pgd2-l2", eps=(0.0, 0.1, 0.2))
    assert "replaces the" not in said(both)
    assert "replaces the" not in said(both)
    old = (tmp_path / "sweep-linf.png").read_bytes()
    # What is not the sweep's is left alone.
    for name in ("sweep-mine.png", "autoattack-l2.png"):
        (tmp_path / name).write_text("mine")
    kept = {"sweep.json", "sweep-mine.png", "autoattack-l2.png"}
    assert said(attacks("pgd3", eps=(0.0, 0.1, 0.2))).startswith(line)
    assert {file.name for file in tmp_path.iterdir()} == kept | {"sweep-linf.png"}
    assert (tmp_path / "sweep-linf.png").read_bytes() != old
    # Of one radius there is no curve, and none of other numbers may stay.
    printed = said(attacks("pgd3", eps=(0.0, 0.1)))
    assert "replaces the sweep of pgd3 in" in printed
    assert {file.name for file in tmp_path.iterdir()} == kept
    assert "replaces the sweep of pgd3 in" in said(attacks("pgd3", eps=(0.0, 0.1)), images=21)
    assert "replaces the" not in said(attacks("pgd3", eps=(0.0, 0.1)), images=21)
    for damaged in ("{", '{"attacks": [], "worst_case": 0, "warnings": 0}'):
        (tmp_path / "sweep.json").write_text(damaged)
        assert "replaces the" not in said(both)


def test_what_is_printed(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    document = sweep(subject(), attacks("pgd3", "fgsm"), QUICK, out=tmp_path, console=console)
    printed = console.file.getvalue()
    for words in ("50 test images, linf (percent)", "grid 0, 0.05, 0.1, 0.2", "all of them", "zero gradient"):
        assert words in printed
    auc = document["attacks"]["pgd3"]["auc"]
    row = next(line for line in printed.splitlines() if line.startswith("pgd3"))
    assert f"{auc:.4f}" in row
    assert f"{100 * document['natural']:.2f}" in row
    assert eps_labels([0, 8 / 255, 0.1, 5.0]) == ["0", "8/255", "0.1", "5"]


class KilledError(Exception):
    """Stands for a kill: nothing catches it."""


def test_an_interrupted_sweep_goes_on_and_ends_in_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = attacks("pgd3", "square10", "ddn5", eps=(0.0, 0.05, 0.1))
    quiet, after = Console(quiet=True), 9
    sweep(subject(), chosen, out=tmp_path / "whole", console=quiet)
    calls: list[str] = []
    attack = Attack._attack

    def counted(self: Attack, *args: Any, **keywords: Any) -> torch.Tensor:
        calls.append(self.name)
        if stop and len(calls) > after:
            raise KilledError
        return attack(self, *args, **keywords)

    monkeypatch.setattr(Attack, "_attack", counted)
    stop = True
    with pytest.raises(KilledError):
        sweep(subject(), chosen, out=tmp_path / "part", console=quiet)
    partial = tmp_path / "part" / "sweep.partial"
    kept = len(list(partial.iterdir()))
    assert kept
    # What a kill leaves in the middle of a write, and what a disk may do.
    next(partial.glob("*.json")).write_text("{")
    (partial / "half.0.json.partial").write_text("{")
    stop, calls[:] = False, []
    sweep(subject(), chosen, out=tmp_path / "part", console=quiet)
    resumed = len(calls)
    calls.clear()
    sweep(subject(), chosen, out=tmp_path / "again", console=quiet)
    assert 0 < resumed < len(calls)
    for name in ("sweep.json", "sweep-linf.png", "sweep-l2.png"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [file.name for file in partial.iterdir()] == ["half.0.json.partial"]
    assert not (tmp_path / "again" / "sweep.partial").exists()


@pytest.mark.parametrize(("after", "then"), [(0, False), (2, True)])
def test_ctrl_c_says_how_to_go_on_where_something_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
    then: bool,
) -> None:
    calls: list[str] = []
    attack = Attack._attack

    def stopped(self: Attack, *args: Any, **keywords: Any) -> torch.Tensor:
        calls.append(self.name)
        if len(calls) > after:
            raise KeyboardInterrupt
        return attack(self, *args, **keywords)

    monkeypatch.setattr(Attack, "_attack", stopped)
    quiet = Console(quiet=True)
    code = main_wrapper(
        lambda argv: sweep(subject(), attacks("pgd2"), QUICK, out=tmp_path, console=quiet), []
    )
    assert code == 130
    folder = tmp_path / "sweep.partial"
    more = f", what is done is kept in {folder}: the same command goes on from there" if then else ""
    assert capsys.readouterr().err == f"stopped by SIGINT{more}\n"
    assert folder.exists() == then


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """taken(subject, attacks, settings) -> for each piece of a sweep whether it was taken from those before it."""
    monkeypatch.setattr(PartialResults, "clear", lambda self: None)
    find = PartialResults.find

    def run(
        chosen: Subject, named: list[SweepAttack] | None = None, settings: SweepSettings = QUICK
    ) -> list[bool]:
        found: list[bool] = []

        def watched(self: PartialResults, *args: Any) -> dict[str, Any] | None:
            record = find(self, *args)
            found.append(record is not None)
            return record

        monkeypatch.setattr(PartialResults, "find", watched)
        named = attacks("pgd3", eps=(0.0, 0.1)) if named is None else named
        sweep(chosen, named, settings, out=tmp_path, console=Console(quiet=True))
        return found

    return run


def test_pieces_of_another_sweep_are_not_taken(taken: Callable[..., list[bool]]) -> None:
    def small(images: int = 20, batch_size: int = 10, **more: Any) -> Subject:
        return subject(images=images, batch_size=batch_size, **more)

    assert taken(small()) == [False, False]
    assert taken(small()) == [True, True]
    for other in (
        (small(arguments=["scale=2.0"]),),
        (small(images=19),),
        (small(batch_size=20),),
        (small(), attacks("pgd4", eps=(0.0, 0.1))),
        (small(), attacks("pgd3", eps=(0.0, 0.11))),
        (small(), None, SweepSettings(seed=1, probes=False)),
        (small(), None, SweepSettings(monotone=True, probes=False)),
    ):
        assert not any(taken(*other))
    assert taken(small()) == [True, True]


def test_pieces_of_another_model_of_the_same_weights_are_not_taken(
    tmp_path: Path, taken: Callable[..., list[bool]]
) -> None:
    def model(file: str = "a", **more: Any) -> Subject:
        return model_subject(
            f"{tmp_path / file}.py:f", dataset="digits", images=16, device="cpu", batch_size=8, **more
        )

    text = TOYS.read_text() + "\n\ndef f(t=0):\n    return Rolled(t)\n"
    (tmp_path / "a.py").write_text(text)
    one, two = (model(arguments=[f"t={t}"]) for t in (1, 2))
    assert weights_digest(one.model) == weights_digest(two.model)
    assert taken(one) == [False, False]
    assert taken(two) == [False, False]
    assert taken(one) == taken(two) == [True, True]
    # By what it says of the images alone: the same name, arguments, weights and code.
    for shift, found in ((1, True), (3, False)):
        one.model.shift = shift
        assert taken(one) == [found, found]
    # By its code alone, which may change gradients and no logits.
    for added, found in (("", True), ("# another\n", False)):
        (tmp_path / "a.py").write_text(text + added)
        assert taken(model(arguments=["t=2"])) == [found, found]
    # By its name alone.
    (tmp_path / "b.py").write_text(text)
    (tmp_path / "a.py").write_text(text)
    same = model("b", arguments=["t=2"])
    assert code_digest(same.model) == code_digest(two.model)
    assert taken(same) == [False, False]


def test_pieces_of_a_random_model_are_taken(taken: Callable[..., list[bool]]) -> None:
    settings = SweepSettings()
    assert taken(subject("noisy", images=16, batch_size=8), None, settings) == [False] * 4
    assert taken(subject("noisy", images=16, batch_size=8), None, settings) == [True] * 4


def test_a_digest_of_code_sees_every_class_and_no_torch(tmp_path: Path) -> None:
    wrapped = torch.nn.Sequential(imported_model(f"{TOYS}:digits"))
    assert code_digest(wrapped) == code_digest(imported_model(f"{TOYS}:digits"))
    assert code_digest(wrapped) == code_digest(imported_model(f"{TOYS}:plain"))
    assert code_digest(wrapped) != code_digest(torch.nn.Linear(2, 2)) == code_digest(torch.nn.ReLU())
    for text in ("f = lambda: (lambda x: x)\n", "f = lambda: (lambda x: -x)\n"):
        (tmp_path / f"m{len(text)}.py").write_text(text)
    ours, other = (
        imported_model(f"{tmp_path / name}.py:f") for name in sorted(p.stem for p in tmp_path.glob("m*"))
    )
    assert code_digest(ours) != code_digest(other)


def test_other_images_of_the_same_number_are_not_taken(tmp_path: Path) -> None:
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    pieces = PartialResults(tmp_path)
    pieces.keep("a", 0, data_digest(x, y), {"value": 0.1 + 0.2})
    assert pieces.find("a", 0, data_digest(x, y)) == {"value": 0.1 + 0.2}
    assert pieces.find("a", 0, data_digest(1 - x, y)) is None
    assert pieces.find("a", 0, data_digest(x, 1 - y)) is None
    assert pieces.find("a", 1, data_digest(x, y)) is None
    PartialResults(None).keep("a", 0, "", {})


def test_a_digest_of_weights_sees_each_of_them() -> None:
    one, other = imported_model(f"{TOYS}:digits"), imported_model(f"{TOYS}:digits")
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other.bias[3] = torch.nextafter(other.bias[3], torch.tensor(1e9, dtype=torch.float64))
    assert weights_digest(one) != weights_digest(other)
    assert weights_digest(one) != weights_digest(imported_model(f"{TOYS}:quantised"))
    # A bound method's module is seen, a lambda's is not.
    assert weights_digest(one.forward) != weights_digest(other.forward)
    assert weights_digest(lambda x: one(x)) == weights_digest(lambda x: one(x))


def test_model_modes_and_random_state_are_left_alone(tmp_path: Path) -> None:
    chosen = subject("noisy")
    chosen.model.train()
    before = torch.random.get_rng_state()
    sweep(chosen, attacks("pgd2"), out=tmp_path, console=Console(quiet=True))
    assert chosen.model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in chosen.model.parameters())


def test_a_function_that_is_no_module_is_swept_and_arguments_of_the_function(swept: Sweep) -> None:
    module = swept(attacks("pgd3"))
    assert swept(attacks("pgd3"), toy="plain")["attacks"] == module["attacks"]
    found = swept(attacks("pgd3"), arguments=["scale=0.5"])
    assert found["model_args"] == ["scale=0.5"]
    assert found["natural"] == module["natural"]
    assert found["weights"] != module["weights"]


def test_a_model_that_works_in_place_is_named_not_the_pixels(swept: Sweep) -> None:
    """Its second pass, or the attack, would see pixels that it has spoiled itself."""
    with pytest.raises(
        UserError, match=r"toy_models\.py:in_place: the model changes the images it is given in place"
    ):
        swept(attacks("square10"), toy="in_place")


def test_what_autoattack_makes_of_few_classes_is_said_once(
    swept: Sweep, recwarn: pytest.WarningsRecorder
) -> None:
    chosen = attacks("autoattack", eps=(0.0, 0.05, 0.1), steps=2, queries=2)
    found = swept(chosen, toy="three", images=12, batch_size=6, num_classes=3)["warnings"]
    notes = [warning for warning in found if warning["check"] == "few-classes"]
    assert [(note["part"], note["classes"]) for note in notes] == [("apgd-t", 3), ("fab-t", 3)]
    assert notes[0]["text"] == (
        "autoattack: apgd-t with 3 classes: the targeted DLR loss needs 4, so it goes by the margin to the target; "
        "there are no more than 2 targets"
    )
    assert not [warning for warning in recwarn if "autoattack" in str(warning.message)]
    ten = swept(chosen, images=12)["warnings"]
    assert "few-classes" not in [warning["check"] for warning in ten]


@pytest.mark.parametrize(
    ("toy", "more", "words"),
    [
        ("nothing", {}, "has no function nothing"),
        ("words", {}, "returned str, expected a module"),
        (
            "five",
            {},
            "returned 5 logits, the data set has 10 classes; if that is meant, give --num-classes 5",
        ),
        ("digits", {"images": 360}, "--images 360: expected 1 to 359"),
        ("digits", {"arguments": ["scale"]}, "--model-args scale: expected name=value"),
        ("digits", {"arguments": ["size=3"]}, "cannot be called with these arguments"),
        ("digits", {"batch_size": 0}, "batch size is 0"),
    ],
)
def test_mistakes_about_the_model_are_one_line(toy: str, more: dict, words: str) -> None:
    with pytest.raises(UserError) as mistake:
        subject(toy, **more)
    assert words in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_logits_of_another_number_may_be_meant() -> None:
    assert subject("five", num_classes=5).images == 50


@pytest.mark.parametrize("spec", ["digits", ":digits", "module:", "no_such_module:f", "no_such_file.py:f"])
def test_a_wrong_spec_is_one_line(spec: str) -> None:
    with pytest.raises(UserError, match=f"--model {spec}"):
        imported_model(spec)


def test_mistakes_about_the_sweep_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say where its numbers go with --out"):
        sweep(subject(), attacks("pgd3"), console=Console(quiet=True))
    with pytest.raises(UserError, match="no attack"):
        sweep(subject(), [], out=tmp_path, console=Console(quiet=True))
    with pytest.raises(UserError, match="--eot 0"):
        SweepSettings(eot=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        sweep(subject(), attacks("pgd3"), out=tmp_path / "file", console=Console(quiet=True))


class OtherWeights(World):
    """Stands for processes of which the other one holds another model."""

    def gather(self, value: Any) -> list[Any]:
        return [value, "another"]


def test_processes_with_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the processes hold different weights"):
        sweep(subject(), attacks("pgd3"), out=tmp_path, console=Console(quiet=True), world=OtherWeights())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"protocol": "aat"}'])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sweep.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json"):
        read(file)


def test_averaged_gradients_go_to_every_attack() -> None:
    """To those that have no setting for it through the model."""
    work = BatchWork(
        subject("noisy"), attacks("pgd2", "apgd-ce"), SweepSettings(eot=3), "", PartialResults(None)
    )
    averaged, own = (work._attack(number, 1) for number in range(2))
    assert isinstance(averaged.model, MeanOfPasses)
    assert (own.model, own.eot) == (work.model, 3)
    assert parse("apgd-ce").takes("eot")
