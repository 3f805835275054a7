"""The page about drop-in adapters: its code runs, and the names it lists exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustfast.attacks.compat import advertorch, foolbox, torchattacks

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "drop-in.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_the_code_runs(block: str, make_net: Any, batch: Any) -> None:
    model: nn.Module = make_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"model": model.eval(), "x": batch[0], "y": batch[1], "optimizer": optimizer}
    exec(compile(block, "example", "exec", dont_inherit=True), names)
    assert len(names) > 5, "it defined something"


def test_the_names_exist() -> None:
    words = set(re.findall(r"\b[A-Z][A-Za-z0-9]+\b", PAGE))
    for library, least in ((torchattacks, 15), (advertorch, 8)):
        assert len([name for name in words if name in vars(library)]) >= least
    for name in torchattacks.__all__:
        assert name in PAGE or name == "attack", f"docs/drop-in.md does not name torchattacks.{name}"
    for name in words:
        if name.endswith("Attack") and name not in (
            "AutoAttack",
            "APGDAttack",
            "SquareAttack",
            "MultiAttack",
        ):
            assert hasattr(advertorch, name) or hasattr(foolbox.attacks, name) or "AdamBasic" in name, name


IMPORTS = re.findall(
    r"^\| `from (\S+) import (\S+)` \| `(from robustfast\S+ import (\S+))` \|$", PAGE, re.MULTILINE
)


@pytest.mark.parametrize(("there", "wanted", "line", "name"), IMPORTS)
def test_imports_from_deeper_modules_have_a_line(there: str, wanted: str, line: str, name: str) -> None:
    found: dict[str, Any] = {}
    exec(compile(line, there, "exec", dont_inherit=True), found)
    assert wanted == name
    assert callable(found[name])


def test_every_library_has_its_deeper_imports() -> None:
    libraries = {"torchattacks", "autoattack", "foolbox", "cleverhans", "advertorch", "robustbench"}
    assert {there.partition(".")[0] for there, *_ in IMPORTS} == libraries
