"""Signs of masked gradients: found on models that mask, with the right numbers, and not on one that does not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from robustfast.attacks import APGD
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import parse_all
from robustfast.evaluation.masking import Curve, find_warnings, probe, randomness, stronger
from robustfast.evaluation.subject import imported_model, model_subject
from robustfast.evaluation.sweep import sweep
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings

TOYS = Path(__file__).parent / "toy_models.py"
SOUND = {
    "images": 4,
    "unbounded": 0,
    "few": [0, 0, 1, 0],
    "many": [1, 1, 1, 0],
    "rose": 4,
    "zero": 0,
    "nonfinite": 0,
    "eps": 0.1,
}


def fooled(*counts: int, of: int = 100) -> torch.Tensor:
    """The first so many of the images at each eps."""
    return torch.arange(of)[None] < torch.tensor(counts)[:, None]


def curve(name: str, kind: str, *counts: int, norm: str = "linf", **more) -> Curve:
    return Curve(name, kind, norm, [0.0, 0.1, 0.2][: len(counts)], fooled(*counts), **more)


def checks(warnings: list[dict]) -> list[str]:
    return [warning["check"] for warning in warnings]


def test_a_single_step_that_is_stronger_than_many():
    curves = [curve("fgsm", "single-step", 5, 40, 60), curve("pgd", "iterative", 5, 35, 30)]
    (warning,) = find_warnings(curves, None, None)
    assert warning["check"] == "single-step-stronger"
    assert (warning["attack"], warning["against"], warning["norm"], warning["eps"]) == (
        "fgsm",
        "pgd",
        "linf",
        0.2,
    )
    assert warning["accuracy"] == [0.4, 0.7]
    for words in ("fgsm (single-step)", "40.00%", "70.00%", "eps 0.2"):
        assert words in warning["text"]


def test_the_strongest_rival_counts_and_the_norm():
    weak, strong = curve("pgd1", "iterative", 0, 10, 10), curve("pgd2", "iterative", 0, 60, 80)
    assert find_warnings([curve("fgsm", "single-step", 0, 60, 70), weak, strong], None, None) == []
    other = curve("pgd-l2", "iterative", 0, 0, 0, norm="l2")
    assert find_warnings([curve("fgsm", "single-step", 0, 60, 70), other], None, None) == []


@pytest.mark.parametrize(
    ("kind", "check"), [("black-box", "black-box-stronger"), ("noise", "noise-stronger")]
)
def test_who_sees_less_finds_more(kind, check):
    blind = curve("blind", kind, 5, 50, 90)
    assert checks(find_warnings([blind, curve("pgd", "iterative", 5, 20, 90)], None, None)) == [check]
    assert checks(find_warnings([blind, curve("fgsm", "single-step", 5, 20, 90)], None, None)) == [check]
    assert find_warnings([blind], None, None) == []


def test_chance_is_no_warning():
    ours, theirs = torch.zeros(2, 1000, dtype=torch.bool)
    ours[:4] = True
    assert not stronger(ours, theirs)
    ours[:5] = True
    assert stronger(ours, theirs)
    assert not stronger(theirs, ours)
    # Twenty more of a hundred on which they differ is two deviations exactly.
    ours, theirs = torch.arange(1000) < 60, (torch.arange(1000) >= 60) & (torch.arange(1000) < 100)
    assert not stronger(ours, theirs)
    theirs[99] = False
    assert stronger(ours, theirs)


def test_probes():
    assert find_warnings([], SOUND, None) == []
    (warning,) = find_warnings([], {**SOUND, "unbounded": 3}, None)
    assert (warning["check"], warning["right"], warning["images"]) == ("accuracy-at-unbounded-eps", 3, 4)
    assert "3 of 4 images" in warning["text"]
    (warning,) = find_warnings([], {**SOUND, "zero": 1}, None)
    assert (warning["check"], warning["zero"], warning["images"]) == ("zero-gradients", 1, 4)
    assert "25.00%" in warning["text"]


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"unbounded": 1}, "1 stay right even at eps 1"),
        ({"zero": 3, "nonfinite": 4}, "7 have a gradient that is zero or not finite"),
        ({"rose": 63}, "the loss rose with the steps for 63 only"),
    ],
)
def test_many_steps_that_find_no_more_than_two_are_a_sign_beside_another(sign, words):
    robust = {**SOUND, "images": 128, "few": [0] * 128, "many": [0] * 128, "rose": 128}
    # What withstands at this eps gives these numbers as well, as does a share below each threshold.
    assert find_warnings([], robust, None) == []
    assert find_warnings([], {**robust, "zero": 3, "nonfinite": 3, "rose": 64}, None) == []
    found = find_warnings([], {**robust, **sign}, None)
    (warning,) = [warning for warning in found if warning["check"] == "no-decline-with-steps"]
    assert warning["right"] == [128, 128]
    assert words in warning["text"]
    # Neither two steps that break everything, nor twenty that find more, are one.
    for outcome in ({"few": [1] * 128, "many": [1] * 128}, {"many": [1] + [0] * 127}):
        found = find_warnings([], {**robust, **sign, **outcome}, None)
        assert "no-decline-with-steps" not in checks(found)


def test_a_model_that_withstands_is_not_suspected():
    """Bright images from dark ones: no change of a pixel by 0.1 does anything, and none by 1 is withstood."""

    def model(x):
        bright = x.flatten(1).double().mean(1) - 0.5
        return torch.stack([-bright, bright], 1)

    y = torch.arange(128) % 2
    x = torch.where(y.bool(), 0.8, 0.2)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    found = probe(model, x, y, torch.arange(128), eps=0.1, seed=0)
    assert sum(found["few"]) == sum(found["many"]) == found["unbounded"] == 0
    assert found["rose"] == found["images"] == 128
    assert find_warnings([], {**found, "eps": 0.1}, None) == []


def test_zero_gradients_of_an_attack():
    few, many = {"zero": 5, "attacked": 100}, {"zero": 6, "attacked": 100}
    assert find_warnings([curve("pgd", "iterative", 0, 50, **few)], None, None) == []
    (warning,) = find_warnings([curve("pgd", "iterative", 0, 50, **many)], None, None)
    assert (warning["check"], warning["attack"], warning["zero"]) == ("zero-gradients", "pgd", 6)
    # A black-box attack has none, and one that looks for the nearest image stops where it has won.
    assert find_warnings([curve("square", "black-box", 0, 50, **many)], None, None) == []
    assert find_warnings([curve("ddn", "iterative", 0, 50, minimal=True, **many)], None, None) == []


def test_a_curve_that_reaches_every_image():
    whole = Curve("pgd", "iterative", "linf", [0.0, 1.0], fooled(0, 99))
    assert checks(find_warnings([whole], None, None)) == ["accuracy-at-unbounded-eps"]
    assert find_warnings([Curve("pgd", "iterative", "linf", [0.0, 1.0], fooled(0, 100))], None, None) == []
    # A step to the corner of the box is not every image, nor is noise, nor what few queries find.
    for kind in ("single-step", "noise", "black-box"):
        assert find_warnings([Curve("other", kind, "linf", [0.0, 1.0], fooled(0, 0))], None, None) == []


def test_randomness_of_two_passes():
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0]])
    assert not randomness(logits, logits * (1 + 1e-6)).random
    found = randomness(logits, torch.tensor([[1.0, 2.0], [0.5, 1.0], [0.0, 5.1]]))
    assert (found.images, found.labels, found.logits, found.largest) == (3, 1, 2, pytest.approx(2.5))
    (warning,) = find_warnings([], None, found)
    assert warning["check"] == "randomised-model"
    assert "--eot 20" in warning["text"]
    assert "adaptive attack" in warning["text"]
    (warning,) = find_warnings([], None, found, eot=5)
    assert "--eot 5" in warning["text"]


def digits(count: int = 60):
    subject = model_subject(f"{TOYS}:digits", dataset="digits", images=count, device="cpu")
    ((x, y, index, _),) = subject.source.batches(0)
    right = subject.model(x).argmax(1) == y
    return x[right], y[right], index[right]


def test_probe_of_a_sound_model():
    x, y, index = digits()
    found = probe(imported_model(f"{TOYS}:digits"), x, y, index, eps=0.1, seed=0)
    assert (found["images"], found["unbounded"], found["zero"], found["nonfinite"]) == (len(x), 0, 0, 0)
    assert found["rose"] == len(x)
    assert sum(found["many"]) > sum(found["few"])


def test_probe_of_a_model_that_rounds():
    x, y, index = digits()
    model = imported_model(f"{TOYS}:quantised")
    found = probe(model, x, y, index, eps=0.1, seed=0)
    assert found["zero"] == len(x)
    # Nothing but the random start moves an image.
    assert sum(found["many"]) == sum(found["few"])
    assert found["rose"] == 0
    assert found["unbounded"] > 0


@pytest.fixture
def swept(tmp_path: Path):
    """swept(toy, attacks, eps=..., **settings) -> the document of a sweep over 60 digits."""

    def run(toy: str, *names: str, eps: tuple[float, ...] = (0.0, 0.1, 0.2), **settings) -> dict:
        subject = model_subject(f"{TOYS}:{toy}", dataset="digits", images=60, device="cpu", batch_size=32)
        attacks = [SweepAttack(named, eps) for named in parse_all(names)]
        console = Console(file=io.StringIO())
        document = sweep(subject, attacks, SweepSettings(**settings), out=tmp_path / toy, console=console)
        printed = " ".join(console.file.getvalue().split())
        for warning in document["warnings"]:
            assert f"warning ({warning['check']}): {warning['text']}" in printed
        return document

    return run


def test_a_sound_model_is_not_suspected(swept):
    document = swept("digits", "fgsm", "pgd10", "pgd10-l2", "square50")
    assert document["warnings"] == []
    assert document["randomness"]["logits"] == 0
    assert document["natural"] > 0.9
    assert document["attacks"]["pgd10"]["accuracy"][-1] < 0.2


def test_a_model_that_rounds_is_suspected_by_every_sign(swept):
    document = swept("quantised", "fgsm", "pgd10", "square300")
    assert set(checks(document["warnings"])) == {
        "black-box-stronger",
        "accuracy-at-unbounded-eps",
        "no-decline-with-steps",
        "zero-gradients",
    }
    square, pgd = (document["attacks"][name]["accuracy"][-1] for name in ("square300", "pgd10"))
    assert square < pgd


def test_a_saturated_model_is_suspected(swept):
    found = checks(swept("saturated", "pgd10")["warnings"])
    assert "zero-gradients" in found
    assert "accuracy-at-unbounded-eps" in found


def test_a_gradient_that_vanished_where_an_image_was_fooled_is_no_sign(tmp_path, monkeypatch):
    """DLR is constant once the label is in third place, and the attack has won then."""
    subject = model_subject(
        f"{TOYS}:first_three", dataset="digits", num_classes=3, device="cpu", batch_size=359
    )
    reported = []
    call = APGD._attack

    def watched(self, *args, **keywords):
        x_adv = call(self, *args, **keywords)
        reported.append(self.report.zero_gradient)
        return x_adv

    monkeypatch.setattr(APGD, "_attack", watched)
    (named,) = parse_all(["apgd-dlr20"])
    document = sweep(
        subject, [SweepAttack(named, (0.0, 0.2, 0.4))], SweepSettings(probes=False), out=tmp_path,
        console=Console(quiet=True),
    )  # fmt: skip
    right = sum(document["per_sample"]["correct"])
    assert right == 106
    # The attack's own report has them all.
    assert 0.05 * right < reported[0] < reported[1] == right
    assert document["attacks"]["apgd-dlr20"]["accuracy"][-1] == 0
    assert document["attacks"]["apgd-dlr20"]["gradients"] == {
        "zero": 0,
        "nonfinite": 0,
        "attacked": 2 * right,
    }
    assert document["warnings"] == []


def test_zero_gradients_are_of_images_that_stayed_right(swept):
    document = swept("saturated", "pgd10")
    fooled = torch.tensor(document["per_sample"]["fooled"]["pgd10"]).bool()
    gradients = document["attacks"]["pgd10"]["gradients"]
    # Of this model no attacked image has a gradient, and the random start alone fools some.
    assert 0 < gradients["zero"] == int((~fooled[1:]).sum())
    (warning,) = [
        found for found in document["warnings"] if found.get("attack") == "pgd10" and "zero" in found
    ]
    assert (warning["zero"], warning["images"]) == (gradients["zero"], gradients["attacked"])
    assert "in some step of pgd10 and stayed right" in warning["text"]


def test_a_random_model_is_detected_and_weaker_under_averaged_gradients(swept):
    fixed = swept("noisy", "pgd10")
    averaged = swept("noisy", "pgd10", eot=8)
    assert checks(fixed["warnings"])[0] == checks(averaged["warnings"])[0] == "randomised-model"
    assert fixed["randomness"]["logits"] == fixed["randomness"]["images"] == 60
    assert averaged["eot"] == 8
    assert sum(averaged["attacks"]["pgd10"]["accuracy"][1:]) < sum(fixed["attacks"]["pgd10"]["accuracy"][1:])
    # The draws of a random model belong to what is evaluated, so that it can be evaluated again.
    assert swept("noisy", "pgd10")["per_sample"] == fixed["per_sample"]


def test_a_model_without_a_gradient(swept):
    document = swept("detached", "square50")
    assert checks(document["warnings"]) == ["no-gradient"]
    with pytest.raises(UserError, match="attack pgd10: the model's output does not depend on x"):
        swept("detached", "pgd10")
