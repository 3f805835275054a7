"""A run that starts from parts of other runs, or from files of weights: what it takes, keeps and refuses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ended, process
from safetensors.torch import save_file
from tiny_runs import assert_equal, assert_same_end, few_digits, metrics, tiny
from torch import Tensor, nn
from warm import Warm

from robustfast import train
from robustfast.command_line import main_wrapper
from robustfast.errors import UserError
from robustfast.models import network
from robustfast.objectives import AT
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.engine import Engine
from robustfast.training.fit import fit, resume
from robustfast.training.run_folder import load_run
from robustfast.training.start import start_from

VAE = "digits_vae_rn"


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "load", few_digits)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs to start from: an auto-encoder with a classifier, a plain classifier, two encoders."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "load", few_digits)
        quick: dict[str, Any] = {"epochs": 1, "validate_every": 0, "seed": 1}
        fit(tiny("digits-cdvae", average="ema", out=folder / "vae", **quick))
        fit(tiny("digits-at", network="one_way", out=folder / "lr=0.1", **quick))
        fit(tiny("digits-aatpp", out=folder / "three", **quick))
    return folder


@pytest.fixture
def model() -> nn.Module:
    """G and the classifiers of G(x) and R(x), untrained."""
    torch.manual_seed(0)
    return network(VAE, "digits_cnn", num_classes=10, in_channels=1)


def trained(run: Path) -> nn.Module:
    return load_run(run, device="cpu").model


def state(module: nn.Module, part: str = "") -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.get_submodule(part).state_dict().items()}


def test_a_run_gives_every_part_that_has_a_namesake(runs: Path, model: nn.Module) -> None:
    untouched, said = state(model, "classifier_g"), []
    start_from(model, (str(runs / "vae"),), say=said.append)
    source = trained(runs / "vae")
    for part in ("generator", "classifier_r"):
        assert_equal(state(model, part), state(source, part), part)
    assert_equal(state(model, "classifier_g"), untouched, "classifier_g")
    assert said == [f"starts from {runs / 'vae'}: generator, classifier_r"]


def test_the_weights_are_the_average_where_the_source_keeps_one(runs: Path, model: nn.Module) -> None:
    stored = checkpoint.load(runs / "vae" / "checkpoints" / "last.pt")
    start_from(model, (f"generator={runs / 'vae'}",), say=lambda line: None)
    name = "generator.reconstruct.weight"
    name = name if name in stored["average"] else next(key for key in stored["average"] if "generator" in key)
    assert torch.equal(model.state_dict()[name], stored["average"][name])
    assert not torch.equal(stored["average"][name], stored["model"][name])


@pytest.mark.parametrize(
    ("part", "run", "theirs"),
    [
        ("classifier_r", "vae", "classifier_r"),  # a namesake
        ("classifier_g", "vae", "classifier_r"),  # none, and one part of the same weights
        ("classifier_g.encoder", "vae", "classifier_r.encoder"),  # inside
        ("classifier_r.encoder", "lr=0.1", "encoder"),
    ],
)
def test_a_part_of_a_run(part: str, run: str, theirs: str, runs: Path, model: nn.Module) -> None:
    if theirs == "classifier_r.encoder":
        start_from(model, (f"classifier_g={runs / run}",), say=lambda line: None)
    else:
        before = state(model)
        start_from(model, (f"{part}={runs / run}",), say=lambda line: None)
        others = {name for name in before if not name.startswith(f"{part}.")}
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in others)
    assert_equal(state(model, part), state(trained(runs / run), theirs), part)


def test_later_entries_take_the_place_of_earlier_ones(runs: Path, model: nn.Module) -> None:
    plain = f"classifier_r.encoder={runs / 'lr=0.1'}"
    start_from(model, (str(runs / "vae"), plain), say=lambda line: None)
    assert_equal(state(model, "classifier_r.encoder"), state(trained(runs / "lr=0.1"), "encoder"), "encoder")
    start_from(model, (plain, str(runs / "vae")), say=lambda line: None)
    assert_equal(state(model, "classifier_r"), state(trained(runs / "vae"), "classifier_r"), "classifier_r")


def test_a_run_that_is_called_after_a_setting_is_no_part(runs: Path) -> None:
    torch.manual_seed(0)
    other = network("one_way", "digits_cnn", num_classes=10, in_channels=1)
    start_from(other, (str(runs / "lr=0.1"),), say=lambda line: None)
    assert_equal(state(other), state(trained(runs / "lr=0.1")), "model")


def write_pth(file: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, file)


def write_old(file: Path, weights: dict[str, Tensor]) -> None:
    """As torch before 1.6 wrote files, before batch norms counted their batches."""
    old = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    torch.save(old, file, _use_new_zipfile_serialization=False)


def write_safetensors(file: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, file)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.pth", write_pth), ("a.safetensors", write_safetensors), ("old.pth", write_old)],
)
@pytest.mark.parametrize("output", [False, True])
def test_a_file_of_weights(
    name: str, write: Callable[..., None], output: bool, runs: Path, model: nn.Module, tmp_path: Path
) -> None:
    weights = state(trained(runs / "lr=0.1"), "encoder")
    extra = {"fc.weight": torch.ones(1000, 128), "fc.bias": torch.ones(1000)} if output else {}
    write(tmp_path / name, weights | extra)
    said: list[str] = []
    start_from(model, (f"classifier_r.encoder={tmp_path / name}",), say=said.append)
    found = state(model, "classifier_r.encoder")
    if name == "old.pth":
        counts = [key for key in found if "num_batches_tracked" in key]
        assert [int(found.pop(key)) for key in counts] == [0, 0]
        for key in counts:
            weights.pop(key)
    assert_equal(found, weights, "encoder")
    (line,) = said
    assert line.startswith(f"starts from {tmp_path / name}: classifier_r.encoder")
    assert ("without" in line, "fc.weight" in line, "fc.bias" in line) == (output,) * 3


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[Sequence[str]], str]:
    """Train with --start-from, which must end in exit code 2 and one line, and leave no folder behind: that line."""

    def run(entries: Sequence[str]) -> str:
        out = tmp_path / "out"
        argv = ["digits-at", "--network", VAE, "--device", "cpu", "--no-evaluate", "--out", str(out)]
        assert main_wrapper(train.main, [*argv, "--start-from", *entries]) == 2
        line = capfd.readouterr().err
        assert line.startswith("error: ")
        assert line.endswith("\n")
        assert line.count("\n") == 1
        assert not out.exists()
        return line

    return run


def test_every_mistake_is_one_line_and_leaves_nothing(
    refuse: Callable[[Sequence[str]], str], runs: Path, tmp_path: Path
) -> None:
    def file(name: str, content: Any) -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    vae, plain, three = runs / "vae", runs / "lr=0.1", runs / "three"
    weights = state(trained(plain), "encoder")
    name = next(iter(weights))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "line.pth").write_text("these are no weights at all\n" * 9)
    (tmp_path / "nothing.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("weights")
    (tmp_path / "cut.pth").write_bytes(file("whole.pth", weights).read_bytes()[:999])
    mistakes = {
        str(tmp_path / "nowhere"): f"there is no {tmp_path / 'nowhere'}; expected RUN, PART=RUN or PART=FILE",
        f"generator={tmp_path / 'nowhere'}": f"there is no {tmp_path / 'nowhere'}; expected RUN",
        str(tmp_path / "empty"): f"{tmp_path / 'empty'} is no run folder",
        str(tmp_path / "whole.pth"): f"name it as PART={tmp_path / 'whole.pth'}",
        str(
            plain
        ): "its model has encoder, classifier, this one generator, classifier_g, classifier_r: none of the "
        "same name and weights; name a run whose model has a part of this one",
        f"telepathy={vae}": "the model has no part 'telepathy'; expected one of generator",
        f"={vae}": "the model has no part ''",
        f"generator={plain}": "none of encoder, classifier has the weights of generator here",
        f"classifier_r.encoder={three}": "encoder_r, encoder_n all have the weights of classifier_r.encoder",
        f"classifier_r.encoder={file('less.pth', {name: weights[name]})}": "it holds other weights than",
        f"classifier_r.encoder={file('more.pth', weights | {'more': torch.ones(1)})}": "first more; expected",
        f"classifier_r.encoder={file('shape.pth', weights | {name: torch.ones(2)})}": f"first {name}; expected",
        f"classifier_r.encoder={file('list.pth', [1, 2])}": "it holds no state dict, but list",
        f"classifier_r.encoder={file('code.pth', {'a': Path})}": "it holds more than tensors",
        f"classifier_r.encoder={tmp_path / 'text.pth'}": "not a readable file of weights",
        f"classifier_r.encoder={tmp_path / 'line.pth'}": "not a readable file of weights",
        f"classifier_r.encoder={tmp_path / 'nothing.pth'}": "not a readable file of weights",
        f"classifier_r.encoder={tmp_path / 'cut.pth'}": "not a readable file of weights",
        f"classifier_r.encoder={tmp_path / 'text.safetensors'}": "not a readable file of weights",
    }
    for entry, words in mistakes.items():
        line = refuse([entry])
        assert words in line, line
        assert entry.rpartition("=")[2] in line


def test_a_part_is_advised_only_where_the_weights_fit(runs: Path) -> None:
    """D of a run fits D-hat, whose name is another one."""
    path = runs / "vae"
    other = network("digits_vae_s", "digits_cnn", num_classes=10, in_channels=1)
    with pytest.raises(
        UserError,
        match=f"its model has generator, classifier_r, this one classifier_x: none.*"
        f"; its weights fit as classifier_x={path}$",
    ):
        start_from(other, (str(path),), say=lambda line: None)


def test_a_folder_that_was_there_stays(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    with pytest.raises(UserError, match="there is no"):
        fit(tiny("digits-at", network=VAE, start_from=(str(tmp_path / "nowhere"),), out=out))
    assert out.exists()
    assert not list(out.iterdir())


def config(runs: Path, out: Path, **fields: Any) -> Any:
    return tiny("digits-at", network=VAE, start_from=(str(runs / "vae"),), out=out, **fields)


@pytest.mark.parametrize("average", ["none", "ema", "swa"])
def test_training_begins_with_the_sources_weights(runs: Path, average: str, tmp_path: Path) -> None:
    """Without a learning rate they are still there in the end, in the average too."""
    path = fit(config(runs, tmp_path / "run", lr=0.0, epochs=1, average=average))
    source = trained(runs / "vae")
    found = checkpoint.load(path / "checkpoints" / "last.pt")
    kept = [found["model"]] + ([] if average == "none" else [found["average"]])
    for weights in kept:
        for part in ("generator", "classifier_r"):
            for name, value in source.get_submodule(part).named_parameters():
                assert torch.allclose(weights[f"{part}.{name}"], value, rtol=0, atol=1e-6), name


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it, and so nothing is saved after it."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, job: Callable[[], object]) -> None:
    """Do a job that dies before it has made this step."""
    made, whole = 0, Engine.step

    def counted(*args: Any, **keywords: Any) -> Any:
        nonlocal made
        made += 1
        if made == step:
            raise Killed
        return whole(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", counted)
        with pytest.raises(Killed):
            job()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The model as each run's objective finds it when it prepares."""
    found: list[dict[str, Tensor]] = []
    monkeypatch.setattr(AT, "prepare", lambda self, dataset: found.append(state(self.model)))
    return found


