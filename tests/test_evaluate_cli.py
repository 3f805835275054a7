"""`python -m robustfast.evaluate`: a table on success, one line and exit code 2 on a mistake."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from robustfast.command_line import main_wrapper
from robustfast.evaluate import main
from robustfast.evaluation.grids import GRIDS
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = PRESETS["digits-aatpp"]
    return fit(
        dataclasses.replace(
            config,
            epochs=1,
            batch_size=480,
            attack=dataclasses.replace(config.attack, steps=1),
            validate_every=0,
            tensorboard=False,
            device="cpu",
            out=tmp_path_factory.mktemp("runs") / "a",
        )
    )


def call(capsys, *argv):
    """(exit code, stdout, stderr) of the command."""
    code = main_wrapper(main, [str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_preset_attacks(run, capsys):
    argv = ["--images", "16", "--attacks", "digits-linf,mnist-l2", "--device", "cpu"]
    code, out, err = call(capsys, run, *argv)
    assert (code, err) == (0, "")
    assert "digits-linf, each way through itself" in out
    assert "mnist-l2, all through the standard way" in out
    document = json.loads((run / "evaluation" / "aat-custom.json").read_text())
    assert document["attack"]["name"] == "digits-linf"
    assert list(document["other_attacks"]) == ["mnist-l2"]
    assert "aat-custom.json" in out
    assert not (run / "figures").exists()


def test_attack_by_flags(run, capsys):
    argv = ["--images", "16", "--attacks", "cifar-l2-sign", "--attack.eps", "16/255", "--attack.steps", "3"]
    code, _, err = call(capsys, run, *argv, "--attack.restarts", "2", "--backend", "reference")
    assert (code, err) == (0, "")
    attack = json.loads((run / "evaluation" / "aat-custom.json").read_text())["attack"]
    assert attack["name"] == "custom"
    assert (attack["norm"], attack["step"], attack["random_start"]) == ("l2", "sign", "pixel")
    assert (attack["eps"], attack["steps"], attack["restarts"], attack["step_size"]) == (16 / 255, 3, 2, 0.1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--attacks", "digits-linv"], "unknown attack 'digits-linv'; did you mean 'digits-linf'?"),
        (["--attack.eps", "8"], "8/255"),
        (["--attack.eps", "many"], "expected a number such as 0.03 or 8/255, got 'many'"),
        (["--attacks", "digits-linf,mnist-l2", "--attack.eps", "0.2"], "changes one attack, but 2 are named"),
        (["--images", "1000"], "--images 1000: expected 1 to 359"),
        (["--batch-size", "0"], "batch size is 0"),
        (["--checkpoint", "best"], "no best.pt"),
        (["--protocol", "afdd"], "unknown protocol 'afdd'; did you mean 'afd'?"),
        (["--protocol", "afd", "--parts", "hdh"], "part hdh"),
        (["--imagse", "3"], "--imagse"),
        (
            ["--attack.restarts", "2", "--attack.random-start", "none"],
            "every start would be the image itself",
        ),
    ],
)
def test_mistakes(run, capsys, argv, words):
    code, out, err = call(capsys, run, *argv)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert "Traceback" not in out + err


def test_no_run_there(tmp_path, capsys):
    code, _, err = call(capsys, tmp_path / "none")
    assert code == 2
    assert "none is no run folder" in err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_damaged_configuration(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    code, _, err = call(capsys, tmp_path)
    assert code == 2
    assert "config.json" in err
    assert err.count("\n") == 1


def test_damaged_checkpoint(run, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "checkpoints").mkdir()
    weights = (run / "checkpoints" / "last.pt").read_bytes()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(weights[: len(weights) // 2])
    code, _, err = call(capsys, tmp_path)
    assert code == 2
    assert "last.pt is no readable checkpoint" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "evaluation").exists()


def test_run_without_a_checkpoint(run, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    code, _, err = call(capsys, tmp_path)
    assert code == 2
    assert "has no checkpoint yet" in err


def test_folder_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "evaluation").write_text("a file where the folder should be")
    code, _, err = call(capsys, tmp_path, "--images", "16", "--attack.steps", "1")
    assert code == 2
    assert "cannot make the folder" in err


# Accuracy against eps: of this run, and of models that need none. The toys are in float64, whose results do not depend
# on how images are cut into batches.

TOYS = Path(__file__).parent / "evaluation" / "toy_models.py"
TOY = ["--model", f"{TOYS}:digits", "--dataset", "digits", "--device", "cpu"]
SWEEP = [
    "--attacks",
    "pgd3,fgsm,square10-l2,ddn5",
    "--eps",
    "16/255,0.1",
    "--eps-l2",
    "0.2,0.4",
    "--images",
    "24",
    "--batch-size",
    "8",
]
MINE = ["--model", "mymodel:digits", "--dataset", "digits", "--out", "whole"]


def test_sweep_of_a_run(run, capsys):
    argv = ["--attacks", "pgd3,digits-linf,pgd2-l2", "--eps", "8/255,16/255", "--images", "16"]
    code, out, err = call(capsys, run, *argv, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "grid 0, 8/255, 16/255" in out
    assert "way R: digits, 16 test images, linf (percent)" in out
    document = json.loads((run / "evaluation" / "sweep.json").read_text())
    assert (document["preset"], document["way"], document["checkpoint"]) == (
        "digits-aatpp",
        "r",
        {"name": "last", "epoch": 1},
    )
    assert document["attacks"]["pgd3"]["eps"] == [0, 8 / 255, 16 / 255]
    assert document["attacks"]["digits-linf"]["attack"]["steps"] == 20
    assert set(document["worst_case"]) == {"linf", "l2"}
    assert (run / "evaluation" / "sweep-linf.png").exists()
    assert not (run / "evaluation" / "sweep.partial").exists()
    code, out, _ = call(capsys, run, *argv, "--way", "s", "--device", "cpu")
    assert code == 0
    assert json.loads((run / "evaluation" / "sweep.json").read_text())["weights"] != document["weights"]


def test_sweep_without_radii_takes_the_data_sets(run, capsys, tmp_path):
    code, _, err = call(capsys, run, "--attacks", "pgd1,pgd1-l2,stadv1", "--images", "8", "--out", tmp_path)
    assert (code, err) == (0, "")
    attacks = json.loads((tmp_path / "sweep.json").read_text())["attacks"]
    assert [attacks[name]["eps"] for name in attacks] == [
        list(GRIDS["digits"]["linf"]),
        list(GRIDS["digits"]["l2"]),
        [0.0, 0.05],
    ]


def test_radii_of_every_norm_may_come_from_one_flag(capsys, tmp_path):
    """And each kind of attack takes its own flag first."""
    argv = [
        *TOY,
        "--attacks",
        "pgd1,pgd1-l2,apgd-ce1-l1,stadv1",
        "--images",
        "4",
        "--no-probes",
        "--eps",
        "0.2",
    ]
    code, _, err = call(capsys, *argv, "--eps-l1", "3", "--eps-own", "0.01", "--out", tmp_path)
    assert (code, err) == (0, "")
    attacks = json.loads((tmp_path / "sweep.json").read_text())["attacks"]
    assert [record["eps"] for record in attacks.values()] == [[0, 0.2], [0, 0.2], [0, 3], [0, 0.01]]


def test_autoattack_protocol(capsys, tmp_path):
    code, out, err = call(
        capsys, *TOY, "--protocol", "autoattack", "--images", "4", "--no-probes", "--out", tmp_path
    )
    assert (code, err) == (0, "")
    document = json.loads((tmp_path / "autoattack.json").read_text())
    record = document["attacks"]["autoattack"]
    assert record["eps"] == [0.0, 0.1]
    assert record["attack"]["version"] == "standard"
    assert list(record["attack"]["settings"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    won = sum(record["won_by"][1].values())
    assert won > 0
    assert record["accuracy"][1] == pytest.approx(document["natural"] - won / 4)
    assert "autoattack" in out


def test_images_of_another_model(run, capsys, tmp_path):
    argv = [*TOY, "--attacks", "transfer,pgd10", "--eps", "0.2", "--images", "40"]
    for source in (f"{TOYS}:digits", run):
        code, _, err = call(capsys, *argv, "--source", source, "--out", tmp_path / Path(source).name)
        assert (code, err) == (0, "")
    itself, other = (
        json.loads((tmp_path / name / "sweep.json").read_text())
        for name in ("toy_models.py:digits", run.name)
    )
    assert itself["attacks"]["transfer"]["attack"]["source_weights"] == itself["weights"]
    assert other["attacks"]["transfer"]["attack"]["source"] == str(run)
    # Ten steps on the model itself are stronger than those on a network of one epoch.
    accuracies = [
        document["attacks"][name]["accuracy"][1]
        for document in (itself, other)
        for name in ("transfer", "pgd10")
    ]
    assert accuracies[0] == accuracies[1] == accuracies[3] < accuracies[2]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--attacks", "pgd3", "--eps", "8"], "under linf a radius is in pixels of [0, 1]"),
        (["--attacks", "pgd3", "--eps", "8/0"], "expected a number such as 0.03 or 8/255, got '8/0'"),
        (["--attacks", "pgd3", "--eps", "__import__('os')"], "expected a number"),
        (["--attacks", "pgd3,pgd3", "--eps", "0.1"], "expected each name once"),
        (["--attacks", "apgd-cee"], "unknown attack 'apgd-cee'; did you mean 'apgd-ce'?"),
        (["--attacks", "pgd3", "--protocol", "aat"], "--protocol aat attacks with its presets"),
        (["--protocol", "aat", "--eps", "0.1"], "--eps: for --protocol sweep, not aat"),
        (["--attacks", "pgd3", "--attack.steps", "3"], "--attack.steps: changes a preset of --protocol aat"),
        (["--protocol", "autoattack", "--attacks", "pgd3"], "runs autoattack, not pgd3"),
        (["--model", "a:b"], "and --model a:b: give one of them, not both"),
        (["--attacks", ""], "--attacks is empty: expected at least one name, or leave --attacks out"),
        (["--attacks=,", "--eps", "0.1"], "--attacks is empty: expected at least one name"),
        (["--eps_l2", "", "--attacks", "pgd3-l2"], "--eps-l2 is empty: expected at least one radius"),
        (
            ["--attacks", "pgd3,apgd-ce", "--minimal", "clip"],
            "--minimal clip: none of the attacks (pgd3, apgd-ce) looks for the nearest image; name one such as fab-t "
            "or ddn, or leave --minimal out",
        ),
        (["--attacks", "pgd3", "--dataset", "digits"], "--dataset goes with --model"),
        (["--attacks", "pgd3", "--images", "0"], "--images 0: expected 1 to 359"),
        (["--attacks", "pgd3", "--eot", "0"], "--eot 0"),
        (
            ["--attacks", "stadv,jpeg", "--eps", "0.1,8/255"],
            "--eps 0.1,0.0313725: none of the attacks (stadv, jpeg) goes by it; give --eps-own",
        ),
        (
            ["--attacks", "pgd3-l2", "--eps", "0.1", "--eps-l2", "1"],
            "--eps 0.1: none of the attacks (pgd3-l2) goes by it; ",
        ),
        (
            ["--eps-l2", "0.5"],
            "--eps-l2 0.5: none of the attacks (apgd-ce) is bounded by l2; name one such as pgd20-l2, or leave "
            "--eps-l2 out",
        ),
        (["--attacks", "pgd3,pgd3-l2", "--eps-l1", "5"], "--eps-l1 5: none of the attacks (pgd3, pgd3-l2)"),
        (
            ["--protocol", "autoattack", "--eps-own", "1"],
            "--eps-own 1: none of the attacks (autoattack) has a",
        ),
        (
            ["--attacks", "pgd3", "--source", "m:f"],
            "--source m:f: none of the attacks (pgd3) takes images of",
        ),
        (["--attacks", "transfer", "--eps", "0.1"], "name a run or module:function with --source"),
        (["--attacks", "transfer", "--eps", "0.1", "--source", "nothing"], "expected module:function"),
    ],
)
def test_mistakes_about_sweeps(run, capsys, argv, words):
    code, out, err = call(capsys, run, *argv)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "nowhere:f", "--dataset", "digits", "--out", "o"], "there is no module nowhere here"),
        (["--model", "nowhere:f", "--out", "o"], "name the data set"),
        ([], "expected a run folder or --model module:function"),
        (["--model", "nowhere:f", "--dataset", "digits"], "say where its numbers go with --out FOLDER"),
        ([*TOY, "--out", "o", "--way", "r"], "--way goes with a run, not with --model"),
    ],
)
def test_mistakes_about_models(capsys, monkeypatch, tmp_path, argv, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *argv)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_way_that_was_not_trained(tmp_path, capsys):
    config = PRESETS["digits-at"]
    folder = fit(
        dataclasses.replace(
            config,
            epochs=1,
            batch_size=480,
            attack=dataclasses.replace(config.attack, steps=1),
            validate_every=0,
            tensorboard=False,
            device="cpu",
            out=tmp_path / "a",
        )
    )
    code, _, err = call(capsys, folder, "--attacks", "pgd1", "--way", "n")
    assert code == 2
    assert "--way n" in err
    assert "trained r alone" in err


def sweep_in(folder):
    """Sweep the toy model of a folder from there; what is printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Both are left as they were found.
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "mymodel", raising=False)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert main_wrapper(main, [*MINE, *SWEEP]) == 0, said.getvalue()
        del sys.modules["mymodel"]
    return said.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a sweep of a toy from the current directory."""
    folder = tmp_path_factory.mktemp("sweeps")
    shutil.copy(TOYS, folder / "mymodel.py")
    # No terminal: tables and nothing that moves.
    assert "\x1b" not in sweep_in(folder)
    return folder / "whole"


def of_model(folder, name="sweep.json"):
    """A sweep's document but for how the model was called."""
    document = json.loads((folder / name).read_text())
    return {key: document[key] for key in document if key != "model"}


