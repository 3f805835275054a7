"""The modules at which detectors look, of every backbone that names some."""

from __future__ import annotations

import pytest
import torch

from robustfast.models import MODELS, backbone

SIZES = {"digits_cnn": 8, "small_cnn": 28}
# In place of WRN-28-10, a small one.
NAMES = [name for name, build in MODELS.items() if hasattr(build, "taps") and name != "resnet50"] + [
    "wide_resnet10_1_dropout"
]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_tap_gives_is_not_written_over(name: str) -> None:
    """A hook keeps a module's output without a copy: an operation in place behind it would change what was kept."""
    torch.manual_seed(0)
    model, kept = backbone(name, in_channels=1).eval(), {}

    def keep(tap: str, value: torch.Tensor) -> None:
        kept[tap] = value, value.clone()

    for tap in model.taps:
        model.get_submodule(tap).register_forward_hook(lambda *call, tap=tap: keep(tap, call[2]))
    size = SIZES.get(name, 32)
    model(torch.rand(2, 1, size, size))
    assert list(kept) == list(model.taps)
    for tap, (value, then) in kept.items():
        assert torch.equal(value, then), tap
