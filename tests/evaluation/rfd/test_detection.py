"""Detection: noise that is as large as the attack, and rates of exactly the images that are named."""

from __future__ import annotations

import pytest
import torch

from robustfast.attacks import PGD
from robustfast.evaluation.rfd import PARTS
from robustfast.evaluation.rfd.detection import PART, shuffled
from robustfast.evaluation.rfd.judge import judge
from robustfast.evaluation.rfd.rates import rates
from robustfast.visualization.detection_curve import draw_detection_curve


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_has_the_norms_of_the_attack(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 2, 5, 5, generator=generator)
    x[:, :, 0] = 0.0  # at the wall, where half of all signs would lead out
    x[:, :, 1] = 1.0
    change = torch.randn(x.shape, generator=generator)
    change = 0.1 * change.sign() if norm == "linf" else 0.05 * change
    x_adv = (x + change).clamp(0, 1)
    index = torch.arange(12)
    noisy = shuffled(x, x_adv, index, seed=3)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    for order in (1, 2, float("inf")):
        ours, theirs = (
            torch.linalg.vector_norm((images - x).double().flatten(1), order, dim=1)
            for images in (noisy, x_adv)
        )
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-5)
    # Other changes at other pixels, keyed by the position alone.
    same = torch.isclose(noisy - x, x_adv - x).double().mean()
    assert same < 0.8
    assert torch.equal(shuffled(x[5:7], x_adv[5:7], index[5:7], seed=3), noisy[5:7])
    assert not torch.equal(shuffled(x, x_adv, index, seed=4), noisy)
    free = noisy[:, :, 2:] - x[:, :, 2:]
    assert 0.4 < (free[free != 0] > 0).double().mean() < 0.6


def test_the_part_says_what_direct_calls_say(context_of) -> None:
    context = context_of("rfd", images=24, batch_size=15)
    result = PART.make(context)
    numbers = result.numbers
    both = judge(context.run)
    way = context.run.model.way("r")
    x, y, positions = (torch.cat(parts) for parts in zip(*context.batches(), strict=True))

    def score(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return both.discriminator(context.run.model.encode(images, "d")["d"])[:, 0]

    attacks = {
        ("by_eps", "0.0125"): PGD(way, 0.0125, steps=20),
        ("by_eps", "0.05"): PGD(way, 0.05, steps=20),
        ("by_eps", "0.1"): PGD(way, 0.1, step_size=0.025, steps=20),
        ("by_eps", "0.15"): PGD(way, 0.15, steps=20),
        ("other_norms", "l2"): PGD(way, 0.5, steps=20, norm="l2"),
        ("other_norms", "l1"): PGD(way, 2.0, steps=20, norm="l1"),
    }
    for (group, name), attack in attacks.items():
        x_adv = attack(x, y, positions)
        expected = rates(score(x), score(x_adv))
        found = numbers[group][name]
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        with torch.no_grad():
            fooled = (way(x_adv).argmax(1) != y).double().mean().item()
        assert found["fooled"] == pytest.approx(fooled)
    assert numbers["training_eps"] == numbers["by_eps"]["0.1"]
    assert list(numbers["by_eps"]) == ["0.0125", "0.025", "0.0375", "0.05", "0.1", "0.15"]
    assert set(numbers["noise"]) == {"shuffled", "uniform"}
    (figure,) = result.figures
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_the_lines_are_the_numbers() -> None:
    pixels = draw_detection_curve([1 / 255, 8 / 255], {"tpr": [0.25, 1.0]}, trained=8 / 255)
    rates_line, mark = pixels.axes[0].lines
    assert rates_line.get_xdata().tolist() == pytest.approx([1.0, 8.0])
    assert rates_line.get_ydata().tolist() == [25.0, 100.0]
    assert mark.get_xdata()[0] == pytest.approx(8.0)
    other = draw_detection_curve([0.05, 0.1], {"auroc": [0.5, 1.0]})
    assert other.axes[0].lines[0].get_xdata().tolist() == [0.05, 0.1]
    with pytest.raises(ValueError, match="1 values for 2 radii"):
        draw_detection_curve([0.05, 0.1], {"tpr": [0.5]})


def test_a_run_without_a_discriminator_has_no_such_parts(context_of) -> None:
    run = context_of("um").run
    fit = {part.name: part.unfit(run) is None for part in PARTS}
    assert [name for name, fits in fit.items() if fits] == ["nominal", "black-box", "iterations", "knn"]
    assert (
        PART.unfit(run) == "st trains no discriminator of domains and no features of their own, as rfd does"
    )
    run = context_of("rfd").run
    assert all(part.unfit(run) is None for part in PARTS)
