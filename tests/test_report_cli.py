"""`python -m robustfast.report`: a page that a real browser shows whole, or one line and exit code 2."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from robustfast import evaluate
from robustfast.command_line import main_wrapper
from robustfast.evaluation.aat import FILE, evaluate_run
from robustfast.evaluation.attacks import attacks_for
from robustfast.evaluation.look import LookSettings, look_at
from robustfast.evaluation.run_record import read_runs
from robustfast.report import Arguments, _progress, main
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS

QUICK = ("--images", "3", "--attacked", "24", "--device", "cpu")

Call = Callable[..., tuple[int, str, str]]


def train(preset: str, path: Path, **fields: Any) -> Path:
    config = PRESETS[preset]
    small = {
        "epochs": 2,
        "batch_size": 480,
        "attack": replace(config.attack, steps=1),
        "validate_every": 1,
        "validate_images": 16,
        "tensorboard": False,
        "device": "cpu",
    }
    return fit(replace(config, **(small | fields), out=path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with three ways that is evaluated, and one with a single way that is not."""
    folder = tmp_path_factory.mktemp("runs")
    three = train("digits-aatpp", folder / 'three <ways> & "more"')
    evaluate_run(three, attacks_for("digits", steps=2), device="cpu", images=40, file=FILE)
    return three, train("digits-at", folder / "one way", lr=0.01)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """(exit code, stdout, stderr) of the command."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        code = main_wrapper(main, [str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class Page(HTMLParser):
    """What a page holds: its text, the tags by name, and that every tag is closed."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.words: list[str] = []
        self.tags: dict[str, list[dict[str, str | None]]] = {}
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.setdefault(tag, []).append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [
            attributes["id"] for found in self.tags.values() for attributes in found if attributes.get("id")
        ]


