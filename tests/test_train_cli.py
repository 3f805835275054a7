"""python -m robustfast.train: what it understands, and that a mistake ends in one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from robustfast import train
from robustfast.command_line import main_wrapper, number, parse
from robustfast.data import Dataset, load
from robustfast.errors import UserError
from robustfast.evaluation.aat import evaluate_run
from robustfast.ops import backend
from robustfast.training import fit as fit_module
from robustfast.training.engine import Engine
from robustfast.training.held_out import spread
from robustfast.training.run_folder import RunFolder

QUICK = [
    "--epochs=1",
    "--batch-size=32",
    "--attack.steps=1",
    "--device=cpu",
    "--no-tensorboard",
    "--no-evaluate",
]


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """64 images, so that a run takes a fraction of a second; and runs/ in a folder of the test."""

    def few(name: str, split: str, data_dir: Path | None = None, *, image_size: int | None = None) -> Dataset:
        return spread(load(name, split, data_dir, image_size=image_size), 64)

    monkeypatch.setattr(fit_module, "load", few)
    monkeypatch.chdir(tmp_path)


Refuse = Callable[[Sequence[str]], str]


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command, which must end in exit code 2 and one line on stderr: that line."""

    def run(argv: Sequence[str]) -> str:
        assert main_wrapper(train.main, argv) == 2
        line = capfd.readouterr().err
        assert line.startswith("error: ")
        assert line.endswith("\n")
        assert line.count("\n") == 1
        return line

    return run


def test_trains_prints_and_quiet_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert main_wrapper(train.main, ["digits-st", *QUICK, "--out", "here"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "\r" not in out
    assert "\x1b" not in out
    loader, started, epoch, folder, then = out.splitlines()
    assert loader.startswith("loader: ")
    assert started.startswith("training digits-st into here: 1 epochs of 64 images, 2 steps each, on cpu")
    assert epoch.startswith("epoch 1/1  loss ")
    assert "images/s" in epoch
    assert folder == "run folder: here"
    assert then == "evaluate it with: python -m robustfast.evaluate here"


def test_default_preset_and_folder() -> None:
    assert main_wrapper(train.main, [*QUICK, "--attack.eps", "8/255"]) == 0
    config = RunFolder.open(Path("runs/digits-aatpp-seed0")).config
    assert (config.preset, config.attack.eps, config.attack.steps) == ("digits-aatpp", 8 / 255, 1)


def test_evaluates_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "robustfast.evaluation.aat.evaluate_run", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    argv = [flag for flag in QUICK if flag != "--no-evaluate"]
    assert main_wrapper(train.main, ["digits-st", *argv, "--out", "here"]) == 0
    [(args, keywords)] = calls
    assert args == (Path("here"),)
    assert keywords.pop("world").size == 1
    assert keywords == {"device": "cpu", "data_dir": None}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (["--backend", "reference"], "auto", "reference"),
        ([], "reference", "reference"),
        ([], "auto", "auto"),
    ],
)
def test_the_backend_reaches_training_and_the_evaluation_that_ends_it(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], environment: str, expected: str
) -> None:
    seen = []
    step = Engine.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(backend.active_backend())
        return step(*args, **kwargs)

    monkeypatch.setattr(Engine, "step", spy)
    monkeypatch.setattr(
        "robustfast.evaluation.aat.evaluate_run", lambda *_, **__: seen.append(backend.active_backend())
    )
    # What the environment variable sets when the package is imported.
    monkeypatch.setattr(backend, "_active", environment)
    argv = [flag for flag in QUICK if flag != "--no-evaluate"]
    assert main_wrapper(train.main, ["digits-st", *argv, *flags]) == 0
    assert seen == [expected] * 3


COMMANDS = ("train digits-st", "evaluate run", "reproduce aat-table3 --dry-run", "doctor")

# In a process of its own: the variable is read when the package is imported.
EACH = """
import contextlib, io, json, runpy, sys
found = {}
for command in sys.argv[1:]:
    module, *sys.argv[1:] = f"robustfast.{command}".split()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            found[command] = end.code, out.getvalue(), err.getvalue()
print(json.dumps(found))
"""


