"""What the pages say is so: their code runs, their links lead somewhere, their presets and flags exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from robustfast.attacks import ATTACKS as SUITE
from robustfast.evaluation.attacks import ATTACKS
from robustfast.training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(block: str, **names: Any) -> dict[str, Any]:
    # As a file of its own: without this file's __future__ import, under a module that exists.
    names["__name__"] = __name__
    exec(compile(block, "example", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("block", blocks(ROOT / "README.md", "python"))
def test_the_readmes_code_runs(block: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    # AutoAttack leaves alone what the model gets wrong, and what it cannot win: some of so many lie near a boundary.
    x = torch.rand(64, 3, 2, 2)
    y = model(x).argmax(1)
    x_adv = run(block, model=model, x=x, y=y)["x_adv"]
    assert 0 < (x_adv - x).abs().max() <= 8 / 255 + 1e-6
    with torch.no_grad():
        attacked, natural = (nn.functional.cross_entropy(model(images), y) for images in (x_adv, x))
    assert attacked > natural


def test_the_example_of_an_objective_trains_the_robust_way() -> None:
    from robustfast.attacks import AttackConfig
    from robustfast.models import ThreeWay

    block, _ = blocks(ROOT / "docs" / "adding-an-objective.md", "python")
    smoothed = run(block)["Smoothed"]
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    objective = smoothed(model, smoothed.Config(), AttackConfig(steps=1), seed=0)
    objective.begin(0, 1.0)
    (phase,) = objective.phases(torch.rand(4, 1, 8, 8), torch.arange(4), torch.arange(4))
    phase.loss.backward()
    assert all(p.grad is not None for p in model.encoder_r.parameters())
    assert all(p.grad is None for p in model.encoder_n.parameters())


def test_the_examples_of_cd_vae_split_attack_and_score() -> None:
    split, detect = (run(block) for block in blocks(ROOT / "docs" / "cdvae.md", "python"))
    parts = split["parts"]
    assert torch.allclose(parts.g + parts.r, parts.x, atol=1e-6)
    assert split["moved"].abs().max() > 0
    assert detect["scores"].shape == (5, 1)


def test_the_example_of_a_part_counts_what_is_right() -> None:
    _, block = blocks(ROOT / "docs" / "adding-an-objective.md", "python")
    (part,) = run(block)["PARTS"]
    y = torch.tensor([0, 1, 1, 0])
    # Right about three of four.
    way = torch.eye(2)[torch.tensor([0, 1, 0, 0])]
    network = SimpleNamespace(way=lambda name: lambda x: way[: len(x)])
    context = SimpleNamespace(
        run=SimpleNamespace(model=network),
        images=4,
        batches=lambda: [(torch.zeros(4, 1), y, torch.arange(4))],
    )
    assert part.make(context).numbers == {"accuracy": 0.75}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\b((?:robustfast|csrc|kernels|tests|bench|docs)/[\w./-]+\.\w+)", page.read_text())
    missing = [name for name in named if "NAME" not in name and name != "robustfast/_C.so"]
    missing = [name for name in missing if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_modules_and_presets_exist(page: Path) -> None:
    for module, rest in re.findall(r"python -m robustfast\.(\w+)([^\n`]*)", page.read_text()):
        assert (ROOT / "robustfast" / f"{module}.py").exists(), module
        words = rest.split("#")[0].split()
        if module == "train" and words and re.match(r"[a-z]", words[0]):
            assert words[0] in PRESETS or words[0].endswith("-NAME"), words[0]


def test_flags_of_the_command_line_page_exist() -> None:
    from robustfast import evaluate, report, reproduce, train

    def flags(kind: type, prefix: str = "") -> set[str]:
        found = set()
        for field in dataclasses.fields(kind):
            found.add(f"--{prefix}{field.name}".replace("_", "-"))
        return found

    config = PRESETS["digits-aatpp"]
    known = {"--help"} | flags(type(config)) | flags(type(config.attack), "attack.")
    known |= flags(type(config.objective), "objective.") | flags(train.Arguments) | flags(evaluate.Arguments)
    known |= flags(evaluate.AttackFlags, "attack.") | flags(reproduce.Arguments)
    known |= flags(report.Arguments)
    text = (ROOT / "docs" / "command-line.md").read_text()
    named = {flag.replace("--no-", "--") for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text)}
    assert named
    assert not named - known


def test_the_command_line_page_names_every_preset_of_attacks() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    assert not [name for name in ATTACKS if f"`{name}`" not in text]


def test_the_page_of_attacks_names_every_attack_and_no_other() -> None:
    table = re.findall(
        r"^\| `([\w-]+)` \| `(\w+)` \|", (ROOT / "docs" / "attacks.md").read_text(), re.MULTILINE
    )
    assert dict(table) == {name: preset.attack.__name__ for name, preset in SUITE.items()}