def test_a_model_of_the_current_directory(whole):
    document = json.loads((whole / "sweep.json").read_text())
    assert document["model"] == "mymodel:digits"
    assert document["natural"] > 0.8
    assert set(document["attacks"]) == {"pgd3", "fgsm", "square10-l2", "ddn5"}
    assert document["attacks"]["ddn5"]["eps"] == [0, 0.2, 0.4]


def test_killed_and_called_again_a_sweep_ends_in_the_same_bytes(whole, warm, tmp_path):
    shutil.copy(TOYS, tmp_path / "mymodel.py")
    env = os.environ | {"PYTHONPATH": str(TOYS.parents[2]), "OMP_NUM_THREADS": "1", "TOY_SECONDS": "0.05"}
    partial = tmp_path / "whole" / "sweep.partial"
    with warm.command("-m", "robustfast.evaluate", *MINE, *SWEEP, cwd=tmp_path, env=env) as first:
        deadline = time.monotonic() + 120
        while len(list(partial.glob("*.json"))) < 7 and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / "whole" / "sweep.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in partial.glob("*.json")}
    assert len(kept) >= 7
    sweep_in(tmp_path)
    for name in ("sweep.json", "sweep-linf.png", "sweep-l2.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (whole / name).read_bytes()
    assert not partial.exists()


def test_two_processes_find_what_one_finds(whole, warm, tmp_path):
    argv = ["-m", "robustfast.evaluate", *TOY, *SWEEP, "--out", tmp_path]
    ends = warm.world(2, *argv)
    assert [end.returncode for end in ends] == [0, 0], [end.stderr for end in ends]
    assert of_model(tmp_path) == of_model(whole)
    assert (tmp_path / "sweep-linf.png").exists()
    assert [end.stdout.count("written:") for end in ends] == [1, 0]
    assert not (tmp_path / "sweep.partial").exists()
