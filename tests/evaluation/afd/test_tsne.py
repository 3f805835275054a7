"""The grid of maps: one map for a run, whose panels are the features at each radius."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from robustfast.evaluation.afd import tsne
from robustfast.evaluation.afd.grids import sweeps
from robustfast.evaluation.afd.tsne import TSNE
from robustfast.evaluation.features import collect
from robustfast.visualization.embedding_grid import draw_embedding_grid


def test_a_row_is_one_map_of_the_features_at_all_radii(
    untrained: Callable, context_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = untrained("mine"), untrained("theirs", seed=1)
    seen, drawn = [], {}

    def embed(values: torch.Tensor, *, seed: int) -> torch.Tensor:
        seen.append((values, seed))
        return values[:, :2] * 100

    def keep(
        rows: object, columns: object, labels: object, classes: object, path: object, *, title: str
    ) -> object:
        drawn.update(rows=rows, columns=columns, labels=labels, classes=classes, title=title)
        return path

    monkeypatch.setattr(tsne, "embed", embed)
    monkeypatch.setattr(tsne, "embedding_grid", keep)
    monkeypatch.setattr(tsne, "IMAGES", 25)
    context = context_of(run, {"at": other}, images=60, seed=5)
    numbers = TSNE.make(context).numbers
    json.dumps(numbers, allow_nan=False)
    grid = sweeps("digits")["pgd-linf"]
    assert numbers["images"] == 25
    positions = torch.arange(25) * len(context.split) // 25
    assert numbers["labels"] == context.split.labels[positions].tolist()
    assert list(numbers["rows"]) == ["at", "mine"]
    assert drawn["rows"] == {label: row["points"] for label, row in numbers["rows"].items()}
    assert drawn["labels"] == numbers["labels"]
    assert drawn["columns"] == ["clean", *(f"eps {eps:g}" for eps in grid.printed[1:])]
    assert drawn["classes"] == context.split.classes
    # The map of this run: clean, then attacked as its images are in any evaluation, by their place in the split.
    values, seed = seen[1]
    assert seed == 5
    assert len(values) == 25 * len(grid.printed)
    batch = [
        (
            context.split.images[positions].float() / context.split.scale,
            context.split.labels[positions],
            positions,
        )
    ]
    torch.testing.assert_close(values[:25], collect(run.model.features, batch).values)
    attack = grid.named.build(run.model, grid.printed[-1], seed=5)
    torch.testing.assert_close(values[-25:], collect(run.model.features, batch, attack=attack).values)
    assert numbers["rows"]["mine"]["points"][0][0] == pytest.approx(values[0, :2].mul(100).tolist(), abs=1e-3)


def test_few_images_lower_the_perplexity(untrained: Callable, context_of: Callable) -> None:
    run = untrained("mine")
    result = TSNE.make(context_of(run, images=3))
    points = 3 * len(result.numbers["eps"])
    assert result.numbers["perplexity"] == pytest.approx((points - 1) / 3)
    (path,) = result.figures
    assert path.exists()
    assert TSNE.make(context_of(run, images=3)).numbers == result.numbers


def test_panels_are_coloured_by_class_and_share_axes_in_a_row() -> None:
    points = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    far = [[100.0, 0.0], [0.0, 100.0], [50.0, 50.0]]
    rows = {"a": [points, far], "b": [points, points]}
    figure = draw_embedding_grid(rows, ["clean", "eps 0.1"], [0, 1, 0], ["cat", "dog"])
    first, second, third, _ = figure.axes
    assert first.get_title() == "clean"
    assert first.get_ylabel() == "a"
    assert first.collections[0].get_offsets().tolist() == points
    assert second.collections[0].get_offsets().tolist() == far
    assert first.get_xlim() == second.get_xlim() != third.get_xlim()
    colours = first.collections[0].get_facecolors()
    assert (colours[0] == colours[2]).all()
    assert (colours[0] != colours[1]).any()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "dog"]
    many = [str(number) for number in range(100)]
    assert not draw_embedding_grid({"a": [points]}, ["clean"], [0, 50, 99], many).legends
    with pytest.raises(ValueError, match=r"a: \[2\] points, expected 3 in each of 1 columns"):
        draw_embedding_grid({"a": [points[:2]]}, ["clean"], [0, 1, 0], ["cat", "dog"])
