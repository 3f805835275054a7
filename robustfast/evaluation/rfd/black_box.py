"""The column "PGD (BB)" of table I: images that attack a clean-trained model, judged by this one."""

from __future__ import annotations

from rich.table import Table

from robustfast.evaluation.attack_names import parse
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.rfd.threat import PGD_STEPS, radius
from robustfast.evaluation.sweep_settings import SweepAttack
from robustfast.evaluation.tables import percent

__all__ = ["PART"]


def _make(context: PartContext) -> PartResult:
    source = context.source()
    eps = radius(context.run)
    described = {"source": context.request.source, "source_weights": weights_digest(source)}
    attack = SweepAttack(parse("transfer"), (0.0, eps), {"source": source, "steps": PGD_STEPS}, described)
    with pieces(context, PART.name) as kept:
        document = kept.swept([attack])
        record = document["attacks"]["transfer"]
    clean, pgd = document["natural"], record["accuracy"][-1]
    table = Table(title=f"{context.path.name}: PGD made against {context.request.source} (percent)")
    for heading in ("clean", "PGD (BB)"):
        table.add_column(heading, justify="right")
    table.add_row(percent(clean), percent(pgd))
    return PartResult(
        {"pgd": pgd, "clean": clean, "attacks": {"pgd": {**record["attack"], "eps": eps}}}, [table]
    )


PART = Part("black-box", "PGD made against another model, clean-trained in table I", _make, needs=("source",))
