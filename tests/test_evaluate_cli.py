"""`python -m robustfast.evaluate`: a table on success, one line and exit code 2 on a mistake."""

import dataclasses
import json

import pytest

from robustfast.command_line import main_wrapper
from robustfast.evaluate import main
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
        (["--protocol", "afd"], "afd"),
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
