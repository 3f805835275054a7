"""The AAT protocol from a run folder to its file: its keys, and numbers that stand up to a second computation."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from robustfast.attacks import PGD
from robustfast.data import feed, load
from robustfast.errors import UserError
from robustfast.evaluation.aat import CUSTOM, FILE, aat_numbers, evaluate_run
from robustfast.evaluation.attacks import ATTACKS, attacks_for
from robustfast.evaluation.document import read
from robustfast.evaluation.predictions import AttackedPredictions, Predictions
from robustfast.objectives import OBJECTIVES
from robustfast.seeds import derive
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run

KEYS = {
    "natural": {"s", "r", "n"},
    "adversarial": {"r", "n", "dia"},
    "standard_way": {"s", "r", "n", "dia"},
    "detection": {"tpr", "fpr", "balanced_accuracy", "raw", "calibrated"},
    "detection_adversarial": {"tpr", "fpr", "balanced_accuracy", "raw", "calibrated"},
}
QUICK = attacks_for("digits", steps=2)


def labels(*values):
    return torch.tensor(values)


def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(preset, method) -> the folder of a run of three steps; each is trained once."""
    made: dict[tuple[str, str], Path] = {}

    def run(preset, method=None):
        config = PRESETS[preset]
        method = method or config.method
        if (preset, method) not in made:
            made[preset, method] = fit(
                dataclasses.replace(
                    config,
                    method=method,
                    objective=config.objective if method == config.method else OBJECTIVES[method].Config(),
                    epochs=1,
                    batch_size=480,
                    attack=dataclasses.replace(config.attack, steps=1),
                    validate_every=1,
                    validate_images=40,
                    tensorboard=False,
                    device="cpu",
                    out=tmp_path_factory.mktemp("runs") / method,
                )
            )
        return made[preset, method]

    return run


def test_numbers_of_hand_made_predictions():
    y = labels(0, 1, 2, 3)
    natural = {"s": y, "r": labels(0, 1, 2, 0), "n": labels(0, 1, 2, 0)}
    standard = {"s": labels(1, 1, 3, 0), "r": labels(0, 1, 2, 0), "n": labels(1, 1, 3, 0)}
    own = {"s": standard["s"], "r": labels(0, 1, 2, 1), "n": labels(3, 3, 3, 3)}
    by_way, numbers = aat_numbers(Predictions(y, natural, {"a": AttackedPredictions(own, standard)}))
    assert by_way == {"s": 1.0, "r": 0.75, "n": 0.75}
    assert numbers["a"]["adversarial"] == {"r": 0.75, "n": 0.25, "dia": 0.5}
    assert numbers["a"]["standard_way"] == {"s": 0.25, "r": 0.75, "n": 0.25, "dia": 0.5}
    assert numbers["a"]["detection"] == {
        "tpr": 0.5,
        "fpr": 0.0,
        "balanced_accuracy": 0.75,
        "raw": 0.625,
        "calibrated": 0.875,
    }
    assert numbers["a"]["detection_adversarial"]["calibrated"] == 0.75


def test_one_way_leaves_null_what_it_does_not_have():
    y = labels(0, 1)
    by_way, numbers = aat_numbers(
        Predictions(y, {"n": y}, {"a": AttackedPredictions({"n": labels(0, 0)}, {})})
    )
    assert by_way == {"s": None, "r": None, "n": 1.0}
    assert numbers["a"]["adversarial"] == {"r": None, "n": 0.5, "dia": None}
    for section in ("standard_way", "detection", "detection_adversarial"):
        assert set(numbers["a"][section]) == KEYS[section]
        assert set(numbers["a"][section].values()) == {None}


def test_document_of_a_run(train):
    path = train("digits-aatpp")
    document = evaluate_run(path, QUICK, device="cpu", console=quiet(), file=FILE)
    assert read(path / FILE) == document
    for section, keys in KEYS.items():
        assert set(document[section]) == keys
    assert document["images"] == document["images_in_split"] == len(load("digits", "test"))
    assert document["attack"] == {**ATTACKS["digits-linf"].as_json(), "name": "custom", "steps": 2}
    assert document["checkpoint"] == {"name": "last", "epoch": 1}
    assert document["ways"] == "srn"
    assert document["adversarial"]["dia"] == document["adversarial"]["r"] - document["adversarial"]["n"]
    assert set(document["gradients"]["zero"]) == {"s", "r", "n"}
    assert {file.name for file in (path / "figures").iterdir()} == {"ways.png", "epochs.png"}


def test_numbers_stand_up_to_a_second_computation(train):
    path = train("digits-aatpp")
    document = evaluate_run(path, QUICK, device="cpu", console=quiet())
    model = load_run(path, device="cpu").model
    ((x, y, index, _),) = feed(load("digits", "test"), 480, seed=0, shuffle=False).batches(0)
    for way in "srn":
        attack = PGD(
            model.way(way),
            eps=0.1,
            step_size=0.0125,
            steps=2,
            norm="linf",
            random_start="ball",
            seed=derive(0, way),
        )
        x_adv = attack(x, y, index)
        assert (x_adv - x).abs().max() <= 0.1 + 1e-6
        with torch.no_grad():
            natural = (model.way(way)(x).argmax(1) == y).double().mean().item()
            own = (model.way(way)(x_adv).argmax(1) == y).double().mean().item()
        assert document["natural"][way] == pytest.approx(natural, abs=1e-12)
        section = "standard_way" if way == "s" else "adversarial"
        assert document[section][way] == pytest.approx(own, abs=1e-12)