@pytest.mark.parametrize("value", ["bogus", "cuda"])
def test_a_bad_backend_in_the_environment_is_one_line(value: str) -> None:
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("CUDA is here")
    assert main_wrapper(train.main, ["digits-st", *QUICK, "--out", "run"]) == 0
    done = subprocess.run(
        [sys.executable, "-c", EACH, *COMMANDS],
        env={**os.environ, "ROBUSTFAST_BACKEND": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert list(found) == list(COMMANDS)
    reason = "unknown backend 'bogus'" if value == "bogus" else "backend 'cuda' cannot run here"
    for command, (code, out, err) in found.items():
        assert code == 2, command
        assert err.startswith(f"error: ROBUSTFAST_BACKEND={value}: {reason}"), command
        assert err.count("\n") == 1, command
        # The doctor's report says it too, and says all the rest.
        assert (f"ROBUSTFAST_BACKEND={value}: {reason}" in out) == (command == "doctor"), command


def test_image_size_reaches_training_and_evaluation(refuse: Refuse) -> None:
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for shade, name in enumerate(("dark", "light")):
            folder = Path("images", split, name)
            folder.mkdir(parents=True)
            for side in (9, 12):
                image.new("L", (side, side), 60 + 120 * shade).save(folder / f"{side}.png")
    flags = "--dataset image_folder --data-dir images --batch-size 2 --no-augment"
    argv = ["digits-st", *(flag for flag in QUICK if flag != "--no-evaluate"), *flags.split()]
    assert "or give --image-size" in refuse([*argv, "--out", "run"])
    assert main_wrapper(train.main, [*argv, "--image-size", "8", "--out", "run"]) == 0
    assert json.loads(Path("run/evaluation/aat.json").read_text())["images"] == 4
    assert "--image-size 6 (was 8)" in refuse(["--resume", "run", "--image-size", "6"])


def folder_of_images(shades: dict[str, tuple[str, int]]) -> str:
    """Flags for a folder whose splits hold images of these modes and sides."""
    image = pytest.importorskip("PIL.Image")
    for split, (mode, side) in shades.items():
        for shade, name in enumerate(("dark", "light")):
            for lighter in range(2):
                path = Path("images", split, name, f"{lighter}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                level = 60 + 120 * shade + lighter
                image.new(mode, (side, side), level if mode == "L" else (level, 10, 20)).save(path)
    return "--dataset image_folder --data-dir images --batch-size 2 --no-augment"


def test_a_test_split_that_is_all_grey_is_read_in_the_colours_of_training() -> None:
    flags = folder_of_images({"train": ("RGB", 8), "test": ("L", 8)})
    argv = ["digits-st", *(flag for flag in QUICK if flag != "--no-evaluate"), *flags.split()]
    assert main_wrapper(train.main, [*argv, "--validate-every", "1", "--out", "run"]) == 0
    assert json.loads(Path("run/evaluation/aat.json").read_text())["images"] == 4


@pytest.mark.parametrize(
    ("train_split", "test_split", "said"),
    [
        (("L", 8), ("RGB", 8), "have 3 channels, those trained on have 1"),
        (("L", 8), ("L", 9), "have 9x9 pixels, those trained on have 8x8"),
    ],
)
def test_a_test_split_of_another_shape_is_refused_before_training_and_by_evaluation(
    refuse: Refuse, train_split: tuple[str, int], test_split: tuple[str, int], said: str
) -> None:
    flags = folder_of_images({"train": train_split, "test": test_split})
    argv = ["digits-st", *QUICK, *flags.split(), "--out", "run"]
    assert said in refuse([*argv, "--validate-every", "1"])
    assert not Path("run").exists()
    assert main_wrapper(train.main, [*argv, "--validate-every", "0"]) == 0
    with pytest.raises(UserError, match=said):
        evaluate_run(Path("run"), device="cpu")


def test_flags_of_every_kind() -> None:
    argv = (
        "--objective.terms st,as --no-augment --channels-last --lr 1/8 --schedule multistep --milestones 3,5"
    )
    assert (
        main_wrapper(train.main, [*QUICK, *argv.split(), "--out", "run", "--precision=bf16", "--seed=7"]) == 0
    )
    config = RunFolder.open(Path("run")).config
    assert config.objective.terms == ("st", "as")
    assert (config.channels_last, config.lr, config.milestones, config.seed) == (True, 0.125, (3, 5), 7)
    assert (config.schedule, config.precision) == ("multistep", "bf16")


def test_resume_needs_no_other_flag_and_allows_the_same(
    capfd: pytest.CaptureFixture[str], refuse: Refuse
) -> None:
    assert main_wrapper(train.main, ["digits-at", *QUICK, "--out", "run"]) == 0
    for argv in (
        ["--resume", "run", "--no-evaluate"],
        ["digits-at", "--resume=run", "--epochs", "1", "--no-evaluate", "--checkpoint-steps", "9"],
    ):
        assert main_wrapper(train.main, argv) == 0
        assert "run is finished: 1 epoch\n" in capfd.readouterr().out

    line = refuse(["--resume", "run", "--lr", "0.7", "--attack.eps", "8/255"])
    assert "--attack.eps" in line
    assert "--lr 0.7 (was 0.05)" in line
    assert "epochs" not in line
    assert "is a run of digits-at, not of digits-st" in refuse(["digits-st", "--resume", "run"])
    assert "a resumed run stays in its folder" in refuse(["--resume", "run", "--out", "elsewhere"])
    assert "nowhere is no run folder" in refuse(["--resume", "nowhere"])


def test_unknown_preset(refuse: Refuse) -> None:
    line = refuse(["digits-aatp"])
    assert "unknown preset 'digits-aatp'; did you mean 'digits-aatpp'?" in line
    assert "cifar10-wrn34-trades" in line


def test_eps_of_another_scale(refuse: Refuse) -> None:
    line = refuse(["digits-st", "--attack.eps", "8"])
    assert line.startswith("error: --attack.eps is 8.0, expected")
    assert "8/255" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs many", "--epochs: expected a whole number, got 'many'"),
        ("--lr fast", "--lr: expected a number such as 0.03 or 8/255, got 'fast'"),
        ("--attack.eps 8/0", "--attack.eps: expected a number"),
        ("--precision fp8", "--precision"),
        ("--epohcs 3", "--epohcs"),
        ("--epochs 0", "--epochs 0: expected at least 1"),
        ("--lr", "--lr"),
        ("--objective.terms st,xx", "--objective.terms st,xx: expected one or more of st, as, ar, an"),
        ("--backend metal", "--backend"),
        ("--model resnet", "unknown model 'resnet'"),
        (
            "--model small_cnn",
            "--model small_cnn does not fit the 1x8x8 images of digits: small_cnn takes 28x28",
        ),
        ("--dataset cifar11", "did you mean 'cifar1"),
        ("--dataset mnist --data-dir nowhere", "nowhere"),
        ("--dataset digits --augment", "turn it off with --no-augment"),
        ("--image-size 8", "--image-size 8 is for image_folder"),
        ("--engine graph", "--engine graph"),
    ],
)
def test_mistakes_in_flags(refuse: Refuse, flags: str, message: str) -> None:
    assert message in refuse(["digits-aatpp", "--device", "cpu", *flags.split()])
    # Nothing was started: what a mistake leaves would stand in the way of the mended command.
    assert not list(Path().glob("runs/*/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_absent(refuse: Refuse) -> None:
    line = refuse(["digits-st", "--device", "cuda"])
    assert "--device cuda: torch" in line
    assert "use --device cpu" in line


def test_out_that_cannot_be_written(refuse: Refuse) -> None:
    Path("file").write_text("")
    # A folder below a file cannot be made by anyone, not even by root, whom permissions do not stop.
    line = refuse(["digits-st", *QUICK, "--out", "file/run"])
    assert "--out file/run: cannot make or write the folder (Not a directory)" in line


def test_out_in_use(refuse: Refuse) -> None:
    assert main_wrapper(train.main, ["digits-st", *QUICK, "--out", "run"]) == 0
    assert "continue its run with --resume run" in refuse(["digits-st", *QUICK, "--out", "run"])


@pytest.mark.parametrize("method", ["st", "at", "trades", "aat", "aatpp"])
def test_nan_loss(refuse: Refuse, method: str) -> None:
    flags = "--epochs 4 --lr 1e30 --schedule multistep --out run"
    line = refuse([f"digits-{method}", *QUICK, *flags.split()])
    assert "in epoch 1, step 2" in line
    assert "indices" in line
    assert "nonfinite.pt" in line
    assert Path("run/checkpoints/nonfinite.pt").exists()


def test_interrupt_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module.Trainer, "run", interrupt)
    assert main_wrapper(train.main, ["digits-st", *QUICK, "--out", "run"]) == 130
    assert (
        capfd.readouterr().err
        == "stopped by SIGINT, continue with: python -m robustfast.train --resume run\n"
    )


def test_a_defect_keeps_its_trace() -> None:
    def broken(argv: Sequence[str]) -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        main_wrapper(broken, [])


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("8/255", 8 / 255), ("1e-3", 1e-3), ("-1/4", -0.25), ("3", 3.0)]
)
def test_numbers(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["8/255/2", "8/", "/255", "1/0", "__import__('os')", "", "2*3"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number such as"):
        number(text)


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        train.main(["cifar10-prn18-aat", "--help"])
    assert leave.value.code == 0
    text = capfd.readouterr().out
    for part in (
        "cifar10-wrn34",
        "-aatpp",
        "--attack.eps",
        "8/255",
        "--objective.terms",
        "st,as",
        "--resume",
        "--no-evaluate",
    ):
        assert part in text
    assert "--preset" not in text


def test_the_module_runs_as_a_command() -> None:
    """In a process of its own: the exit code and stderr that a shell sees."""
    done = subprocess.run(
        [sys.executable, "-m", "robustfast.train", "mnist-aatp"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown preset 'mnist-aatp'; did you mean")
    assert done.stderr.count("\n") == 1


def test_parse_reports_the_flag_of_a_wrapped_message() -> None:
    """tyro frames and wraps what it says; a message wider than its frame comes out in one piece."""
    with pytest.raises(UserError) as raised:
        parse(
            train.Arguments,
            ["--precision", "x" * 30],
            prog="prog",
            description="",
            default=train.Arguments(_default()),
        )
    message = str(raised.value)
    assert "\n" not in message
    assert "│" not in message
    assert "'fp32', 'bf16', 'fp16'" in message


def _default() -> Any:
    from robustfast.training.presets import PRESETS

    return PRESETS["digits-st"]


def test_metrics_are_json_lines() -> None:
    assert main_wrapper(train.main, ["digits-st", *QUICK, "--out", "run"]) == 0
    line = json.loads(Path("run/metrics.jsonl").read_text())
    assert {
        "epoch",
        "step",
        "lr",
        "loss",
        "terms",
        "natural",
        "adversarial",
        "seconds",
        "images_per_second",
    } <= set(line)
