"""The nearest point of an l1 ball inside the box: by sorting twice the entries, that compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import l1_projection, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import l1_projection as reference

SHAPES = {"128x3x32x32": (128, 3, 32, 32), "64x1x28x28": (64, 1, 28, 28), "8x3x224x224": (8, 3, 224, 224)}
EPS = {"128x3x32x32": 12.0, "64x1x28x28": 10.0, "8x3x224x224": 255.0}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images of which a fifth of the pixels lie at a wall, and points around them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).mul(1.2).sub(0.1).clamp(0, 1)
    return (x + torch.randn(shape, generator=generator) * 0.05).to(DEVICE), x.to(DEVICE)


def sorting(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """In float32, by one sort of both kinds of kinks and a search in their cumulated slopes."""
    delta = (x_adv - x).flatten(1)
    size = delta.abs()
    room = torch.where(delta > 0, 1 - x.flatten(1), x.flatten(1))
    kinks, order = torch.cat([size, (size - room).clamp(min=0)], 1).sort(1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).cumsum(1)
    phi = torch.cat(
        [torch.zeros_like(size[:, :1]), (slope[:, :-1] * (kinks[:, :-1] - kinks[:, 1:])).cumsum(1)], 1
    )
    last = torch.searchsorted(phi, torch.full_like(phi[:, :1], eps), right=True) - 1
    tau = kinks.gather(1, last) - (eps - phi.gather(1, last)) / slope.gather(1, last).clamp(min=1)
    tau = torch.where(torch.minimum(size, room).sum(1, keepdim=True) <= eps, 0, tau)
    return (x + (delta.sign() * (size - tau).clamp(min=0)).view_as(x)).clamp(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
def bench_l1_projection(shape: str, compare: Any, fused: Any, measuring: bool) -> None:
    size, eps = SHAPES[shape], EPS[shape]
    if not measuring:
        size = (min(size[0], 4), *size[1:])
    images, out = inputs(size), torch.empty(size, device=DEVICE)
    radius = torch.tensor(eps, device=DEVICE)

    def on(backend: str, **more: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_backend(backend):
                return l1_projection(*images, eps=eps, **more)

        return run

    compiled = torch.compile(reference.l1_projection, fullgraph=True)
    rivals: dict[str, Callable[[], Tensor]] = {
        "sorting": lambda: sorting(*images, eps),
        "reference": on("reference"),
        "compiled": lambda: compiled(*images, radius, bounds=(0.0, 1.0)),
        **{name: on(name, out=out) for name in fused("l1_projection", DEVICE)[:-1]},
        "fused": lambda: l1_projection(*images, eps=eps, out=out),
    }
    sample = Sample(shape, images, {"eps": eps}, exact=False)
    expected = on("reference")()

    def check(name: str, result: Tensor) -> None:
        if name == "sorting":
            # float32 sums over as many entries as an image has.
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
        else:
            assert_agrees(l1_projection, sample, [result])

    compare("l1_projection", shape, rivals, check, nbytes=3 * images[0].nbytes, device=DEVICE)
