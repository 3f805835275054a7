"""Detection tables: which images are kept, what noise they get, known and unseen attacks, from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.cdvae import detection, detection_samples, detection_scores
from robustfast.evaluation.cdvae.classifiers import classifiers, split_network
from robustfast.evaluation.cdvae.detection import METRICS, detected
from robustfast.evaluation.cdvae.detection_samples import ATTACKS, attacks, kept, noisy, samples
from robustfast.evaluation.cdvae.detection_scores import PartDetectors, layers_of, scored
from robustfast.evaluation.cdvae.detection_table import detection_tables
from robustfast.evaluation.detectors import LocalIntrinsicDimensionality, Samples
from robustfast.evaluation.detectors.parts import part_model
from robustfast.evaluation.parts import PartContext
from robustfast.evaluation.pieces import Pieces
from robustfast.models.class_disentangled import Normalisation

Context = Callable[..., PartContext]


@pytest.fixture
def x_and_r(
    context_of: Context, runs: Callable[[str], Path]
) -> Callable[..., tuple[PartContext, dict[str, Any]]]:
    """x_and_r(images=N) -> context and classifiers of x and x - G(x), as models."""

    def build(**request: Any) -> tuple[PartContext, dict[str, Any]]:
        context = context_of("cdvae", source=str(runs("x")), **request)
        network, found = split_network(context.run), classifiers(context)
        return context, {part: part_model(network, part, found[part]) for part in "xr"}

    return build


# Which images.


def test_kept_are_those_right_as_they_are_and_with_noise_and_wrong_under_attack() -> None:
    labels = torch.tensor([1, 1, 1, 1, 2])
    clean = torch.tensor([[0.0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).argmax(1)
    with_noise = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 0, 1]]).argmax(1)
    attacked = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]).argmax(1)
    assert kept(labels, clean, with_noise, attacked).tolist() == [True, False, False, False, True]


def test_noise_has_its_level_in_normalised_space_and_follows_the_position() -> None:
    normalisation = Normalisation((0.5, 0.4), (0.2, 0.3))
    x = torch.full((40, 2, 20, 20), 0.5)
    at = torch.arange(40)
    images = noisy(x, 0.1, at, normalisation, seed=3)
    moved = normalisation(images) - normalisation(x)
    assert moved.std().item() == pytest.approx(0.1, rel=0.02)
    assert (images - x)[:, 1].std().item() == pytest.approx(0.03, rel=0.03)
    assert torch.equal(noisy(x[7:9], 0.1, at[7:9], normalisation, seed=3), images[7:9])
    assert not torch.equal(noisy(x, 0.1, at, normalisation, seed=4), images)
    bright = noisy(torch.ones_like(x), 1.0, at, normalisation, seed=3)
    assert bright.max() == 1
    assert bright.min() >= 0


def test_the_attacks_are_the_papers(x_and_r: Any) -> None:
    context, models = x_and_r(images=4)
    found = attacks(models["r"], context)
    assert tuple(found) == ATTACKS
    assert [attack.steps for attack in found.values()] == [1, 5, 5, 5, 5]
    assert [attack.law for attack in found.values()] == [None, None, "ball", "ball", "ball"]
    assert [attack.relative_step for attack in found.values()] == [1.0, *[5**-0.5] * 4]
    assert found["cw"].kappa == 1000
    assert [attack.norm for attack in found.values()] == ["linf"] * 4 + ["l2"]
    few = replace(context, request=replace(context.request, steps=2))
    assert attacks(models["r"], few)["bim"].relative_step == 2**-0.5


def test_samples_are_what_the_classifiers_say_of_them(x_and_r: Any) -> None:
    """Chosen again by hand, from the images that come with them: the attack goes through G."""
    context, models = x_and_r(images=60)
    for part, model in models.items():
        found = samples(context, Pieces(context, "test"), model, "bim")
        x, y, positions = (torch.cat(values) for values in zip(*context.batches(), strict=True))
        triple = found.triple(x, y, positions)
        with torch.no_grad():
            clean, noise, attacked = (
                model(images).argmax(1) for images in (triple.clean, triple.noisy, triple.attacked)
            )
        mask = (clean == y) & (noise == y) & (attacked != y)
        assert 0 < mask.sum() < 60, part
        assert found.positions.tolist() == positions[mask].tolist()
        assert found.numbers["kept"] == int(mask.sum())
        assert found.numbers["attacked"] == (attacked == y).double().mean().item()
        assert found.numbers["noise"] == 0.065
        assert found.numbers["attack"]["attack"] == "bim"


def test_equal_noise_is_as_long_as_the_attack(x_and_r: Any) -> None:
    context, models = x_and_r(images=50)
    found = samples(context, Pieces(context, "test"), models["r"], "pgd-linf", rule="equal")
    assert found.numbers["noise_l2"] == pytest.approx(found.numbers["attack_l2"], rel=1e-3)
    assert found.level > 0.1


# Where detectors look, and on what.


def test_layers_are_the_taps_of_the_encoder_wherever_the_classifier_stands(x_and_r: Any) -> None:
    _, models = x_and_r()
    assert layers_of(models["x"]) == tuple(
        f"classifier.encoder.{tap}" for tap in models["x"].classifier.encoder.taps
    )
    own = dict(models["r"].named_modules())
    assert [own[name] for name in layers_of(models["r"])] == [
        models["r"].classifier.encoder.get_submodule(tap) for tap in models["r"].classifier.encoder.taps
    ]


def test_blocks_give_the_scores_that_all_images_at_once_give(
    x_and_r: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also LID of a last block that is short, which is held against the images before it."""
    monkeypatch.setattr(detection_scores, "BLOCK", 32)
    context, models = x_and_r(images=90)
    whole = Pieces(context, "test")
    found = samples(context, whole, models["r"], "pgd-linf")
    count = len(found.positions)
    assert count > 64
    assert count % 32
    fitted = PartDetectors(context, models["r"])
    given = {
        x_name: torch.cat(
            [getattr(found.triple(*batch), x_name) for batch in _picked(context, found.positions)]
        )
        for x_name in ("clean", "noisy", "attacked")
    }
    candidates, reason = scored(whole, fitted, "lid", found, work="lid")
    assert reason is None
    assert list(candidates) == [10, 20, 30]
    lid = LocalIntrinsicDimensionality(layers_of(models["r"]), batch_size=32).fit(
        models["r"], context.batches(context.training_split)
    )
    for kind, name in {"clean": "clean", "noisy": "noisy", "attacked": "adversarial"}.items():
        expected = lid.sweep(given[kind], (10, 20, 30), reference=given["clean"])
        for k in (10, 20, 30):
            torch.testing.assert_close(getattr(candidates[k], name), expected[k], rtol=1e-3, atol=1e-3)
    candidates, _ = scored(whole, fitted, "md", found, work="md")
    expected = fitted.fitted("md").sweep(given["attacked"], (0.0, 0.01))
    assert len(candidates) == 7
    torch.testing.assert_close(candidates[0.01].adversarial, expected[0.01], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(candidates[0.01].adversarial, candidates[0.0].adversarial)


def _picked(context: PartContext, positions: Tensor) -> Any:
    from robustfast.evaluation.picked import picked

    return picked(context, positions)


def test_what_is_scored_is_not_scored_again(x_and_r: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context, models = x_and_r(images=40)
    whole = Pieces(context, "again")
    found = samples(context, whole, models["r"], "fgsm")
    first, _ = scored(whole, PartDetectors(context, models["r"]), "md", found, work="md")
    monkeypatch.setattr(PartDetectors, "fitted", lambda *_: pytest.fail("fitted again"))
    monkeypatch.setattr(detection_samples, "eval_mode", lambda *_: pytest.fail("attacked again"))
    again = Pieces(context, "again")
    found = samples(context, again, models["r"], "fgsm")
    second, _ = scored(again, PartDetectors(context, models["r"]), "md", found, work="md")
    assert torch.equal(first[0.001].adversarial, second[0.001].adversarial)
    again.partial.clear()
    assert not again.partial.folder.exists()


# Numbers.


def candidates(count: int, apart: float, *, seed: int, first: int = 0) -> dict[float, Samples]:
    """Scores of two layers: under the setting 2.0 adversarial ones lie lower by `apart`, under 1.0 they do not."""
    draws = torch.Generator().manual_seed(seed)
    one, two, three = (torch.randn(count, 2, generator=draws, dtype=torch.float64) for _ in range(3))
    positions = torch.arange(first, first + count)
    return {1.0: Samples(one, two, three, positions), 2.0: Samples(one, two, three - apart, positions)}


def of_scores(monkeypatch: pytest.MonkeyPatch, scores: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one detector where its scores of each attack are these."""
    monkeypatch.setattr(
        detection,
        "samples",
        lambda context, kept, model, attack, rule: SimpleNamespace(name=attack, numbers={"kept": 1}),
    )
    monkeypatch.setattr(detection, "scored", lambda kept, fitted, name, turned, work: scores[turned.name])
    monkeypatch.setattr(
        detection,
        "PartDetectors",
        lambda context, model, names: SimpleNamespace(model=model, names=names, layers=None),
    )
    model = SimpleNamespace(part="r")
    return detected(SimpleNamespace(context=None), {"r": model}, names=("md",))  # type: ignore[arg-type, dict-item]


def test_known_and_unseen_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = {"fgsm": 4.0, "bim": 4.0, "cw": 0.0, "pgd-linf": 4.0, "pgd-l2": -4.0}
    scores = {
        name: (candidates(200, by, seed=number), None) for number, (name, by) in enumerate(apart.items())
    }
    numbers = of_scores(monkeypatch, scores)
    known, unseen = (
        {name: rows["md"]["r"] for name, rows in numbers[key].items()} for key in ("known", "unseen")
    )
    assert known["fgsm"]["auroc"] > 0.99
    assert known["fgsm"]["setting"] == 2.0
    assert known["fgsm"]["kept"] == 200
    assert 0.3 < known["cw"]["auroc"] < 0.7
    # A regression of its own turns its scores round; that of FGSM takes the attacked images for the cleanest.
    assert known["pgd-l2"]["auroc"] > 0.99
    assert list(unseen) == ["bim", "cw", "pgd-linf", "pgd-l2"]
    assert unseen["bim"]["auroc"] > 0.99
    assert unseen["pgd-l2"]["auroc"] < 0.01
    assert numbers["mean_over"]["md"] == list(ATTACKS)
    own = [row["auroc"] for row in known.values()]
    assert numbers["mean"]["md"]["r"]["auroc"] == pytest.approx(sum(own) / 5)


def test_too_few_images_are_said_and_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[str, Any] = {name: (candidates(200, 4.0, seed=1), None) for name in ATTACKS}
    scores["cw"] = (candidates(60, 4.0, seed=2), None)
    scores["bim"] = (None, "no image was kept")
    numbers = of_scores(monkeypatch, scores)
    known, unseen = (numbers[key] for key in ("known", "unseen"))
    for found in (known["cw"]["md"]["r"], known["bim"]["md"]["r"], unseen["bim"]["md"]["r"]):
        assert [found[name] for name in METRICS] == [None] * 5
    assert known["cw"]["md"]["r"]["reason"].startswith("60 images with a pool of 0.1: expected")
    assert known["cw"]["md"]["r"]["kept"] == 60
    assert known["bim"]["md"]["r"]["reason"] == "no image was kept"
    assert numbers["mean_over"]["md"] == ["fgsm", "pgd-linf", "pgd-l2"]
    scores["fgsm"] = (None, "no image was kept")
    assert (
        of_scores(monkeypatch, scores)["unseen"]["pgd-l2"]["md"]["r"]["reason"] == "fgsm: no image was kept"
    )


def test_a_detector_that_cannot_be_fitted_says_why(x_and_r: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context, models = x_and_r(images=40)
    whole = Pieces(context, "test")
    found = samples(context, whole, models["r"], "fgsm")
    split = context.training_split
    few = replace(context)
    few.__dict__["training_split"] = split.take((split.labels > 2).nonzero().flatten())
    scores, reason = scored(whole, PartDetectors(few, models["r"]), "md", found, work="few")
    assert scores is None
    assert reason.startswith("class 0 has 0 samples")
    whole.partial.clear()


# From end to end.


def test_the_tables_of_a_run(
    x_and_r: Any, monkeypatch: pytest.MonkeyPatch, printed: Callable[[Table], str]
) -> None:
    """Of two attacks, on x and x - G(x): numbers, tables, and nothing left behind."""
    monkeypatch.setattr(detection, "ATTACKS", ("fgsm", "pgd-linf"))
    monkeypatch.setattr(detection_scores, "MAGNITUDES", (0.0, 0.001))
    monkeypatch.setattr(detection_scores, "NEIGHBOURS", (10, 20))
    context, _ = x_and_r(images=200, steps=3)
    result = detection.PART.make(context)
    numbers = result.numbers
    assert list(numbers["known"]) == ["fgsm", "pgd-linf"]
    for name in ("kd", "lid", "md"):
        rows = numbers["known"]["pgd-linf"][name]
        assert list(rows) == ["x", "r"]
        for row in (rows["x"], rows["r"], numbers["unseen"]["pgd-linf"][name]["r"]):
            assert all(0 <= row[metric] <= 1 for metric in METRICS), row
            assert 100 <= row["kept"] <= 200
        assert rows["r"]["auroc"] > 0.6, name
    assert numbers["known"]["fgsm"]["lid"]["r"]["setting"] in range(10, 100, 10)
    assert numbers["samples"]["fgsm"]["r"]["noise"] == 0.0625
    assert numbers["noise"] == "fixed"
    text = "".join(map(printed, result.tables))
    assert "KD (R)" in text
    assert "unseen attacks" in text
    assert not (context.folder / "cdvae-detection.partial").exists()


def test_few_images_make_a_table_without_numbers(x_and_r: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "ATTACKS", ("fgsm",))
    context, _ = x_and_r(images=20)
    numbers = detection.PART.make(context).numbers
    found = numbers["known"]["fgsm"]["md"]["r"]
    assert found["auroc"] is None
    assert "images with a pool of 0.1: expected 5 or more" in found["reason"]
    assert numbers["mean"]["md"]["r"]["auroc"] is None
    assert len(detection_tables(numbers, "run")) == 5


def test_a_reason_is_one_line_however_many_cells_it_explains() -> None:
    def cells(**reasons: str) -> dict[str, Any]:
        return {
            attack: {"md": {"r": {"auroc": None, "reason": reason}}} for attack, reason in reasons.items()
        }

    numbers = {
        "samples": {},
        "known": cells(**{"fgsm": "7 images: few", "bim": "no image was kept", "pgd-l2": "12 images: few"}),
        "unseen": cells(**{"bim": "no image was kept", "pgd-l2": "fgsm: 7 images: few"}),
        "unseen_from": "fgsm",
        **{key: {"md": {"r": {"auroc": None}}} for key in ("mean", "unseen_mean")},
    }
    _, tnr, known, _, unseen = detection_tables(numbers, "run")
    assert tnr.caption is None
    assert known.caption == "-: 7 to 12 images: few\n-: no image was kept"
    assert unseen.caption == "-: no image was kept\n-: 7 images: few"


def test_tables_fit_into_80_columns(printed: Callable[[Table], str]) -> None:
    """Of all attacks and parts, with the widest numbers: what is piped has no more columns."""
    attacks = ("fgsm", "bim", "cw", "pgd-linf", "pgd-l2")
    best = {name: {part: {"tnr": 1.0, "auroc": 0.99994} for part in "xgr"} for name in ("kd", "lid", "md")}
    own = {"clean": 1.0, "noisy": 1.0, "attacked": 1.0, "kept": 50000}
    own |= {"noise": 0.0625, "noise_l2": 123.456, "attack_l2": 123.456}
    numbers = {
        "samples": {attack: dict.fromkeys("xgr", own) for attack in attacks},
        **{key: dict.fromkeys(attacks, best) for key in ("known", "unseen")},
        "mean": best,
        "unseen_mean": best,
        "unseen_from": "fgsm",
    }
    _, *pairs = tables = detection_tables(numbers, "a-run-with-a-long-name")
    texts = [printed(table) for table in tables]
    for word in ("attacked", "kept", "attack's l2", "50000", "123.456", "0.0625"):
        assert word in texts[0]
    for table, text, title, number in zip(
        pairs, texts[1:], ("TNR", "AUROC") * 2, ("100.00", "99.99") * 2, strict=True
    ):
        assert title in str(table.title)
        assert text.count(number) == 9 * 6
        assert "PGD linf" in text


def test_equal_noise_is_made_where_it_is_named_alone(context_of: Context) -> None:
    context = context_of("cdvae")
    reason = detection.EQUAL_NOISE.obstacle(context.run, context.request)
    assert reason == "made where it is asked for: --parts detection-equal-noise"
    named = replace(context.request, parts=("detection-equal-noise",))
    assert detection.EQUAL_NOISE.obstacle(context.run, named) is None


def test_a_run_without_an_auto_encoder_has_no_such_part(context_of: Context) -> None:
    context = context_of("x")
    assert "has no auto-encoder" in detection.PART.obstacle(context.run, context.request)
