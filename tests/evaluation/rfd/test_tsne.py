"""t-SNE of the features: seeded, neighbours kept, and the figures' points those of the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustfast.errors import UserError
from robustfast.evaluation.embedding import embed, perplexity_for
from robustfast.evaluation.rfd import tsne
from robustfast.evaluation.rfd.tsne import PART, embedded, shown_classes
from robustfast.visualization.point_groups import Panel, PointGroup, draw_point_groups


def blobs(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(3, width, generator=generator)
    return (centres[:, None] + torch.randn(3, count, width, generator=generator)).flatten(0, 1)


@pytest.mark.parametrize("width", [5, 80])
def test_groups_stay_together_and_draws_are_seeded(width: int) -> None:
    values = blobs(20, width)
    found = embed(values, seed=3)
    assert torch.equal(found, embed(values, seed=3))
    distances = torch.cdist(found, found).fill_diagonal_(torch.inf)
    group = torch.arange(60) // 20
    assert (group[distances.topk(5, largest=False).indices] == group[:, None]).all()


def test_perplexity_is_what_so_few_points_allow() -> None:
    assert perplexity_for(1000) == 30
    assert perplexity_for(91) == 30
    assert perplexity_for(31) == 10
    assert perplexity_for(4) == 1
    with pytest.raises(ValueError, match="3 points: expected at least 4"):
        embed(torch.rand(3, 2), seed=0)
    with pytest.raises(ValueError, match="nan or infinity"):
        embed(torch.full((4, 2), torch.nan), seed=0)


def test_points_in_one_place_are_laid_out_all_the_same() -> None:
    assert embed(torch.ones(12, 4), seed=0).isfinite().all()


def test_groups_are_laid_out_together() -> None:
    values = blobs(8, 6)
    found = embedded({"a": values[:10], "b": values[10:]}, seed=1)
    whole = [[round(v, 3) for v in point] for point in embed(values, seed=1).tolist()]
    assert found["a"] + found["b"] == whole
    assert found["perplexity"] == pytest.approx(23 / 3)


def test_classes_are_the_papers_where_there_are_so_many() -> None:
    assert shown_classes(10) == (6, (7, 9))
    assert shown_classes(3) == (2, (2,))


@pytest.fixture(scope="module")
def made(figure_context):
    """The part beside another run, with the panels of its figures by file."""
    drawn = {}

    def keep(panels, path, *, title):
        drawn[path.stem.removeprefix("rfd-tsne-")] = panels
        return path

    context = figure_context(images=60)
    context = replace(context, request=replace(context.request, against=(f"other={context.path}",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsne, "point_groups", keep)
        result = PART.make(context)
    return context, result.numbers, drawn


def test_figures_are_those_of_the_paper(made) -> None:
    context, numbers, drawn = made
    assert set(drawn) == {"domain-specific", "one-class", "classes", "predictions"}
    labels = context.split.labels
    assert numbers["class"] == "6"
    assert numbers["class_images"] == min(60, int((labels == 6).sum()))
    assert list(numbers["classes"]) == list(numbers["predictions"]) == ["other", context.path.name]


def test_domain_specific_points_are_the_files(made) -> None:
    _, numbers, drawn = made
    ((panel,),) = drawn["domain-specific"]
    found = numbers["domain_specific"]
    assert [(group.name, group.points) for group in panel.groups] == [
        ("clean", found["clean"]),
        ("attacked", found["adversarial"]),
    ]
    assert len(found["clean"]) == len(found["adversarial"]) == numbers["images"] == 60
    assert "perplexity 30" in panel.heading


def test_one_class_points_are_the_files(made) -> None:
    _, numbers, drawn = made
    ((panel,),) = drawn["one-class"]
    found = numbers["one_class"]
    names = [f"{which} {kind}" for which in ("robust", "non-robust") for kind in ("clean", "adversarial")]
    assert [group.points for group in panel.groups] == [found[name] for name in names]
    assert all(len(found[name]) == numbers["class_images"] for name in names)
    assert len({(group.colour, group.mark) for group in panel.groups}) == 4


def test_points_of_all_classes_are_the_files(made) -> None:
    context, numbers, drawn = made
    rows = drawn["classes"]
    assert [len(row) for row in rows] == [2, 2]
    for shown, row in zip(("7", "9"), rows, strict=True):
        for (label, found), panel in zip(numbers["classes"].items(), row, strict=True):
            *classes, attacked = panel.groups
            assert panel.heading.startswith(f"{label}, class {shown} attacked")
            assert attacked.points == found["adversarial"][shown]
            pairs = list(zip(found["clean"], found["labels"], strict=True))
            assert [group.points for group in classes] == [
                [point for point, own in pairs if own == digit] for digit in range(10)
            ]
    taken = torch.tensor(numbers["classes"]["other"]["labels"])
    positions = torch.arange(60) * len(context.split) // 60
    assert torch.equal(taken, context.split.labels[positions])
    assert len(numbers["classes"]["other"]["adversarial"]["7"]) == int((taken == 7).sum()) > 0


def test_points_by_prediction_are_the_files(made) -> None:
    _, numbers, drawn = made
    (row,) = drawn["predictions"]
    for found, panel in zip(numbers["predictions"].values(), row, strict=True):
        clean, *taken = panel.groups
        assert clean.points == found["clean"]
        pairs = list(zip(found["adversarial"], found["predicted"], strict=True))
        assert {group.name: group.points for group in taken} == {
            f"taken for {digit}": [point for point, own in pairs if own == digit]
            for digit in sorted(set(found["predicted"]))
        }


def test_the_same_run_beside_itself_is_laid_out_alike(made) -> None:
    context, numbers, _ = made
    assert numbers["classes"]["other"] == numbers["classes"][context.path.name]
    assert numbers["predictions"]["other"] == numbers["predictions"][context.path.name]


def test_runs_that_do_not_fit_are_refused(made, tmp_path) -> None:
    context, _, _ = made

    def against(label: str):
        return replace(context, request=replace(context.request, against=(f"{label}={context.path}",)))

    with pytest.raises(UserError, match=f"{context.path.name} is this run's own name"):
        PART.make(against(context.path.name))
    few = replace(context, request=replace(context.request, images=1, against=()))
    with pytest.raises(UserError, match="give 2 or more"):
        PART.make(few)


def test_points_on_the_page_are_those_of_the_groups() -> None:
    groups = [PointGroup("a", [[0, 1], [2, 3]], "#000000", "^"), PointGroup("b", [[4, 5]], "#ff0000")]
    figure = draw_point_groups([[Panel("x", groups), Panel("y", groups[:1])]])
    left, right = figure.axes
    assert [c.get_offsets().tolist() for c in left.collections] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert [c.get_offsets().tolist() for c in right.collections] == [[[0, 1], [2, 3]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    with pytest.raises(ValueError, match="one row or more of one length"):
        draw_point_groups([[Panel("x", groups)], []])
