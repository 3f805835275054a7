"""TensorBoard events: what TensorBoard itself reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustfast.training.board import Board


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_scalars_and_what_a_resumed_run_takes_back(tmp_path: Path) -> None:
    first = Board(tmp_path / "board", 0)
    for epoch in (1, 2, 3):
        first.scalars(epoch, {"loss": float(epoch), "natural": {"r": 0.5}, "stopped_early": True})
    # The checkpoint of epoch 2 is the newest, so epoch 3 is trained again.
    Board(tmp_path / "board", 2).scalars(3, {"loss": 30.0})
    events = read(tmp_path / "board")
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [event.step for event in events.Scalars("natural/r")] == [1, 2]
    assert events.Scalars("stopped_early")[0].value == 1.0


def test_images_are_grids_of_what_was_given(tmp_path: Path) -> None:
    import io

    image = pytest.importorskip("PIL.Image")
    x = torch.zeros(8, 3, 4, 5)
    x[5, 0] = 1.0
    Board(tmp_path / "board", 0).images(1, {"images/natural": x, "images/adversarial_r": x[:, :1]})
    events = read(tmp_path / "board")
    assert events.Tags()["images"] == ["images/natural", "images/adversarial_r"]
    [found] = events.Images("images/natural")
    assert (found.step, found.height, found.width) == (1, 2 * 6 - 2, 4 * 7 - 2)
    picture = image.open(io.BytesIO(found.encoded_image_string)).convert("RGB")
    # The sixth image, second of the second row, is red; above it a black one, between them white.
    assert [picture.getpixel(at) for at in ((8, 7), (8, 1), (8, 5))] == [
        (255, 0, 0),
        (0, 0, 0),
        (255, 255, 255),
    ]


def test_no_folder_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    board = Board(None, 0)
    board.scalars(1, {"loss": 1.0})
    board.images(1, {"x": torch.zeros(1, 1, 2, 2)})
    assert not list(tmp_path.iterdir())
