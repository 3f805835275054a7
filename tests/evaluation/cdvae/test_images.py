"""Rows of images: which ones, and that what is drawn are the parts."""

from __future__ import annotations

import pytest
import torch

from robustfast.attacks import PGDC
from robustfast.evaluation.cdvae import images
from robustfast.evaluation.cdvae.images import PART, stretched
from robustfast.evaluation.cdvae.threat import linf


def test_a_grid_goes_from_its_smallest_value_to_its_largest() -> None:
    shown, low, high = stretched(torch.tensor([[[[-1.0, 0.0]]], [[[3.0, 1.0]]]]))
    assert (low, high) == (-1.0, 3.0)
    assert shown.flatten().tolist() == [0.0, 0.25, 1.0, 0.5]
    assert stretched(torch.full((1, 1, 1, 2), 7.0))[0].flatten().tolist() == [0.5, 0.5]


def test_the_rows_are_the_parts(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def keep(rows, headings, path, *, title):
        drawn.append((rows, headings))
        return path

    monkeypatch.setattr(images, "activation_maps", keep)
    context = context_of("cdvae", images=60)
    result = PART.make(context)
    numbers = result.numbers
    ((rows, headings),) = drawn
    assert len(headings) == 8
    assert [name.partition("\n")[0] for name, _ in rows] == [
        "x",
        "G(x)",
        "R(x)",
        "x'",
        "G(x')",
        "R(x')",
        "|delta|",
        "|delta_G|",
        "|delta_R|",
    ]
    assert all(len(cells) == 8 for _, cells in rows)
    # As many classes as there is room for.
    assert len(set(numbers["classes"])) == 8
    x = torch.from_numpy(context.split.images[numbers["positions"]].numpy() / context.split.scale).float()
    positions = torch.tensor(numbers["positions"])
    model = context.run.model
    x_adv = PGDC(model.way("n"), linf(context.run), steps=20)(x, context.split.labels[positions], positions)
    with torch.no_grad():
        clean, moved = model.split(x), model.split(x_adv)
    values = [clean.x, clean.g, clean.r, moved.x, moved.g, moved.r]
    values += [(getattr(clean, part) - getattr(moved, part)).abs() for part in "xgr"]
    for (_, cells), (low, high), expected in zip(rows, numbers["ranges"].values(), values, strict=True):
        found = torch.stack([cell.image for cell in cells]) * (high - low) + low
        assert torch.allclose(found, expected, atol=1e-4)
    assert [cell.caption for cell in rows[3][1]] == [f"as {name}" for name in numbers["attacked"]]
    assert numbers["predicted"] != numbers["attacked"]


def test_fewer_images_than_columns_and_a_real_file(context_of) -> None:
    context = context_of("cdvae", images=3, steps=1)
    result = PART.make(context)
    assert len(result.numbers["positions"]) == 3
    (figure,) = result.figures
    assert figure == context.figure("images")
    assert figure.stat().st_size > 5000
