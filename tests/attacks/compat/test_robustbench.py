"""RobustBench's `benchmark` on images that need no download."""

from __future__ import annotations

import functools
import json
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks.compat import robustbench
from robustfast.attacks.compat.autoattack import AutoAttack
from robustfast.errors import UserError


class Threat(Enum):
    Linf = "Linf"
    corruptions = "corruptions"


@pytest.fixture
def net() -> nn.Module:
    """Ten class means as weights: right about most digits."""
    x, y = robustbench.data.first_images("digits", None, ".", None)
    means = torch.stack([x[y == digit].mean(0).flatten() for digit in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(2 * means)
        layer.bias.copy_(-means.square().sum(1))
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard version with few steps."""

    class Quick(AutoAttack):
        def set_version(self, version: str = "standard") -> None:
            super().set_version(version)
            self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
            self.square.n_queries = 10

    monkeypatch.setattr(robustbench.eval, "AutoAttack", Quick)


def test_accuracies_are_those_of_the_model(net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    clean, robust = robustbench.benchmark(net, n_examples=24, dataset="digits", threat_model="Linf", eps=0.05)
    x, y = robustbench.data.first_images("digits", 24, ".", None)
    assert x.shape == (24, 1, 8, 8)
    assert clean == (net(x).argmax(1) == y).double().mean().item()
    assert 0 < robust < clean
    out = capsys.readouterr().out
    assert f"Clean accuracy: {clean:.2%}" in out
    assert f"Adversarial accuracy: {robust:.2%}" in out


def test_members_states_and_files(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = functools.partial(
        robustbench.benchmark, net, n_examples=10, dataset="digits", threat_model=Threat.Linf, eps=0.05, to_disk=True,
        model_name="Means", device=torch.device("cpu"), batch_size=4, log_path="log.txt", aa_state_path=Path("state"),
    )  # fmt: skip
    first = run()
    assert run() == first, "resumed from the state of what was done"
    facts = json.loads((tmp_path / "model_info/digits/Linf/Means.json").read_text())
    assert float(facts["clean_acc"]) == pytest.approx(100 * first[0])
    assert "Restored state" in (tmp_path / "log.txt").read_text()


def test_preprocessing_is_a_function(net: nn.Module) -> None:
    def darker(x: Tensor) -> Tensor:
        return x / 2

    clean, _ = robustbench.benchmark(net, 5, "digits", "L2", eps=0.1, preprocessing=darker)
    x, y = robustbench.data.first_images("digits", 5, ".", None)
    assert clean == (net(x / 2).argmax(1) == y).double().mean().item()
    with pytest.raises(ValueError, match="expected a function"):
        robustbench.benchmark(net, 5, "digits", eps=0.1, preprocessing="Res224")


def test_what_is_not_served_says_so(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`eps` must be specified"):
        robustbench.benchmark(net, 5, "digits")
    with pytest.raises(ValueError, match="`model_name` should be specified"):
        robustbench.benchmark(net, 5, "digits", eps=0.1, to_disk=True)
    with pytest.raises(NotImplementedError, match="corruptions"):
        robustbench.benchmark(net, 5, "digits", Threat.corruptions)
    with pytest.raises(NotImplementedError, match="one model"):
        robustbench.benchmark([net, net], 5, "digits", eps=0.1)
    with pytest.raises(ValueError, match="threat_model is 'Linff', expected one of Linf, L2, L1"):
        robustbench.benchmark(net, 5, "digits", "Linff", eps=0.1)
    with pytest.raises(UserError, match="give data_dir"):
        robustbench.benchmark(net, 5, "cifar10", eps=0.1, data_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="cifar10"):
        robustbench.benchmark(net, 5, "cifar10", eps=0.1, data_dir=tmp_path)
    with pytest.raises(
        AttributeError, match="load_model has no counterpart in robustfast; load weights of your own"
    ):
        robustbench.load_model("Carmon2019Unlabeled")
    with pytest.raises(AttributeError, match="no counterpart"):
        _ = robustbench.load_imagenet
    with pytest.warns(UserWarning, match="eval mode"):
        robustbench.benchmark(net.train(), 2, "digits", eps=0.01)


def test_cifar_loads_from_the_published_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    digits = robustbench.data.load("digits", "test", None)
    monkeypatch.setattr(robustbench.data, "load", lambda *arguments: (asked.append(arguments), digits)[1])
    for function in (robustbench.load_cifar10, robustbench.load_cifar100):
        x, y = function(n_examples=3, data_dir="there")
        assert len(x) == len(y) == 3
        assert x.dtype == torch.float32
        assert 0 <= x.min() <= x.max() <= 1
    assert asked == [("cifar10", "test", "there"), ("cifar100", "test", "there")]


SCRIPT = """
import torch

from robustbench import benchmark
from robustbench.data import load_cifar10

threat_model = "Linf"
dataset = "cifar10"
model_name = "Digit2026Means"
device = torch.device("cpu")

x_test, y_test = load_cifar10(n_examples=8, data_dir=data_dir)
clean_acc, robust_acc = benchmark(
    model, model_name=model_name, n_examples=8, dataset=dataset, data_dir=data_dir, threat_model=threat_model,
    eps=8 / 255, device=device, to_disk=True,
)
"""


def test_an_unmodified_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the claim of a new model goes, in other words: only the imports differ."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    # Even and odd images are bright and dark, some of them by no more than eps allows to undo.
    labels = [number % 2 for number in range(12)]
    gap = np.array([4, 40, 40, 40] * 3) * (1 - 2 * np.array(labels))
    pixels = (128 + gap[:, None] + generator.integers(-2, 3, (12, 3072))).astype(np.uint8)
    batch = {b"data": pixels, b"labels": labels, b"filenames": [b"x.png"] * 12}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    names = [f"class_{number}".encode() for number in range(10)]
    meta = {b"label_names": names, b"num_cases_per_batch": 12, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    brightness = nn.Linear(3072, 10)
    with torch.no_grad():
        brightness.weight.zero_()
        brightness.weight[0], brightness.weight[1] = 0.01, -0.01
        brightness.bias.fill_(-50.0)
        brightness.bias[0], brightness.bias[1] = -3072 * 0.005, 3072 * 0.005
    script = SCRIPT.replace("from robustbench", "from robustfast.attacks.compat.robustbench")
    model = nn.Sequential(nn.Flatten(), brightness).eval()
    told = {"model": model, "data_dir": str(tmp_path / "data")}
    exec(compile(script, "script", "exec", dont_inherit=True), told)
    assert told["x_test"].shape == (8, 3, 32, 32)
    assert told["x_test"].dtype == torch.float32
    assert torch.equal(told["y_test"], torch.tensor(labels[:8]))
    assert type(told["clean_acc"]) is type(told["robust_acc"]) is float
    assert told["clean_acc"] == 1.0
    assert told["robust_acc"] == 6 / 8, "the two of a gap of 4 fall, the others are out of reach"
    facts = json.loads((tmp_path / "model_info/cifar10/Linf/Digit2026Means.json").read_text())
    assert facts == {"clean_acc": "100.00", "autoattack_acc": "75.00", "eps": 8 / 255}


def test_a_state_of_another_radius_is_refused(net: nn.Module, tmp_path: Path) -> None:
    run = functools.partial(robustbench.benchmark, net, 6, "digits", aa_state_path=tmp_path / "state")
    run(eps=0.05)
    with pytest.raises(ValueError, match=r"differs in eps \(0.05, now 0.0\); delete it"):
        run(eps=0.0)
