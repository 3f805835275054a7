"""Accuracy on clean images and under the white-box attacks of AFD's table 1."""

from __future__ import annotations

from robustfast.evaluation.afd import grids
from robustfast.evaluation.afd.attacked import add_accuracies, configurations, plain_table, swept
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.sweep_settings import SweepAttack

__all__ = ["NOMINAL"]


def _make(context: PartContext) -> PartResult:
    """Numbers: "clean", "pgd", "cw", "aa", and of each attack its settings; "warnings" of masked gradients."""
    attacks = grids.nominal(context.run.config.dataset)
    document = swept(
        context,
        "nominal",
        [SweepAttack(named, (0.0, eps)) for named, eps in attacks.values()],
        probes=True,
    )
    accuracy = {"clean": document["natural"]}
    accuracy |= {
        name: document["attacks"][named.name]["accuracy"][-1] for name, (named, _) in attacks.items()
    }
    numbers = {**accuracy, "attacks": configurations(document), "warnings": document["warnings"]}
    table = plain_table(context, "accuracy in percent (AFD, table 1)")
    add_accuracies(table, accuracy, {name: (named.norm, eps) for name, (named, eps) in attacks.items()})
    return PartResult(numbers, [table])


NOMINAL = Part("nominal", "accuracy on clean images, under PGD, C&W and AutoAttack (AFD, table 1)", _make)
