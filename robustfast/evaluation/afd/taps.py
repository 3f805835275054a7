"""Where the features of a run are taken, and which runs are looked at beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.parts import PartContext
from robustfast.models import Network
from robustfast.models.one_way import OneWay
from robustfast.training.run_folder import Run

__all__ = ["Tap", "beside", "run_label", "tap", "untapped"]

NOT_NORMALISED = "not normalised"


@dataclass(frozen=True)
class Tap:
    """The features that the analyses look at.

    Attributes:
        where: "unit norm" after that normalisation, else "not normalised": the output of the encoder as it is.
        feature: images [B, C, H, W] -> [B, H].
        model: images -> logits [B, K], the classifier on these features.
    """

    where: str
    feature: Callable[[Tensor], Tensor]
    model: Callable[[Tensor], Tensor]


def tap(network: Network) -> Tap:
    """What the network's classifier sees: of unit norm where the network normalises (AFD's own tap), else as they are.

    Raises:
        UserError: a network with more than one encoder.
    """
    if isinstance(network, OneWay):
        where = "unit norm" if network.unit_norm else NOT_NORMALISED
        return Tap(where, network.features, network)
    if reason := _several(network):
        raise UserError(reason)
    (encoder,) = network.encoders().values()
    return Tap(NOT_NORMALISED, encoder, network)


def untapped(run: Run) -> str | None:
    """Why a run's features cannot be taken; None where they can."""
    return _several(run.model)


def run_label(run: Run) -> str:
    """What tables and figures call a run: the name of its folder."""
    return run.path.resolve().name


def beside(context: PartContext) -> dict[str, Run]:
    """The runs of --against, then this one, by label: the paper's order.

    Raises:
        UserError: one of another data set or with more than one encoder, or a label twice.
    """
    own = run_label(context.run)
    runs = context.others()
    for label, run in runs.items():
        if label == own:
            raise UserError(
                f"--against: {label} is this run's own name; give another one as LABEL={run.path}"
            )
        if (theirs := run.config.dataset) != (ours := context.run.config.dataset):
            raise UserError(
                f"--against {label}: trained on {theirs}, this run on {ours}; name runs of {ours}"
            )
        if reason := untapped(run):
            raise UserError(f"--against {label}: {reason}")
    return {**runs, own: context.run}


def _several(network: Network) -> str | None:
    encoders = list(network.encoders())
    if len(encoders) == 1:
        return None
    return (
        f"its {type(network).__name__} network has the encoders {', '.join(encoders)}; expected one of a "
        f"single encoder, such as unit_norm"
    )
