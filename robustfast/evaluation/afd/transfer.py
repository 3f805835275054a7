"""Accuracy on images of PGD that were made on other runs: AFD's table A3."""

from __future__ import annotations

from robustfast.evaluation.afd import grids
from robustfast.evaluation.afd.attacked import MadeOn, attacked_way, check_same_data, plain_table, swept
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.sweep_settings import SweepAttack
from robustfast.evaluation.tables import percent

__all__ = ["TRANSFER"]


def _make(context: PartContext) -> PartResult:
    """Numbers: label to accuracy. The attack's settings are in the sweep's file beside the protocol's."""
    pgd, eps = grids.nominal(context.run.config.dataset)["pgd"]
    attacks = {}
    for label, run in context.others().items():
        check_same_data(context, f"--against {label}", run.config.dataset)
        made = MadeOn.on(attacked_way(run), pgd, f"pgd-{label}")
        attacks[label] = SweepAttack(made, (0.0, eps), described=made.described(label))
    document = swept(context, "transfer", list(attacks.values()))
    numbers = {
        label: document["attacks"][attack.named.name]["accuracy"][-1] for label, attack in attacks.items()
    }
    table = plain_table(context, "images of PGD made on other runs, accuracy in percent (AFD, table A3)")
    table.add_column("made on")
    table.add_column("accuracy", justify="right")
    for label, accuracy in numbers.items():
        table.add_row(label, percent(accuracy))
    return PartResult(numbers, [table])


TRANSFER = Part(
    "transfer",
    "accuracy on images of PGD that were made on --against (AFD, table A3)",
    _make,
    needs=("against",),
)
