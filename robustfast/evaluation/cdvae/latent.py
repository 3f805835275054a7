"""Figure 3: how each entry of the code of attacked images goes with that of the images themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.cdvae.attacked import attacked, in_words
from robustfast.evaluation.cdvae.classifiers import no_generator, split_network
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.tables import percent
from robustfast.visualization.correlation_histogram import correlation_histogram

__all__ = ["BINS", "LISTED", "PART", "PairedMoments", "p_values"]

BINS = 40
LISTED = 4096
"""Entries of which the file lists the correlation at most, at even distances. The codes of a vector-quantised
auto-encoder have hundreds of thousands."""
LEVEL = 0.05


class PairedMoments:
    """Correlation of each entry of two sets of vectors that come batch by batch; memory as for a few vectors.

    Sums of squares about the means so far, put together as by Chan et al. 1983: entries far from zero lose nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(2, 1, dtype=torch.float64)
        # Sums about the means: of squares of either, and of products.
        self._sums = torch.zeros(3, 1, dtype=torch.float64)

    def update(self, one: Tensor, other: Tensor) -> None:
        """Add float [B, L] of either set, row by row the same samples."""
        pair = torch.stack([one, other]).double()
        added = pair.shape[1]
        mean = pair.mean(1)
        u, v = pair - mean[:, None]
        sums = torch.stack([u.square().sum(0), v.square().sum(0), (u * v).sum(0)])
        if self.count:
            away = mean - self._mean
            products = torch.stack([away[0].square(), away[1].square(), away[0] * away[1]])
            sums = self._sums + sums + products * (self.count * added / (self.count + added))
            mean = self._mean + away * (added / (self.count + added))
        self._mean, self._sums = mean, sums
        self.count += added

    def correlation(self) -> Tensor:
        """Pearson's r of each entry, float64 [L] on the CPU, nan where one of both is constant."""
        squares, others, products = self._sums.cpu()
        # As scipy has it: what is constant but for rounding has no correlation.
        scale = self._mean.cpu().square() * (1e-13**2 * self.count)
        moves = (squares > scale[0]) & (others > scale[1])
        return torch.where(moves, products / (squares * others).sqrt(), torch.nan).clamp(-1, 1)


def p_values(correlation: Tensor, count: int) -> NDArray[np.float64]:
    """Two-sided p-values of Pearson's r [L] of `count` >= 3 samples, if both were normal and independent (the exact
    distribution, as `scipy.stats.pearsonr` has it); nan where r is."""
    half = count / 2 - 1
    return 2 * stats.beta(half, half, loc=-1, scale=2).sf(correlation.abs().numpy())


def _make(context: PartContext) -> PartResult:
    if context.images < 3:
        raise UserError(
            f"--images {context.images}: a correlation has a p-value from 3 images on, give 3 or more"
        )
    network, by = split_network(context.run), attacked(context)
    moments = PairedMoments()
    with context.progress(context.images) as bar:
        for x, y, positions in context.batches(bar=bar):
            x_adv = by.attack(x, y, positions)
            with torch.no_grad():
                moments.update(network.split(x).latent, network.split(x_adv).latent)
    correlation = moments.correlation()
    p = p_values(correlation, moments.count)
    defined = ~correlation.isnan()
    if not defined.any():
        raise UserError(f"{context.path}: G gives every image one code, which correlates with nothing")
    numbers = _numbers(correlation[defined], p[defined.numpy()])
    shown = torch.arange(min(LISTED, len(correlation))) * len(correlation) // min(LISTED, len(correlation))
    numbers |= {
        "dimensions": len(correlation),
        "undefined": int((~defined).sum()),
        "images": moments.count,
        "attack": by.settings,
        "correlation": [None if r != r else r for r in correlation[shown].tolist()],
        "p": [None if v != v else v for v in p[shown.numpy()].tolist()],
    }
    figure = correlation_histogram(
        numbers["histogram"]["counts"],
        numbers["histogram"]["edges"],
        context.figure(PART.name),
        title=f"{context.path.name}: code of images and of attacked images",
        mean=numbers["mean"],
        significant=numbers["significant"],
        level=LEVEL,
    )
    table = Table(title=f"{context.path.name}: correlation of z and z'", caption=in_words(by.settings))
    for heading in ("entries", "mean r", "median r", "smallest r", f"p < {LEVEL:g} (percent)"):
        table.add_column(heading, justify="right")
    values = (f"{numbers[key]:.4f}" for key in ("mean", "median", "smallest"))
    table.add_row(str(len(correlation)), *values, percent(numbers["significant"]))
    if numbers["undefined"]:
        table.caption = (
            f"{table.caption}\n{numbers['undefined']} entries are constant and have no correlation"
        )
    return PartResult(numbers, [table], [figure])


def _numbers(correlation: Tensor, p: NDArray[np.float64]) -> dict[str, Any]:
    # All of [-1, 1] would leave most bins empty where nearly all correlate.
    low = -1.0 if correlation.min() < 0 else 0.0
    counts, edges = np.histogram(correlation.numpy(), bins=BINS, range=(low, 1.0))
    return {
        "mean": correlation.mean().item(),
        "median": correlation.median().item(),
        "smallest": correlation.min().item(),
        "significant": float((p < LEVEL).mean()),
        "largest_p": float(p.max()),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


PART = Part(
    "latent",
    "correlation of each entry of the code of x with that of attacked x, with p-values (figure 3)",
    _make,
    unfit=no_generator,
    takes=("source", "steps"),
)
