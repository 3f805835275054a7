"""When two backends agree: the one rule, for the ops' tests and for the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from robustfast.ops import use_backend
from robustfast.ops.backend import Sample

__all__ = ["assert_agrees", "results", "truth"]


def results(function: Callable[..., Any], backend: str, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The tensors that `function` returns on `backend`."""
    with use_backend(backend):
        return tree_leaves(function(*args, **kwargs))


def truth(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Tensor]:
    """The reference on the same values in float64."""
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.double() if t.dtype.is_floating_point else t, (args, kwargs)
    )
    return results(function, "reference", *args, **kwargs)


def assert_agrees(function: Callable[..., Any], sample: Sample, got: list[Tensor]) -> None:
    """`got` is the reference's result: to the bit where the sample says so, else as good a rounding of the truth.

    As good: its error against float64 is at most twice the error of PyTorch's own run of the same formula, plus one
    unit in the last place of the largest value. Of float64 the reference is itself the truth, so there the slack is
    all: eight units, where 2 were seen from the order of a sum.
    """
    expected = results(function, "reference", *sample.args, **sample.kwargs)
    assert [t.shape for t in got] == [t.shape for t in expected]
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    assert [t.stride() for t in got] == [t.stride() for t in expected]
    if sample.exact:
        for ours, theirs in zip(got, expected, strict=True):
            differing = int((ours != theirs).sum())
            assert torch.equal(ours, theirs), f"{sample.label}: {differing} of {ours.numel()} values differ"
        return
    for ours, theirs, exact in zip(
        got, expected, truth(function, *sample.args, **sample.kwargs), strict=True
    ):
        if not ours.numel():
            continue
        slack = (8 if ours.dtype == torch.float64 else 1) * torch.finfo(ours.dtype).eps
        allowed = 2 * (theirs - exact).abs().max() + slack * exact.abs().max()
        error = (ours - exact).abs().max()
        assert error <= allowed, f"{sample.label}: error {error:.3g} against float64, allowed {allowed:.3g}"