def test_a_run_killed_before_its_first_checkpoint_starts_from_them_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: list[dict[str, Tensor]]
) -> None:
    whole = fit(config(runs, tmp_path / "whole", average="ema"))
    out = tmp_path / "killed"
    killed_at(3, monkeypatch, lambda: fit(config(runs, out, average="ema")))
    assert (out / "config.json").exists()
    assert not list((out / "checkpoints").iterdir())
    assert_same_end(resume(out), whole)
    new, killed, resumed = prepared
    assert_equal(resumed, new, "what the objective prepares from")
    assert_equal(killed, new, "what the objective prepares from")


def test_what_a_loss_that_was_not_finite_left_is_no_checkpoint(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: list[dict[str, Tensor]]
) -> None:
    out = tmp_path / "killed"
    killed_at(2, monkeypatch, lambda: fit(config(runs, out, epochs=1)))
    shutil.copy(runs / "three" / "checkpoints" / "last.pt", out / "checkpoints" / "nonfinite.pt")
    resume(out)
    assert_equal(prepared[1], prepared[0], "what the objective prepares from")


def test_a_resumed_run_with_a_checkpoint_does_without_its_sources(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(config(runs, tmp_path / "whole"))
    moved = shutil.copytree(runs / "vae", tmp_path / "vae")
    early, late = tmp_path / "early", tmp_path / "late"
    for step, out in ((2, early), (5, late)):  # three steps an epoch
        fields = {"start_from": (str(moved),), "out": out}
        killed_at(step, monkeypatch, lambda fields=fields: fit(tiny("digits-at", network=VAE, **fields)))
    shutil.rmtree(moved)
    assert metrics(resume(late)) == metrics(whole)
    mine, theirs = (checkpoint.load(run / "checkpoints" / "last.pt")["model"] for run in (late, whole))
    assert_equal(mine, theirs, "weights")
    # Before its first checkpoint a run has nothing but them.
    with pytest.raises(UserError, match=f"there is no {moved}") as mistake:
        resume(early)
    assert "\n" not in str(mistake.value)
    assert (early / "config.json").exists()


def test_another_start_is_another_run(runs: Path, tmp_path: Path) -> None:
    path = fit(config(runs, tmp_path / "run", epochs=1))
    with pytest.raises(UserError, match=r"--start-from .*\(was .*leave these flags out"):
        resume(path, tiny("digits-at", network=VAE, epochs=1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is forked")
def test_killed_by_the_system(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "killed"

    def train_until_killed() -> None:
        monkeypatch.setattr(Engine, "step", lambda *args, **keywords: os.kill(os.getpid(), 9))
        torch.set_num_threads(1)
        fit(config(runs, out, epochs=1, threads=1))

    assert ended(process(train_until_killed)) == -9
    assert_same_end(resume(out), fit(config(runs, tmp_path / "whole", epochs=1, threads=1)))


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without gloo",
)
def test_several_processes_start_alike(runs: Path, warm: Warm, tmp_path: Path) -> None:
    """Weights that do not move: both processes have the source's, or their batch norms would not agree either."""
    out = tmp_path / "two"
    argv = ["digits-at", "--network", VAE, "--device", "cpu", "--no-evaluate", "--no-tensorboard"]
    argv += ["--epochs", "1", "--batch-size", "480", "--attack.steps", "1", "--validate-every", "0"]
    argv += ["--lr", "0", "--batch-norm", "sync"]
    both = [*argv, "--out", str(out), "--start-from", str(runs / "vae")]
    done = warm.world(2, "-m", "robustfast.train", *both)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert "".join(one.stdout for one in done).count("starts from") == 1
    source, found = trained(runs / "vae"), trained(out)
    for part in ("generator", "classifier_r"):
        for name, value in source.get_submodule(part).named_parameters():
            assert torch.equal(found.get_submodule(part).get_parameter(name), value), name

    wrong = [*argv, "--out", str(tmp_path / "none"), "--start-from", str(tmp_path / "nowhere")]
    done = warm.world(2, "-m", "robustfast.train", *wrong)
    assert [one.returncode for one in done] == [2, 2]
    assert "".join(one.stderr for one in done).count("error: ") == 1
    assert not (tmp_path / "none").exists()


def test_the_sources_are_read_as_they_are(runs: Path, tmp_path: Path) -> None:
    """Nothing of them changes."""

    def content() -> dict[Path, tuple[int, bytes]]:
        files = [file for file in runs.rglob("*") if file.is_file()]
        return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = content()
    fit(config(runs, tmp_path / "run", epochs=1))
    assert content() == before
