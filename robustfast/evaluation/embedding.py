"""Features in the plane, by t-SNE (van der Maaten and Hinton 2008)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustfast.seeds import derive

__all__ = ["COMPONENTS", "PERPLEXITY", "embed", "perplexity_for"]

PERPLEXITY = 30.0
"""scikit-learn's default; the papers name none."""
COMPONENTS = 50
"""Principal components that the distances are taken in, as the authors of t-SNE do; the papers say nothing of it."""


def perplexity_for(points: int) -> float:
    """30, or what so few points allow: a third of them, as the method looks at three neighbours for each unit of it."""
    return min(PERPLEXITY, max(1.0, (points - 1) / 3))


def embed(values: Tensor, *, seed: int) -> Tensor:
    """t-SNE of features, by Barnes and Hut.

    Of more than 50 features the first 50 principal components count. The start is the first two of these; the same
    seed gives the same points.

    Args:
        values: float [N, H], finite, at least four.
        seed: of the draws inside.

    Returns:
        float32 [N, 2].

    Raises:
        ValueError: fewer than four points, or nan or infinity among the features.
    """
    if len(values) < 4:
        raise ValueError(f"t-SNE of {len(values)} points: expected at least 4")
    # Here, not above: scikit-learn takes seconds to import, and every evaluation imports this file.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = values.double().numpy()
    if not np.isfinite(points).all():
        raise ValueError("t-SNE of features with nan or infinity")
    state = derive(seed, "t-sne") % 2**32
    if min(points.shape) > COMPONENTS:
        points = PCA(COMPONENTS, random_state=state).fit_transform(points)
    # Where all points are one, their components are no start: scikit-learn divides by the spread of these.
    spread = points.shape[1] > 1 and bool((points != points[0]).any())
    tsne = TSNE(
        n_components=2,
        perplexity=perplexity_for(len(points)),
        init="pca" if spread else "random",
        random_state=state,
    )
    return torch.from_numpy(tsne.fit_transform(points)).float()
