"""FAB's projections of points and their originals onto hyperplanes: torchattacks' sort, the reference, and ours."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import fab_projection, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import fab_projection as reference

SHAPES = {"128x3x32x32": (128, 3, 32, 32), "64x1x28x28": (64, 1, 28, 28), "16x3x224x224": (16, 3, 224, 224)}
# How much of what the box allows a step asks for: near the boundary, as in most steps, and far from it.
SHARES = {"near": 0.02, "far": 0.5}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(shape: tuple[int, ...], share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Iterates and originals [2B, ...], normals [B, ...] and offsets [B]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    both = torch.cat([(x + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1), x])
    w = torch.randn(shape, generator=generator)
    reach = (w.abs() * torch.where(w > 0, x, 1 - x)).flatten(1).sum(1)
    b = (w * x).flatten(1).sum(1) - share * reach
    return both.to(DEVICE), w.to(DEVICE), b.to(DEVICE)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", SHAPES)
def bench_fab_projection(
    shape: str, share: str, norm: str, compare: Any, fused: Any, measuring: bool
) -> None:
    size = SHAPES[shape]
    if not measuring:
        size = (min(size[0], 2), *size[1:])
    x, w, b = inputs(size, SHARES[share])
    out = torch.empty_like(x)

    def on(backend: str, **more: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_backend(backend):
                return fab_projection(x, w, b, norm=norm, **more)

        return run

    rivals: dict[str, Callable[[], Tensor]] = {}
    if find_spec("torchattacks"):
        from torchattacks.attacks import fab

        project = getattr(fab, f"projection_{norm}")
        # As it is called there: on rows, with every hyperplane twice.
        rivals["torchattacks"] = lambda: project(
            x.flatten(1), torch.cat([w, w]).flatten(1), torch.cat([b, b])
        ).view_as(x)
    rivals["reference"] = on("reference")
    compiled = torch.compile(reference.fab_projection, fullgraph=True)
    rivals["compiled"] = lambda: compiled(x, w, b, norm=norm, bounds=(0.0, 1.0))
    rivals |= {name: on(name, out=out) for name in fused("fab_projection", DEVICE)[:-1]}
    rivals["fused"] = lambda: fab_projection(x, w, b, norm=norm, out=out)

    expected = on("reference")()
    sample = Sample(f"{shape}-{share}-{norm}", (x, w, b), {"norm": norm}, exact=False)

    def check(name: str, result: Tensor) -> None:
        if name == "torchattacks":
            # It sums in float32; under l1 all of the error ends in the one pixel that takes part of its room.
            error = (result - expected).abs().flatten(1)
            assert error.amax() <= (2e-4 if norm != "l1" else 0.5)
            assert error.mean() <= 1e-5
        elif name == "compiled":
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        else:
            assert_agrees(fab_projection, sample, [result])

    nbytes = 2 * x.nbytes + w.nbytes  # points, normals, steps
    compare("fab_projection", sample.label, rivals, check, nbytes=nbytes, device=DEVICE)