@pytest.mark.parametrize(("method", "way"), [("st", "n"), ("at", "r")])
def test_one_way_run(train, method, way):
    document = evaluate_run(train("digits-at", method), QUICK, images=40, device="cpu", console=quiet())
    assert document["ways"] == way
    for section, keys in KEYS.items():
        assert set(document[section]) == keys
        measured = {way} if section in ("natural", "adversarial") else set()
        assert {name for name, value in document[section].items() if value is not None} == measured


def test_only_the_data_sets_own_evaluation_of_all_images_is_kept_as_such(train, monkeypatch, capsys):
    path = train("digits-aatpp")
    (path / CUSTOM).unlink(missing_ok=True)
    monkeypatch.setitem(ATTACKS, "digits-linf", dataclasses.replace(QUICK[0], name="digits-linf"))
    evaluate_run(path, device="cpu")
    assert f"written: {path / FILE}, " in capsys.readouterr().out
    kept = {file: file.read_bytes() for file in [path / FILE, *(path / "figures").iterdir()]}
    # All images by number, and the own attack by name, are the same evaluation.
    evaluate_run(path, [ATTACKS["digits-linf"]], images=len(load("digits", "test")), device="cpu")
    assert not (path / CUSTOM).exists()
    for options in ({"images": 40}, {"attacks": QUICK}, {"checkpoint": "best"}):
        capsys.readouterr()
        document = evaluate_run(path, **options, device="cpu")
        assert f"written: {path / CUSTOM} (not the data set's own evaluation" in capsys.readouterr().out
        assert read(path / CUSTOM) == document
        assert {file: file.read_bytes() for file in kept} == kept


def test_several_attacks_and_fewer_images(train):
    path = train("digits-aatpp")
    attacks = [*QUICK, dataclasses.replace(ATTACKS["mnist-l2"], strength=QUICK[0].strength)]
    document = evaluate_run(path, attacks, images=40, batch_size=16, device="cpu", console=quiet())
    assert document["images"] == 40
    assert document["attack"]["name"] == "custom"
    assert list(document["other_attacks"]) == ["mnist-l2"]
    second = document["other_attacks"]["mnist-l2"]
    assert second["images"] == 40
    # The same settings under another name find the same images.
    assert second["adversarial"] == document["adversarial"]
    assert second["detection"] == document["detection"]


@pytest.mark.parametrize(("named", "taken"), [("torch", "TorchFeed"), ("dali", "ResidentFeed")])
def test_the_loader_is_one_that_runs_here(train, tmp_path, monkeypatch, named, taken):
    """PyTorch's where it was named; DALI may be missing where a run is evaluated."""
    path = shutil.copytree(train("digits-aatpp"), tmp_path / "run")
    record = json.loads((path / "config.json").read_text())
    record["config"]["loader"] = named
    (path / "config.json").write_text(json.dumps(record))
    feeds = []
    monkeypatch.setattr(
        "robustfast.evaluation.aat.feed",
        lambda *args, **kwargs: feeds.append(feed(*args, **kwargs)) or feeds[0],
    )
    evaluate_run(path, QUICK, images=8, device="cpu", console=quiet())
    assert [type(source).__name__ for source in feeds] == [taken]


def test_evaluation_changes_nothing_but_its_own_files(train):
    path = train("digits-aatpp")

    def others():
        return {
            file: file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and file.parent.name not in ("evaluation", "figures")
        }

    before = others()
    evaluate_run(path, QUICK, images=40, device="cpu", console=quiet())
    assert others() == before


def test_tables_are_printed(train, capsys):
    path = train("digits-aatpp")
    evaluate_run(path, QUICK, images=40, device="cpu", file=FILE)
    printed = capsys.readouterr().out
    assert "digits, 40 test images (percent)" in printed
    assert "Detection: R and N disagree" in printed
    assert f"written: {path / FILE}, {path / 'figures' / 'ways.png'}" in printed


def test_kept_numbers_survive_a_failing_evaluation(train, monkeypatch):
    path = train("digits-aatpp")
    evaluate_run(path, QUICK, images=40, device="cpu", console=quiet(), file=FILE)
    before = (path / FILE).read_bytes()

    def fail(*_, **__):
        raise RuntimeError("no more")

    monkeypatch.setattr(PGD, "__call__", fail)
    with pytest.raises(RuntimeError, match="no more"):
        evaluate_run(path, QUICK, images=30, device="cpu", console=quiet(), file=FILE)
    assert (path / FILE).read_bytes() == before
    assert {file.name for file in (path / "evaluation").iterdir()} <= {FILE.name, CUSTOM.name}
    assert json.loads(before)["images"] == 40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 0}, "--images 0: expected 1 to 359"),
        ({"images": 360}, "--images 360: expected 1 to 359"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_mistakes_are_one_line(train, options, words):
    with pytest.raises(UserError) as mistake:
        evaluate_run(train("digits-aatpp"), QUICK, device="cpu", console=quiet(), **options)
    assert words in str(mistake.value)
    assert "\n" not in str(mistake.value)