@pytest.fixture(scope="module")
def pages(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page about one run, and one about two of them."""
    folder = tmp_path_factory.mktemp("pages")
    three, one = runs
    found = {"one": folder / "one.html", "two": folder / "deeper" / "two.html"}
    inversion = ("--inversion", "--inversion-steps", "2")
    assert main_wrapper(main, [str(three), "--out", str(found["one"]), *QUICK, *inversion]) == 0
    assert main_wrapper(main, [str(three), str(one), "--out", str(found["two"]), *QUICK]) == 0
    return found


SECTIONS = ("accuracy", "curves", "images", "classes", "throughput", "configuration", "machine")


def test_one_run_has_every_section(pages: dict[str, Path], runs: tuple[Path, Path]) -> None:
    page = Page(pages["one"])
    assert [name for name in page.ids if "-" not in name] == [*SECTIONS[:4], "inversion", *SECTIONS[4:]]
    assert len(set(page.ids)) == len(page.ids)
    # Natural images, and for each of three ways attacked ones, perturbations and gradients; then inversions.
    assert len(page.tags["img"]) == 3 * (1 + 3 * 3) + 3 * 3
    assert all(image["alt"] for image in page.tags["img"])
    assert all(drawing["aria-label"] for drawing in page.tags["svg"])
    document = json.loads((runs[0] / "evaluation" / "aat.json").read_text())
    for value in (*document["natural"].values(), *document["adversarial"].values()):
        assert f"{100 * value:.2f}" in page.text
    assert "perturbation ×5" in page.text
    assert "attack.eps" in page.text


def test_accuracy_against_eps_stands_on_the_page(runs: tuple[Path, Path], call: Call, tmp_path: Path) -> None:
    path = Path(shutil.copytree(runs[0], tmp_path / "a"))
    sweep = ["--attacks", "pgd2,fgsm,pgd2-l2", "--eps", "8/255,16/255", "--images", "24", "--device", "cpu"]
    assert main_wrapper(evaluate.main, [str(path), *sweep]) == 0
    file = path / "evaluation" / "sweep.json"
    document = json.loads(file.read_text())
    document["warnings"] = [{"check": "a", "text": "something is <masked>"}]
    file.write_text(json.dumps(document))
    code, _, err = call(path, "--images", "2", "--attacked", "0", "--device", "cpu")
    assert (code, err) == (0, "")
    page = Page(path / "report.html")
    assert [name for name in page.ids if "-" not in name][:2] == ["accuracy", "sweep"]
    assert len(set(page.ids)) == len(page.ids)
    assert "something is <masked>" in page.text
    for words in (
        "eps 8/255",
        "all of them",
        f"{document['attacks']['pgd2']['auc']:.4f}",
        "way R, 24 test images, l2",
    ):
        assert words in page.text
    drawn = [drawing["aria-label"] or "" for drawing in page.tags["svg"]]
    assert [label for label in drawn if "radius of each attack" in label] == [
        f"Lines: accuracy of a against the {norm} radius of each attack" for norm in ("linf", "l2")
    ]
    file.write_text("{")
    code, _, err = call(path, *QUICK)
    assert code == 2
    assert "sweep.json: not JSON" in err


def test_two_runs_stand_side_by_side_with_what_differs(pages: dict[str, Path]) -> None:
    page = Page(pages["two"])
    assert [name for name in page.ids if "-" not in name] == list(SECTIONS)
    assert "Not evaluated: one way." in page.text
    assert "python -m robustfast.evaluate" in page.text
    # One way: natural, attacked, perturbation, gradient.
    assert len(page.tags["img"]) == 3 * (1 + 3 * 3) + 3 * 4
    rows = re.findall(r'<tr class="differs">.*?</tr>', page.source)
    fields = {re.search(r'scope="row">([^<]+)', row)[1] for row in rows}  # type: ignore[index]
    assert {"method", "lr", "objective.terms", "objective.half"} <= fields
    assert "epochs" not in fields
    assert "×" in page.text


def test_names_are_text_and_nothing_comes_from_elsewhere(pages: dict[str, Path]) -> None:
    for path in pages.values():
        page = Page(path)
        assert "ways" not in page.tags
        assert 'three <ways> & "more"' in page.text
        assert "script" not in page.tags
        addresses = [
            attributes[key]
            for found in page.tags.values()
            for attributes in found
            for key in ("src", "href", "xlink:href", "data")
            if attributes.get(key)
        ]
        assert addresses
        assert all(address.startswith(("#", "data:")) for address in addresses)
        assert "url(http" not in page.source
        assert "@import" not in page.source


def test_the_page_goes_where_it_is_said(runs: tuple[Path, Path], call: Call, tmp_path: Path) -> None:
    three, one = (Path(shutil.copytree(run, tmp_path / name)) for run, name in zip(runs, "ab", strict=True))
    fast = (*QUICK[:2], "--attacked", "0", "--device", "cpu")
    code, out, err = call(three, *fast)
    assert (code, err) == (0, "")
    assert f"written: {three / 'report.html'}" in out
    code, out, _ = call(three, one, *fast)
    assert code == 0
    assert f"written: {three / 'comparison.html'}" in out
    assert "classes" not in Page(three / "comparison.html").ids


def test_unfinished_runs_and_missing_data_are_said_on_the_page(
    runs: tuple[Path, Path], call: Call, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(runs[1], tmp_path / "a"))
    record = json.loads((path / "config.json").read_text())
    record["config"]["epochs"] = 9
    (path / "config.json").write_text(json.dumps(record))
    shutil.rmtree(path / "checkpoints")
    code, out, err = call(path, *QUICK)
    assert (code, err) == (0, "")
    assert "no images: " in out
    text = Page(path / "report.html").text
    assert "Unfinished, 2 of 9 epochs" in text
    assert "No images:" in text
    assert "has no last checkpoint yet" in text
    (path / "metrics.jsonl").unlink()
    assert call(path, *QUICK)[0] == 0
    assert "No epoch has ended yet" in Page(path / "report.html").text
    record["config"] |= {"dataset": "mnist", "data_dir": str(tmp_path)}
    (path / "config.json").write_text(json.dumps(record))
    shutil.copytree(runs[1] / "checkpoints", path / "checkpoints")
    code, out, _ = call(path, *QUICK)
    assert code == 0
    assert "No images: mnist not found" in Page(path / "report.html").text


def test_bars_move_on_a_terminal_alone(runs: tuple[Path, Path]) -> None:
    (run,) = read_runs([runs[1]])
    for terminal in (True, False):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=100)
        settings = LookSettings(images=2, attacked=8, inversion_steps=30, device="cpu")
        with _progress(run, console) as advance:
            look_at(run, settings, advance)
        assert ("one way: inverting" in shown.getvalue()) == terminal
        assert ("one way: attacking" in shown.getvalue()) == terminal
        assert ("100 %" in shown.getvalue()) == terminal


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are always letters")
def test_a_name_of_bytes_that_are_no_letters_is_shown(
    runs: tuple[Path, Path], call: Call, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(runs[1], os.fsdecode(os.fsencode(tmp_path) + b"/a\xff$b$")))
    out = tmp_path / "page.html"
    code, _, err = call(path, "--out", out, "--images", "1", "--attacked", "0", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "a\ufffd$b$" in Page(out).text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "name one run folder or more"),
        (["nothing-there"], "is no run folder"),
        (["RUN", "RUN"], "is named twice"),
        (["RUN", "--images", "0"], "--images 0: expected at least 1"),
        (["RUN", "--imagse", "3"], "--imagse"),
        (["RUN", "--inversion", "--inversion-steps", "0"], "--inversion-steps 0: expected at least 1"),
        (["RUN", "--checkpoint", "newest"], "newest"),
        (["RUN", "--out", "RUN/config.json/page.html"], "cannot make its folder"),
    ],
)
def test_mistakes_are_one_line(runs: tuple[Path, Path], call: Call, argv: list[str], words: str) -> None:
    code, out, err = call(*(word.replace("RUN", str(runs[0])) for word in argv))
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "file", ["config.json", "metrics.jsonl", "evaluation/aat.json", "checkpoints/last.pt"]
)
def test_damage_is_one_line(runs: tuple[Path, Path], call: Call, tmp_path: Path, file: str) -> None:
    path = Path(shutil.copytree(runs[0], tmp_path / "a"))
    (path / "checkpoints" / "previous.pt").unlink()
    (path / file).write_bytes(b"{ damaged\n")
    code, _, err = call(path, *QUICK)
    assert code == 2
    assert err.count("\n") == 1
    assert Path(file).name in err
    assert not (path / "report.html").exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sys.path.insert(0, str(Path(__file__).parent))
    from browser import Browser, chromium

    program = chromium()
    if program is None:
        pytest.skip("needs chromium (apt-get install chromium), and there is none on PATH")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


DRAWN = """(() => {
  const seen = (element) => { const box = element.getBoundingClientRect(); return box.width > 20 && box.height > 20; };
  const marks = (svg) => [...svg.querySelectorAll("path, use")].filter((mark) => {
    const box = mark.getBoundingClientRect(); return box.width + box.height > 0; }).length;
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  return {
    images: [...document.images].filter((image) => image.complete && image.naturalWidth > 0 && seen(image)).length,
    drawings: [...document.querySelectorAll("svg")].map((svg) => [seen(svg), marks(svg)]),
    inside: document.documentElement.scrollWidth <= window.innerWidth,
  };
})()"""


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_everything_and_complains_of_nothing(
    browser: Any, pages: dict[str, Path], name: str, scheme: str, tmp_path: Path
) -> None:
    page = Page(pages[name])
    browser.show(scheme=scheme)
    browser.open(pages[name])
    found = browser.evaluate(DRAWN)
    assert found["images"] == len(page.tags["img"])
    assert len(found["drawings"]) == len(page.tags["svg"])
    assert all(seen and marks > 5 for seen, marks in found["drawings"]), found["drawings"]
    assert found["inside"]
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    (tmp_path / "page.png").write_bytes(browser.screenshot())
    shown = imread(tmp_path / "page.png")[..., :3]
    assert shown.std() > 0.05
    # A dark page is dark, and a light one light.
    assert (shown.mean() < 0.4) == (scheme == "dark")


def test_a_narrow_window_scrolls_in_tables_alone(browser: Any, pages: dict[str, Path]) -> None:
    browser.show(width=390, height=800)
    browser.open(pages["two"])
    assert browser.evaluate(DRAWN)["inside"]


def test_the_page_prints_light_and_unfolded(browser: Any, pages: dict[str, Path]) -> None:
    browser.show(scheme="dark", media="print")
    browser.open(pages["two"])
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = false; })")
    heights = browser.evaluate(
        "[...document.querySelectorAll('.body')].map((body) => body.getBoundingClientRect().height)"
    )
    assert len(heights) == len(SECTIONS)
    assert min(heights) > 20
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    red, green, blue = map(
        int, re.findall(r"\d+", browser.evaluate("getComputedStyle(document.body).color"))[:3]
    )
    assert red + green + blue < 200
    browser.show(scheme="dark")
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 30


def test_the_browser_would_notice(browser: Any, tmp_path: Path) -> None:
    """What the tests above look for is found where it is: a script's error, an image from elsewhere, one not drawn."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>bad</title><img src='data:image/png;base64,AA' width='50' height='50'>"
        "<img src='missing.png'><script>console.error('trouble'); nothing()</script>"
    )
    browser.show()
    browser.open(page)
    assert browser.evaluate(DRAWN)["images"] == 0
    complaints = " ".join(browser.complaints())
    assert "trouble" in complaints
    assert "nothing is not defined" in complaints
    assert (tmp_path / "missing.png").as_uri() in browser.requests()


def test_the_reports_page_of_the_docs_has_every_flag() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "report.md").read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Arguments)}
    assert named == fields - {"--runs"}
