"""Table V: nearest neighbours among the training images' robust features, in place of the classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.features import collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.rfd.judge import robust_features
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.evaluation.tables import percent

__all__ = ["PART", "K", "nearest_vote"]

K = 50


def nearest_vote(bank: Tensor, labels: Tensor, queries: Tensor, *, k: int = K, chunk: int = 1024) -> Tensor:
    """The class that most of the k nearest features have, by cosine; of equal votes the lowest class.

    Args:
        bank: float [M, H].
        labels: int64 [M], classes from 0.
        queries: float [N, H].
        k: at most M.
        chunk: queries at a time: as many rows of M similarities are in memory.

    Returns:
        int64 [N].

    Raises:
        ValueError: k is not within 1 to M.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, expected 1 to {len(bank)}, the features in the bank")
    classes = int(labels.max()) + 1
    bank = F.normalize(bank, dim=1)
    found = []
    for part in F.normalize(queries, dim=1).split(chunk):
        nearest = labels[(part @ bank.T).topk(k, dim=1).indices]
        votes = F.one_hot(nearest, classes).sum(1)
        # Below a vote and above nothing: argmax says nothing of which of several it returns.
        rank = votes * classes - torch.arange(classes, device=votes.device)
        found.append(rank.argmax(1))
    return torch.cat(found) if found else labels.new_empty(0)


def _make(context: PartContext) -> PartResult:
    run = context.run
    feature, way = robust_features(run), run.model.way(run.config.main_way)
    training = context.training_split
    attack = pgd(way, radius(run), seed=context.request.seed)
    with context.progress(len(training) + 2 * context.images) as bar:
        bar.say("training images")
        bank = collect(feature, context.batches(training, bar=bar))
        k = min(K, len(bank.labels))
        numbers = {"k": k, "bank": len(bank.labels), "eps": radius(run), "attack": described(attack)}
        for name, made_by in {"clean": None, "pgd": attack}.items():
            bar.say(name)
            found = collect(feature, context.batches(bar=bar), attack=made_by, model=way)
            device = context.device
            voted = nearest_vote(
                bank.values.to(device), bank.labels.to(device), found.values.to(device), k=k
            ).cpu()
            numbers[name] = {
                "knn": (voted == found.labels).double().mean().item(),
                "softmax": found.accuracy,
            }
    table = Table(
        title=f"{context.path.name}: k-NN (k = {k}, cosine, {len(training)} training images) and softmax"
    )
    for heading in ("", "k-NN", "softmax"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in ("clean", "pgd"):
        table.add_row(name, *(percent(numbers[name][kind]) for kind in ("knn", "softmax")))
    if k < K:
        table.caption = f"k is {K} in the paper: the bank holds no more than {k}"
    return PartResult(numbers, [table])


PART = Part("knn", "k nearest neighbours by robust features beside softmax (table V)", _make)
