"""Every figure is written as a PNG that shows its numbers, whole or not at all."""

import pytest
from matplotlib.image import imread

from robustfast.errors import UserError
from robustfast.visualization import ablation_bars, disentanglement_bars, disentanglement_curve
from robustfast.visualization.accuracy_curves import accuracy_curves, draw_accuracy_curves

NATURAL = {"s": 0.99, "r": 0.98, "n": 0.97}
ADVERSARIAL = {"s": 0.2, "r": 0.9, "n": 0.01}


def curve(path, epochs=(1, 2), robust=(0.5, 0.9)):
    natural = {"s": [0.9, 0.99]}
    return disentanglement_curve(epochs, natural, {"r": robust, "n": [0.4, 0.1]}, path, title="a run")


def swept(eps=(0.0, 8 / 255, 16 / 255), accuracy=(0.9, 0.5, 0.1), **attacks):
    """A sweep's document with as much as its figure needs."""
    record = {"norm": "linf", "eps": list(eps), "accuracy": list(accuracy)}
    named = {"pgd20": record, "$_odd$": {**record, "accuracy": [0.9, 0.6, 0.2]}, **attacks}
    return {"attacks": named, "worst_case": {"linf": {"eps": list(eps), "accuracy": list(accuracy)}}}


FIGURES = {
    "eps": lambda path: accuracy_curves(swept(), "linf", path, title="a run"),
    "bars": lambda path: disentanglement_bars(NATURAL, ADVERSARIAL, path, title="a run", dia=0.89),
    "curve": curve,
    "ablation": lambda path: ablation_bars(
        {"ST": (0.9, 0.2, 0.2, 0.0), "all": (0.9, 0.8, None, None)}, path, title=""
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_written_whole_and_the_same_each_time(name, tmp_path):
    path = FIGURES[name](tmp_path / "figures" / "a.png")
    image = imread(path)
    assert image.shape[0] > 300
    assert image.shape[1] > 600
    assert image[..., :3].std() > 0.05
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]
    first = path.read_bytes()
    FIGURES[name](path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", FIGURES)
def test_folder_that_cannot_be_written_is_one_line(name, tmp_path):
    (tmp_path / "figures").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot make the folder .*figures"):
        FIGURES[name](tmp_path / "figures" / "a.png")


def test_radii_are_drawn_in_the_unit_people_write_them_in():
    (axes,) = draw_accuracy_curves(swept(), "linf").axes
    assert axes.get_xlabel() == "eps (linf, 1/255)"
    assert list(axes.lines[0].get_xdata()) == [0, 8, 16]
    assert list(axes.lines[0].get_ydata()) == [90, 50, 10]
    (axes,) = draw_accuracy_curves(swept((0.0, 0.1, 0.3)), "linf").axes
    assert axes.get_xlabel() == "eps (linf)"
    assert list(axes.lines[0].get_xdata()) == [0, 0.1, 0.3]
    with pytest.raises(ValueError, match="no attack has the norm 'l2': expected one of linf"):
        draw_accuracy_curves(swept(), "l2")


def test_other_numbers_give_another_figure(tmp_path):
    one = disentanglement_bars(NATURAL, ADVERSARIAL, tmp_path / "1.png", title="a run").read_bytes()
    two = disentanglement_bars(
        NATURAL, {**ADVERSARIAL, "n": 0.5}, tmp_path / "2.png", title="a run"
    ).read_bytes()
    assert one != two


def test_ways_without_numbers_are_left_out(tmp_path):
    path = disentanglement_bars(
        {"s": None, "r": 0.9, "n": None}, {"r": 0.5, "n": None}, tmp_path / "a.png", title="at"
    )
    assert path.exists()


def test_curves_and_epochs_must_match(tmp_path):
    with pytest.raises(ValueError, match="attacked r: 1 values for 2 epochs"):
        curve(tmp_path / "a.png", robust=[0.5])
    assert not list(tmp_path.iterdir())


def test_ablation_rows_need_four_values(tmp_path):
    with pytest.raises(ValueError, match="row 'ST': expected 4 values"):
        ablation_bars({"ST": (0.9, 0.1)}, tmp_path / "a.png", title="a")
