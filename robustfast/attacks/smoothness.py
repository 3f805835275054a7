"""How uneven a grid of vectors is: what StAdv and ReColorAdv pay for."""

from __future__ import annotations

from torch import Tensor

__all__ = ["smoothness"]

# Under the root: without it the gradient of equal neighbours would be nan.
TINY = 1e-10


def smoothness(grid: Tensor) -> Tensor:
    """Sum over all points and all their neighbours along the axes of |v - v_neighbour|_2, per sample.

    The flow loss of Xiao et al. 2018 (arXiv:1801.02612), equation 4, and its form in three dimensions of Laidlaw and
    Feizi 2019 (arXiv:1906.00001). Each pair of neighbours counts twice, once from either side. The authors' code also
    counts each point at the border as its own neighbour, a constant of 1e-5 per point, left out here.

    Args:
        grid: [B, n1, ..., nd, C], vectors of C numbers on a grid of d dimensions.

    Returns:
        [B].
    """
    total = grid.new_zeros(len(grid))
    for axis in range(1, grid.dim() - 1):
        if grid.shape[axis] > 1:
            apart = grid.diff(dim=axis).square().sum(-1).add(TINY).sqrt()
            total = total + 2 * apart.flatten(1).sum(1)
    return total
