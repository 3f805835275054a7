"""Grad-CAM: by hand, by finite differences, and drawn as the file says; what it looks at stays as it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from robustfast.evaluation.rfd import gradcam
from robustfast.evaluation.rfd.gradcam import PART, encoder_maps, grad_cam, upsampled
from robustfast.evaluation.rfd.judge import Judge
from robustfast.models import Disentangled, DomainDiscriminator
from robustfast.visualization.activation_maps import ActivationMap, draw_activation_maps


@pytest.fixture
def both() -> Judge:
    torch.manual_seed(0)
    model = Disentangled("digits_cnn", num_classes=10, in_channels=1)
    return Judge(model, DomainDiscriminator(model.features)).double()


def test_linear_score_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 0.0]]]])
    slopes = torch.tensor([[[4.0, 0.0], [2.0, 2.0]], [[-1.0, -1.0], [-2.0, 0.0]]])
    # Mean slopes 2 and -1: 2 * first - second = [[-1, 4], [-1, 2]], of which what is positive stays.
    found = grad_cam(maps, lambda a: (a * slopes).sum((1, 2, 3)))
    assert torch.equal(found, torch.tensor([[[0.0, 4.0], [0.0, 2.0]]]))


def test_an_image_is_seen_for_itself() -> None:
    maps = torch.rand(3, 4, 2, 2)
    weight = torch.randn(16, 5)

    def score(a: Tensor) -> Tensor:
        return (a.flatten(1) @ weight).square().sum(1)

    alone = torch.cat([grad_cam(maps[i : i + 1], score) for i in range(3)])
    torch.testing.assert_close(grad_cam(maps, score), alone)


@pytest.mark.parametrize("name", ["r", "n", "d"])
def test_weights_are_the_slopes_of_the_score(both: Judge, name: str) -> None:
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    seen = encoder_maps(both, x)[name]
    model, step = both.model.eval(), 1e-4
    with torch.no_grad():
        maps = model.maps(model.base(x), name)[name]

        def score(a: Tensor) -> Tensor:
            z = model.pooled({name: a})[name]
            if name == "d":
                logit = both.discriminator(z).flatten()
                return logit * (2 * seen.target - 1)
            return model.classifier(z).gather(1, seen.target[:, None])[:, 0]

        assert (score(maps) >= 0).all() or name != "d"
        # The mean slope over places is the slope along all of a channel at once, by the number of places.
        slopes = []
        for channel in range(maps.shape[1]):
            shift = torch.zeros_like(maps)
            shift[:, channel] = step
            slopes.append((score(maps + shift) - score(maps - shift)) / (2 * step))
        weights = torch.stack(slopes, 1) / maps[0, 0].numel()
        expected = (weights[:, :, None, None] * maps).sum(1).relu()
    peak = expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(seen.maps, expected / peak, rtol=1e-3, atol=1e-3)
    assert (seen.maps.amax((1, 2)) - 1).abs().max() < 1e-12


def test_targets_are_what_each_encoder_is_taken_for(both: Judge) -> None:
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    seen = encoder_maps(both, x)
    both.eval()
    with torch.no_grad():
        z = both.model.encode(x)
        logits = {name: both.model.classifier(z[name]) for name in "rn"}
        domain = both.discriminator(z["d"])[:, 0]
    for name in "rn":
        assert torch.equal(seen[name].target, logits[name].argmax(1))
        torch.testing.assert_close(seen[name].score, logits[name].amax(1))
    assert torch.equal(seen["d"].target, (domain >= 0).long())
    torch.testing.assert_close(seen["d"].score, domain)


def test_the_sign_of_the_discriminator_decides_what_speaks_for_it(both: Judge) -> None:
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    maps = {}
    for shift in (100.0, -100.0):
        with torch.no_grad():
            both.discriminator.layers[-1].bias.fill_(shift)
        maps[shift] = encoder_maps(both, x)["d"]
    assert maps[100.0].target.tolist() == [1] * 4
    assert maps[-100.0].target.tolist() == [0] * 4
    # The slopes are the same up to their sign, so that what speaks for one judgement speaks against the other.
    assert (maps[100.0].maps * maps[-100.0].maps == 0).all()
    assert (maps[100.0].maps + maps[-100.0].maps).amax((1, 2)).tolist() == [1] * 4


def test_nothing_positive_is_zero_everywhere() -> None:
    model = SimpleNamespace(
        base=lambda x: x,
        maps=lambda f: {name: f.relu() for name in "rnd"},
        pooled=lambda maps: {name: a.mean((2, 3)) for name, a in maps.items()},
        classifier=lambda z: -z,
    )
    judge = SimpleNamespace(model=model, discriminator=lambda z: z.sum(1, keepdim=True))
    seen = encoder_maps(judge, torch.rand(2, 3, 4, 4))  # type: ignore[arg-type]
    assert (seen["r"].maps == 0).all()
    assert (seen["d"].maps.amax((1, 2)) == 1).all()


def test_modes_gradients_and_weights_are_left_as_found(both: Judge) -> None:
    both.train()
    both.model.encoder_n.eval()
    modes = {name: part.training for name, part in both.named_modules()}
    weights = {name: value.clone() for name, value in both.state_dict().items()}
    mark = torch.ones_like(both.model.classifier.weight)
    both.model.classifier.weight.grad = mark
    encoder_maps(both, torch.rand(2, 1, 8, 8, dtype=torch.float64))
    assert {name: part.training for name, part in both.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in both.state_dict().items())
    assert both.model.classifier.weight.grad is mark
    assert (mark == 1).all()
    assert all(p.grad is None for p in both.parameters() if p is not both.model.classifier.weight)
    assert all(p.requires_grad for p in both.parameters())


def test_no_batch_norm_sees_the_images() -> None:
    model = Disentangled(lambda: _backbone(), num_classes=3)
    both = Judge(model, nn.Linear(model.features, 1)).train()
    before = {name: value.clone() for name, value in both.named_buffers()}
    encoder_maps(both, torch.rand(2, 3, 16, 16))
    assert before
    assert all(torch.equal(value, before[name]) for name, value in both.named_buffers())


def _backbone() -> nn.Module:
    from robustfast.models.preact_resnet18 import PreActResNet18

    return PreActResNet18(in_channels=3)


def test_maps_are_upsampled_bilinearly() -> None:
    found = upsampled(torch.tensor([[[0.0, 1.0]]]), 1, 4)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


def test_the_figure_shows_what_the_file_says(figure_context, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def keep(rows, headings, path, *, title):
        drawn.append((rows, headings))
        return path

    monkeypatch.setattr(gradcam, "activation_maps", keep)
    result = PART.make(figure_context(images=12))
    ((rows, headings),) = drawn
    records = result.numbers["images"]
    assert len(records) == len(rows) == 4
    assert len({record["class"] for record in records}) == 4
    assert [heading for heading in headings if heading] == [
        *("clean image", "robust", "non-robust", "domain-specific"),
        *("attacked image", "robust", "non-robust", "domain-specific"),
    ]
    for record, (name, cells) in zip(records, rows, strict=True):
        assert name == record["class"]
        clean, attacked = cells[0].image, cells[4].image
        assert 0 < (clean - attacked).abs().max() <= result.numbers["eps"] + 1e-6
        for version, start in {"clean": 1, "adversarial": 5}.items():
            for place, encoder in enumerate("rnd"):
                cell, found = cells[start + place], record[version][encoder]
                assert torch.equal(cell.heat, upsampled(torch.tensor([found["map"]]), 8, 8)[0])
                assert torch.equal(cell.image, clean if version == "clean" else attacked)
                words = ("adversarial", "clean") if encoder == "d" else [str(digit) for digit in range(10)]
                nothing = not any(map(any, found["map"]))
                assert cell.caption == words[found["target"]] + (" (map is 0)" if nothing else "")


def test_pixels_on_the_page_are_those_of_the_cells() -> None:
    heat = torch.rand(4, 4)
    image = torch.rand(1, 4, 4)
    rows = [("a", [ActivationMap(image), ActivationMap(image, heat, "b")])]
    figure = draw_activation_maps(rows, ["x", None, "y"])
    left, _, right = figure.axes
    assert (left.images[0].get_array() == image[0].numpy()).all()
    assert (right.images[1].get_array() == heat.numpy()).all()
    assert right.get_xlabel() == "b"
    with pytest.raises(ValueError, match=r"\[2\] cells in the rows, expected one row or more of 1"):
        draw_activation_maps(rows, ["x"])
