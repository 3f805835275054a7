"""Tables I to III: the robust way on clean images and under the attacks of the paper."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from robustfast.evaluation.attack_names import parse
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.rfd.threat import PGD_STEPS, radius
from robustfast.evaluation.sweep_settings import SweepAttack
from robustfast.evaluation.sweep_tables import warning_lines
from robustfast.evaluation.tables import percent

__all__ = ["ATTACKS", "PART", "SPSA_IMAGES"]

ATTACKS = {
    "fgsm": "fgsm",
    "pgd": f"pgd{PGD_STEPS}",
    "cw": "cw-pgd30",
    "cw_l2": "cw100-l2",
    "aa": "autoattack",
    "spsa": "spsa",
}
"""Column to the attack behind it: PGD of 20 steps, PGD on the margin of 30, Carlini and Wagner's l2 attack of 100."""

SPSA_IMAGES = 1000
"""SPSA asks the model up to 25600 times for each image: it is run on so many at most, spread evenly, and lets go of
those that it has fooled. Of an evaluation of fewer images than the test split has it takes a quarter."""

HEADINGS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "cw": "CW",
    "cw_l2": "CW_2",
    "aa": "AA",
    "spsa": "SPSA",
}


def _make(context: PartContext) -> PartResult:
    named = {column: parse(name) for column, name in ATTACKS.items()}
    swept = {
        column: SweepAttack(
            attack,
            (0.0, radius(context.run, attack.norm)),
            {"early_stop": True} if column == "spsa" else {},
        )
        for column, attack in named.items()
    }
    with pieces(context, PART.name) as kept:
        most = kept.swept([attack for column, attack in swept.items() if column != "spsa"])
        few = context.images if context.whole else -(-context.images // 4)
        spsa = kept.swept([swept["spsa"]], images=min(SPSA_IMAGES, few))
        numbers: dict[str, Any] = {"clean": most["natural"]}
        settings = {}
        for column, attack in swept.items():
            document = spsa if column == "spsa" else most
            record = document["attacks"][attack.named.name]
            numbers[column] = record["accuracy"][-1]
            settings[column] = {
                **record["attack"],
                "eps": record["eps"][-1],
                "images": document["images"],
                "gradients": record["gradients"],
            }
    warnings = warning_lines(most)
    for line in warnings:
        context.console.print(line, markup=False, soft_wrap=True)
    table = Table(title=f"{context.path.name}: robust way, {context.images} images (percent)")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right")
    table.add_row(*(percent(numbers[column]) for column in HEADINGS))
    if spsa["images"] < context.images:
        table.caption = f"SPSA on {spsa['images']} of them"
    return PartResult({**numbers, "attacks": settings, "warnings": list(warnings)}, [table])


PART = Part(
    "nominal", "clean, FGSM, PGD, CW, CW_2, AutoAttack, SPSA on the robust way (tables I to III)", _make
)
