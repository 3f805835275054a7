"""Looking at a run: what is seen is what its evaluation saw, and what cannot be seen is said."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustfast.data import load
from robustfast.errors import UserError
from robustfast.evaluation.aat import FILE, evaluate_run
from robustfast.evaluation.attacks import DATASET_ATTACKS, attacks_for
from robustfast.evaluation.look import Look, LookSettings, Missing, attack_of, look_at
from robustfast.evaluation.run_record import RunRecord, read_runs
from robustfast.training import checkpoint
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import RunFolder, build_model

QUICK = LookSettings(images=3, attacked=0, device="cpu")


def train(preset: str, path: Path, **fields: object) -> Path:
    config = PRESETS[preset]
    small = {
        "epochs": 1,
        "batch_size": 480,
        "attack": replace(config.attack, steps=1),
        "validate_every": 0,
        "tensorboard": False,
        "device": "cpu",
    }
    return fit(replace(config, **(small | fields), out=path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = train("digits-aatpp", tmp_path_factory.mktemp("runs") / "a")
    evaluate_run(path, attacks_for("digits", steps=2), device="cpu", file=FILE)
    return path


@pytest.fixture
def path(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "a"))


def one(path: Path) -> RunRecord:
    (run,) = read_runs([path])
    return run


def test_confusions_of_all_images_add_up_to_the_evaluation(trained: Path) -> None:
    run, told = one(trained), []
    found = look_at(run, replace(QUICK, attacked=10**6), lambda *progress: told.append(progress))
    assert isinstance(found, Look)
    assert found.confusions.images == found.split == 359
    for kind, numbers in (("natural", run.document["natural"]), ("attacked", run.document["adversarial"])):
        for way, matrix in getattr(found.confusions, kind).items():
            if way in "rn" or kind == "natural":
                assert int(matrix.diagonal().sum()) / 359 == numbers[way]
    assert told[0] == ("attacking", 0, 359)
    assert told[-1] == ("attacking", 359, 359)


def test_a_few_images_are_seen_with_everything_about_them(trained: Path) -> None:
    found = look_at(one(trained), replace(QUICK, inversion_steps=3))
    assert found.examples.images.shape == (3, 1, 8, 8)
    assert [way.way for way in found.examples.ways] == ["s", "r", "n"]
    assert found.confusions is None
    assert [inversion.encoder for inversion in found.inversions] == ["r", "n"]
    assert (found.checkpoint, found.epoch, found.inversion_steps) == ("last.pt", 1, 3)


def test_one_way_runs_show_their_way_alone(tmp_path: Path) -> None:
    found = look_at(one(train("digits-at", tmp_path / "at")), replace(QUICK, inversion_steps=1, attacked=20))
    assert [way.way for way in found.examples.ways] == ["r"]
    assert list(found.confusions.attacked) == ["r"]
    assert [inversion.encoder for inversion in found.inversions] == ["r"]


def digits_network(network: str) -> str:
    """The network of that kind for images of 8 pixels: some are made for those of one data set."""
    return re.sub("^(mnist|cifar|imagenet|vq)_", "digits_", network)


# One for each network and objective: with the same model and data, presets differ in nothing else that is looked at.
KINDS = {(digits_network(config.network), config.method): name for name, config in reversed(PRESETS.items())}


@pytest.mark.parametrize("name", KINDS.values())
def test_a_run_of_every_preset_is_seen(name: str, tmp_path: Path) -> None:
    on_digits = {"model": "digits_cnn", "dataset": "digits", "image_size": None}
    on_digits["network"] = digits_network(PRESETS[name].network)
    config = replace(PRESETS[name], **on_digits, device="cpu", out=tmp_path)
    folder = RunFolder.reserve(config, load("digits", "test"))
    folder.store()
    folder.checkpoints.mkdir()
    weights = build_model(folder).state_dict()
    checkpoint.save(
        {"format": checkpoint.FORMAT, "epoch": 0, "model": weights}, folder.checkpoints / "last.pt"
    )
    run = one(tmp_path)
    found = look_at(run, replace(QUICK, images=1, inversion_steps=1))
    assert isinstance(found, Look)
    assert "".join(way.way for way in found.examples.ways) == run.ways
    assert (
        0 <= float(found.examples.ways[0].gradient.min()) <= float(found.examples.ways[0].gradient.max()) <= 1
    )


def test_the_attack_is_the_evaluations_then_the_data_sets_then_the_trainings(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = path / "evaluation" / "aat.json"
    document = json.loads(file.read_text())
    document["attack"] |= {"eps": 0.2, "random_start": False}
    file.write_text(json.dumps(document))
    attack, source = attack_of(one(path))
    assert (attack.strength.eps, attack.strength.random_start) == (0.2, "none")
    assert attack.as_json() == document["attack"]
    assert "evaluation" in source
    file.unlink()
    attack, source = attack_of(one(path))
    assert attack.name == "digits-linf"
    monkeypatch.delitem(DATASET_ATTACKS, "digits")
    attack, source = attack_of(one(path))
    assert attack.strength == one(path).config.attack
    assert "training" in source


def test_a_damaged_attack_is_one_line(path: Path) -> None:
    file = path / "evaluation" / "aat.json"
    document = json.loads(file.read_text())
    del document["attack"]["eps"]
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"aat\.json is damaged"):
        attack_of(one(path))


def test_a_run_without_a_checkpoint_is_said(path: Path) -> None:
    shutil.rmtree(path / "checkpoints")
    found = look_at(one(path), QUICK)
    assert isinstance(found, Missing)
    assert "has no last checkpoint yet" in found.reason
    assert "has no best checkpoint yet" in look_at(one(path), replace(QUICK, checkpoint="best")).reason


def test_a_damaged_checkpoint_is_one_line(path: Path) -> None:
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is no readable checkpoint"):
        look_at(one(path), QUICK)


def with_config(run: RunRecord, **fields: object) -> RunRecord:
    return replace(run, folder=replace(run.folder, config=replace(run.config, **fields)))


def test_missing_data_is_said(trained: Path, tmp_path: Path) -> None:
    found = look_at(with_config(one(trained), dataset="mnist"), replace(QUICK, data_dir=tmp_path))
    assert isinstance(found, Missing)
    assert "mnist not found" in found.reason


def images(folder: Path, names: tuple[str, ...], size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in names:
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = torch.randint(0, 256, (size, size), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / split / name / f"{number}.png")


def test_images_on_disk_are_decoded_where_they_are_shown(trained: Path, tmp_path: Path) -> None:
    images(tmp_path, tuple(map(str, range(10))), 8)
    shown = with_config(one(trained), dataset="image_folder")
    found = look_at(shown, replace(QUICK, data_dir=tmp_path, attacked=6))
    assert isinstance(found, Look)
    assert found.confusions.images == 6
    # Of the ten classes three, at even distances; of each its first image.
    assert found.examples.positions.tolist() == [0, 12, 24]
    (tmp_path / "test" / "1" / "0.png").write_bytes(b"no image")
    damaged = look_at(shown, replace(QUICK, data_dir=tmp_path, attacked=0))
    assert isinstance(damaged, Missing)
    assert "0.png" in damaged.reason


def test_data_of_another_shape_is_refused(trained: Path, tmp_path: Path) -> None:
    images(tmp_path, ("cat", "dog"), 8)
    with pytest.raises(UserError, match="has 1 and 2; give the folder"):
        look_at(with_config(one(trained), dataset="image_folder"), replace(QUICK, data_dir=tmp_path))


@pytest.mark.parametrize("fields", [{"images": 0}, {"attacked": -1}, {"inversion_steps": -1}])
def test_senseless_numbers_are_refused(fields: dict) -> None:
    (name,) = fields
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}"):
        LookSettings(**fields)
