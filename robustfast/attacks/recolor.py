"""ReColorAdv: one small change of colours for all pixels of an image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from robustfast.attacks.losses import Loss
from robustfast.attacks.smoothness import smoothness
from robustfast.attacks.transformed import State, TransformAttack

__all__ = ["ReColorAdv", "luv_to_rgb", "rgb_to_luv"]

# Linear sRGB to CIE XYZ and back, and the white point's u' and v', rounded as in the attack's published code. A round
# trip therefore moves a pixel by up to 1.3e-3.
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9504))
TO_LINEAR = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
WHITE = (0.1978, 0.4683)
TINY = 1e-10
# What a grey image shows of a colour (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Dark: below it lightness is linear in Y.
DARK_Y, DARK_L = (6 / 29) ** 3, 8.0
# A bright colour's XYZ may exceed 1 by this much before it is cut off.
LARGEST_XYZ = 1.1


class ReColorAdv(TransformAttack):
    """Functional adversarial attacks on colour, Laidlaw and Feizi 2019 (arXiv:1906.00001).

    Every pixel's colour, in CIE L*u*v* scaled to about [0, 1], is looked up in a table: a lattice of 16 x 32 x 32
    colours, between which it is interpolated linearly along each axis. Adam climbs

        margin(model(recoloured x), y) - (smoothing / eps) * sum over neighbours in the lattice of |difference|_2

    over the table's offset from the identity. After each step the table is confined: to [0, 1], then to colours that
    sRGB has, then to within eps of the identity in each coordinate. The last table counts, not the best.

    This is the code of the paper with the settings of the perceptual-adversarial code, which CD-VAE's evaluation runs;
    its ``keep_best`` is computed and not used. The paper allows a bound of its own for each coordinate. Where a
    gradient is not finite (black pixels divide by their lightness), the code's Adam keeps nan for good; here such an
    entry counts as zero.

    With eps 0 the image goes through the colour space and back: rounded constants move a pixel by up to 1.3e-3, and
    colours outside the lattice (u* or v* beyond 100 either way, as saturated red, green and blue) are drawn to its
    edge. A grey image's levels are looked up as greys, and of the colours found it shows the luma.

    Args:
        model: see `Attack`; images [B, 3, H, W] in sRGB, or grey ones [B, 1, H, W].
        eps: bound on each coordinate of each colour of the table, in units of 100 in L*, and of 200 in u* and v*.
        steps, step_size: of Adam, the latter in units of eps.
        smoothing: weight of the unevenness, for eps 1.
        lattice: colours along L*, u* and v*.
        random_start, restarts, eot, early_stop: see `TransformAttack`.
        loss, targeted, bounds, batch_norm, seed, engine: see `Attack`. "compile" runs eagerly.

    Raises:
        ValueError: a setting out of range or an unknown name; in a call, images of another shape.
    """

    name = "recolor"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float = 0.06,
        steps: int = 100,
        step_size: float = 0.001,
        smoothing: float = 0.0036,
        lattice: tuple[int, int, int] = (16, 32, 32),
        random_start: bool = False,
        restarts: int = 1,
        eot: int = 1,
        early_stop: bool = False,
        loss: str | Loss = "margin",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if not 0 <= smoothing < float("inf"):
            raise ValueError(f"smoothing is {smoothing}, expected a weight >= 0")
        if len(lattice) != 3 or any(not isinstance(size, int) or size < 2 for size in lattice):
            raise ValueError(f"lattice is {lattice}, expected three whole numbers from 2")
        super().__init__(
            model, eps=eps, steps=steps, step_size=step_size, optimizer="adam", random_start=random_start,
            restarts=restarts, eot=eot, early_stop=early_stop, loss=loss, targeted=targeted, bounds=bounds,
            batch_norm=batch_norm, seed=seed, engine=engine,
        )  # fmt: skip
        self.smoothing = smoothing
        self.lattice = tuple(lattice)

    def _prepare(self, x: Tensor) -> State:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, ReColorAdv recolours images [B, 3, H, W] or [B, 1, H, W]"
            )
        lo, hi = self.bounds
        luv = rgb_to_luv(((x - lo) / (hi - lo)).expand(-1, 3, -1, -1).movedim(1, -1))
        return neighbours(luv.flatten(1, 2), self.lattice)

    def _size(self, x: Tensor) -> tuple[int, ...]:
        return (*self.lattice, 3)

    def _images(self, x: Tensor, offset: Tensor, prepared: State, *, first: bool = False) -> Tensor:
        colours = (self._identity(offset) + offset).reshape(-1, 3)
        per_sample = len(colours) // len(x)
        rows = torch.arange(len(x), device=x.device)[:, None, None] * per_sample
        # An index whose gradient is summed in a fixed order; that of `grid_sample` and of `gather` is not, on CUDA.
        luv = (colours[prepared["nodes"] + rows] * prepared["weights"]).sum(1)
        lo, hi = self.bounds
        rgb = luv_to_rgb(luv).unflatten(1, x.shape[2:]).movedim(-1, 1)
        if x.shape[1] == 1:
            rgb = _mix(rgb.movedim(1, -1), (LUMA,))[0][:, None]
        return (rgb * (hi - lo) + lo).clamp(lo, hi)

    def _confine(self, offset: Tensor, prepared: State) -> Tensor:
        identity = self._identity(offset)
        table = rgb_to_luv(luv_to_rgb((identity + offset).clamp_(0, 1)))
        return (table - identity).clamp_(-self.eps, self.eps)

    def _penalty(self, offset: Tensor) -> Tensor | None:
        return smoothness(offset) * (self.smoothing / self.eps) if self.smoothing and self.eps else None

    def _identity(self, like: Tensor) -> Tensor:
        """The table that changes nothing, [1, *lattice, 3]."""
        axes = [torch.linspace(0, 1, size, dtype=like.dtype, device=like.device) for size in self.lattice]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None]


def neighbours(places: Tensor, lattice: tuple[int, ...]) -> State:
    """Between which colours of a lattice [*lattice] over [0, 1]^3 each place [B, n, 3] lies, and how near to each.

    Returns:
        "nodes": int64 [B, 8, n], numbers of the lattice's points in reading order; places outside have those at its
        edge. "weights": [B, 8, n, 1], which sum to 1.
    """
    axes = []
    for axis, size in enumerate(lattice):
        place = places[..., axis] * (size - 1)
        below = place.floor()
        part = place - below
        ends = [(below.long() + step).clamp(0, size - 1) for step in (0, 1)]
        axes.append(list(zip(ends, (1 - part, part), strict=True)))
    nodes, weights = [], []
    for (a, near_a), (b, near_b), (c, near_c) in product(*axes):
        nodes.append((a * lattice[1] + b) * lattice[2] + c)
        weights.append(near_a * near_b * near_c)
    return {"nodes": torch.stack(nodes, dim=1), "weights": torch.stack(weights, dim=1)[..., None]}


def rgb_to_luv(rgb: Tensor) -> Tensor:
    """(L* / 100, (u* + 100) / 200, (v* + 100) / 200) of sRGB colours [..., 3] in [0, 1].

    CIE 1976, with white at L* = 100. Not every colour lies in [0, 1]: u* reaches 175, v* falls to -134.
    """
    linear = torch.where(rgb < 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = _mix(linear, TO_XYZ)
    total = x + 15 * y + 3 * z + TINY
    light = torch.where(y < DARK_Y, y * (29 / 3) ** 3, 116 * y.clamp(min=TINY) ** (1 / 3) - 16)
    u = 13 * light * (4 * x / total - WHITE[0])
    v = 13 * light * (9 * y / total - WHITE[1])
    return torch.stack([light / 100, (u + 100) / 200, (v + 100) / 200], dim=-1)


def luv_to_rgb(luv: Tensor) -> Tensor:
    """The sRGB colours [..., 3] in [0, 1] that `rgb_to_luv` gives; those outside sRGB are cut off at its walls."""
    light, u, v = luv[..., 0] * 100, luv[..., 1] * 200 - 100, luv[..., 2] * 200 - 100
    up, vp = (part / (13 * light + TINY) + white for part, white in zip((u, v), WHITE, strict=True))
    y = torch.where(light <= DARK_L, light * (3 / 29) ** 3, ((light + 16) / 116) ** 3)
    total = 4 * vp + TINY
    xyz = torch.stack([y * 9 * up / total, y, y * (12 - 3 * up - 20 * vp) / total], dim=-1)
    linear = torch.stack(_mix(xyz.clamp(0, LARGEST_XYZ), TO_LINEAR), dim=-1)
    bright = 1.055 * linear.clamp(min=TINY) ** (1 / 2.4) - 0.055
    return torch.where(linear < 0.0031308, 12.92 * linear, bright).clamp(0, 1)


def _mix(colours: Tensor, matrix: tuple[tuple[float, ...], ...]) -> list[Tensor]:
    first, second, third = colours.unbind(-1)
    return [a * first + b * second + c * third for a, b, c in matrix]
