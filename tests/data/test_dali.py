from __future__ import annotations

import gc
import importlib
import sys

import pytest
import torch
from toy_feeds import becomes, epoch_of, needs_dali, threads, toy

from robustfast.data import feed
from robustfast.data.dali import DaliFeed, missing
from robustfast.data.image_files import ImageFiles

MODULE = importlib.import_module("robustfast.data.dali")


def absent(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}")


@pytest.mark.parametrize(("cuda", "package"), [("12.8", "120"), ("13.0", "130"), (None, "130")])
def test_the_package_is_named_that_goes_with_torchs_cuda(monkeypatch, cuda, package):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for find in (absent, lambda name: None):
        monkeypatch.setattr(MODULE.importlib.util, "find_spec", find)
        assert missing() == f"DALI is not installed: pip install nvidia-dali-cuda{package}"


def test_elsewhere_than_on_linux_there_is_no_dali(monkeypatch, one_line_error):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(MODULE.platform, "system", lambda: "Darwin")
    with one_line_error("--loader dali: there is no DALI for Darwin", "--loader torch"):
        feed(toy(), 4, loader="dali", seed=0)


def test_an_installation_that_does_not_import_is_said_to_be_so(monkeypatch, one_line_error):
    monkeypatch.setattr(MODULE, "missing", lambda: None)
    monkeypatch.setitem(sys.modules, "nvidia.dali.plugin.pytorch", None)
    with one_line_error("--loader dali: DALI is installed but does not import", "--loader torch"):
        feed(toy(), 4, loader="dali", seed=0)


@pytest.fixture
def files(photograph, tmp_path) -> ImageFiles:
    paths = tuple(photograph(tmp_path / f"{number:02d}.jpg", number, (40, 36)) for number in range(11))
    return ImageFiles("pictures", paths, torch.arange(11) % 2, ("a", "b"), image_size=16)


@needs_dali
@pytest.mark.parametrize("kind", ["array", "files"])
def test_no_thread_outlives_its_epoch(kind, files):
    source = feed(files if kind == "files" else toy(40), 4, loader="dali", seed=0, augment=True)
    epoch_of(source, 0)
    before = threads()
    batches = source.batches(1)
    next(batches)
    assert threads() > before
    source.close()
    assert becomes(lambda: threads() <= before)
    assert list(batches) == []
    abandoned = source.batches(2)
    next(abandoned)
    del abandoned
    assert becomes(lambda: threads() <= before)
    # Nor does an error keep them, as long as somebody holds it.
    if kind == "files":
        files.files[3].write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"03\.jpg"):
            epoch_of(source, 0)
        assert becomes(lambda: threads() <= before)


@needs_dali
def test_skipped_batches_are_not_gathered(monkeypatch):
    drawn = []
    crops = DaliFeed._crops
    monkeypatch.setattr(
        DaliFeed, "_crops", lambda self, index, epoch: drawn.append(index) or crops(self, index, epoch)
    )
    source = feed(toy(40), 5, loader="dali", seed=2, augment=True)
    rest = list(source.batches(0, start=6))
    assert len(rest) == 2
    assert torch.equal(torch.cat(drawn), torch.cat([batch.index for batch in rest]))


@needs_dali
def test_skipped_files_are_not_read(files):
    source = feed(files, 4, loader="dali", seed=0, shuffle=False)
    for path in files.files[:8]:
        path.write_bytes(b"no image")
    (batch,) = source.batches(0, start=2)
    assert batch.index.tolist() == [8, 9, 10]


@needs_dali
def test_the_reader_counts_the_epoch(monkeypatch, files):
    """DALI reads the files under the name by which its iterator counts them; the last batch is cut, not filled."""
    plugin = importlib.import_module("nvidia.dali.plugin.pytorch")
    iterators = []

    class Counted(plugin.DALIGenericIterator):
        def __init__(self, pipeline, outputs, **options):
            super().__init__(pipeline, outputs, **options)
            iterators.append((options["reader_name"], pipeline.reader_meta("Reader")["epoch_size"]))

    monkeypatch.setattr(plugin, "DALIGenericIterator", Counted)
    sizes = [len(batch.y) for batch in feed(files, 4, loader="dali", seed=0).batches(0)]
    assert iterators == [("Reader", 11)]
    assert sizes == [4, 4, 3]


@needs_dali
def test_memory_stays_flat_over_epochs():
    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    source = feed(toy(64, height=64, width=64), 16, loader="dali", seed=0, augment=True)
    for epoch in range(10):
        epoch_of(source, epoch)
    before = resident()
    for epoch in range(60):
        epoch_of(source, epoch)
    # An epoch has 0.8 MB of images: 47 MB, if what one of its steps works on were kept.
    assert resident() - before < 30e6
