"""Run folders: those of another version say so, those that another process trains into are left to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_end, few_digits, tiny
from warm import Warm

import robustfast
from robustfast.errors import UserError
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.fit import fit, resume
from robustfast.training.run_folder import RunFolder, load_run
from robustfast.training.run_lock import run_lock


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "load", few_digits)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "load", few_digits)
        return fit(tiny("digits-st", out=tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(whole, tmp_path / "run")


def stored(run: Path, version: str, **config: Any) -> None:
    """Make a run's config.json one of another version; a field None is left out."""
    file = run / "config.json"
    record = json.loads(file.read_text())
    record |= {"robustfast": version, "commit": "abc123-dirty"}
    record["config"] = {k: v for k, v in (record["config"] | config).items() if v is not None}
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("version", "config", "what", "mend"),
    [
        (
            "0.0.9",
            {"old_field": 1},
            "stored configuration has unknown fields: old_field",
            "start a new run, or use robustfast 0.0.9 (git checkout abc123) for this one",
        ),
        (
            "0.0.9",
            {"lr": None},
            "stored configuration lacks the fields: lr",
            "start a new run, or use robustfast 0.0.9 (git checkout abc123) for this one",
        ),
        (
            "99.1.0",
            {"new_field": 1},
            "stored configuration has unknown fields: new_field",
            "update robustfast to 99.1.0 or later, or start a new run",
        ),
        ("0.0.9", {"method": "gone"}, "unknown objective 'gone'", "use robustfast 0.0.9"),
        ("0.0.9", {"epochs": 0}, "--epochs 0: expected at least 1", "use robustfast 0.0.9"),
    ],
)
def test_a_run_of_another_version_says_so_and_what_to_do(
    run: Path, version: str, config: dict[str, Any], what: str, mend: str
) -> None:
    stored(run, version, **config)
    expected = f"config.json was written by robustfast {version}, this is {robustfast.__version__}: {what}"
    for use in (resume, load_run):
        with pytest.raises(UserError, match=f"{re.escape(expected)}.*; .*{re.escape(mend)}") as caught:
            use(run)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"config": {}}', '{"config": {"method": "st", "attack": 3}}', "\xff"]
)
def test_a_damaged_configuration_is_one_line(run: Path, content: str) -> None:
    (run / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"config\.json (is damaged|was written by)") as caught:
        resume(run)
    assert "\n" not in str(caught.value)


def test_another_version_that_can_be_read_goes_on_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(run, "0.0.9")
    resume(run)
    assert (
        f"{run} was started by robustfast 0.0.9, this is {robustfast.__version__}" in capsys.readouterr().out
    )
    stored(run, robustfast.__version__)
    resume(run)
    assert "was started by" not in capsys.readouterr().out


def test_a_checkpoint_of_the_first_format_is_evaluated_and_not_resumed(run: Path, whole: Path) -> None:
    stored(run, "0.0.9")
    file = run / "checkpoints" / "last.pt"
    state = checkpoint.load(file) | {"format": 1, "rng": {"cpu": torch.get_rng_state()}}
    torch.save(state, file)
    expected = (
        "last.pt has checkpoint format 1, of robustfast 0.0.9; this is .* start a new run, or use robustfast"
    )
    with pytest.raises(UserError, match=expected):
        resume(run)
    weights = load_run(run, device="cpu").model.state_dict()
    assert all(
        torch.equal(value, weights[name])
        for name, value in load_run(whole, device="cpu").model.state_dict().items()
    )


def test_a_checkpoint_of_a_later_format_is_refused(run: Path) -> None:
    file = run / "checkpoints" / "last.pt"
    torch.save(checkpoint.load(file) | {"format": checkpoint.FORMAT + 1}, file)
    for use in (resume, load_run):
        with pytest.raises(
            UserError, match=r"has checkpoint format 3, of a later robustfast than this, .*: update it"
        ):
            use(run)


LOCKING = """
import sys, time
from pathlib import Path
from robustfast.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
def test_one_process_at_a_time_and_a_kill_frees_the_folder(
    warm: Warm, run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warm.command("-c", LOCKING, run) as other:
        assert other.stdout.readline() == "locked\n"
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        message = rf"another process is training into {run} \(fuser {run}/lock names it\): wait for its end or stop it"
        with pytest.raises(UserError, match=message) as caught:
            resume(run)
        assert "\n" not in str(caught.value)
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        assert capsys.readouterr().out == ""  # said before any data is read
    assert other.returncode == -signal.SIGKILL
    resume(run)
    assert_same_end(run, whole)


def test_what_is_begun_meanwhile_in_the_same_folder_is_not_overwritten(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes find a folder empty; the slower one gets its lock when the faster one has gone."""
    out = tmp_path / "run"
    trainer = fit_module.Trainer

    def slowly(*args: Any, **keywords: Any) -> Any:
        built = trainer(*args, **keywords)
        shutil.copytree(whole, out, dirs_exist_ok=True)
        return built

    monkeypatch.setattr(fit_module, "Trainer", slowly)
    with pytest.raises(UserError, match=f"another process has started a run in {out}: give another folder"):
        fit(tiny("digits-st", out=out))
    assert_same_end(out, whole)


def test_a_lock_is_no_run(tmp_path: Path) -> None:
    """What a process leaves that is killed after it has taken the lock stands in the way of no other."""
    out = tmp_path / "run"
    out.mkdir()
    with run_lock(out):
        pass
    assert [path.name for path in out.iterdir()] == ["lock"]
    fit(tiny("digits-st", out=out, epochs=1))
    assert RunFolder.open(out).config.epochs == 1
