"""Table 7: attacks that know G and the classifier of G(x), on the mean of the code and on what is drawn of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich import box
from rich.table import Table

from robustfast.evaluation.attack_names import parse
from robustfast.evaluation.cdvae.threat import l2, linf
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import Pieces, pieces
from robustfast.evaluation.repeated_passes import own_draws
from robustfast.evaluation.subject import Subject
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.evaluation.sweep_tables import warning_lines
from robustfast.evaluation.tables import percent
from robustfast.models import ClassDisentangled
from robustfast.seeds import derive
from robustfast.training.run_folder import Run
from robustfast.training.run_objective import run_objective

__all__ = ["ATTACKS", "PART", "PASSES", "half", "seen_columns", "unseen_mean"]

ATTACKS = {
    "aa-linf": "autoattack",
    "aa-l2": "autoattack-l2",
    "jpeg": "jpeg",
    "recolor": "recolor",
    "stadv": "stadv",
    "pgd": "pgd-c",
}
"""Column to the attack behind it. The paper has all but PGD, with steps of eps / sqrt(steps) as in its code."""

STEPS, QUERIES = 100, 5000
PASSES = 20
"""Passes whose gradients are averaged where the network draws: those of AutoAttack's version for random models."""

HEADINGS = {
    "clean": "clean",
    "unseen_mean": "unseen",
    "aa-linf": "AA linf",
    "aa-l2": "AA l2",
    "jpeg": "JPEG",
    "recolor": "ReColor",
    "stadv": "StAdv",
    "pgd": "PGD linf",
}


def half(context: PartContext, kept: Pieces, *, sampled: bool) -> dict[str, Any]:
    """One row of the table, with its settings.

    The `mean` half is what the network answers with the mean of the posterior, under the standard version of
    AutoAttack. The `sampled` half is the paper's network, which draws the code in every pass: each gradient is the mean
    of `PASSES` passes, AutoAttack is its version "rand", and an image counts as classified rightly by one more draw.
    The draws come from torch's generator, which is seeded for each batch and attack and put back: they are the same
    whatever was done before.

    Returns:
        "clean" and each column of `ATTACKS`, "attacks": every setting and count, "warnings".
    """
    swept = {}
    for column, name in ATTACKS.items():
        named = parse(name)
        radius = {"linf": linf, "l2": l2}.get(named.norm)
        eps = named.own_eps if radius is None else radius(context.run)
        settings: dict[str, Any] = {"steps": context.steps(STEPS)}
        if named.takes("queries"):
            settings |= {"queries": context.steps(QUERIES), "version": "rand" if sampled else "standard"}
        swept[column] = SweepAttack(named, (0.0, eps), settings, {"sample_at_test": sampled})
    found = kept.swept(
        list(swept.values()),
        settings=SweepSettings(seed=context.request.seed, eot=PASSES if sampled else 1, probes=False),
        prepare=_draw if sampled else lambda subject: None,
    )
    numbers: dict[str, Any] = {"clean": found["natural"]}
    described = {}
    for column, attack in swept.items():
        record = found["attacks"][attack.named.name]
        numbers[column] = record["accuracy"][-1]
        described[column] = {**record["attack"], "eps": record["eps"][-1], "gradients": record["gradients"]}
    return {**numbers, "attacks": described, "warnings": list(warning_lines(found))}


def seen_columns(run: Run) -> tuple[str, ...]:
    """The columns whose kind of perturbation the run was trained on: those of the norm of its training attack."""
    if run_objective(run).attack is None:
        return ()
    norm = run.config.attack.norm
    return tuple(column for column, name in ATTACKS.items() if parse(name).norm == norm)


def unseen_mean(numbers: Mapping[str, float], seen: tuple[str, ...]) -> float:
    """Mean accuracy over the paper's columns but for those `seen` in training; PGD is none of the paper's."""
    counted = [numbers[column] for column in ATTACKS if column != "pgd" and column not in seen]
    return sum(counted) / len(counted)


def _make(context: PartContext) -> PartResult:
    seen = seen_columns(context.run)
    numbers: dict[str, Any] = {"seen": list(seen)}
    # Tight, so that nine columns fit into the 80 characters of a plain terminal or log.
    table = Table(
        title=f"{context.path.name}: white-box attacks, {context.images} images (percent)",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("code")
    shown = ("clean", "unseen_mean", *ATTACKS)
    for column in shown:
        table.add_column(HEADINGS[column], justify="right")
    with pieces(context, PART.name) as kept:
        for name in ("mean", "sampled") if _draws(context) else ("mean",):
            row = half(context, kept, sampled=name == "sampled")
            row["unseen_mean"] = unseen_mean(row, seen)
            numbers[name] = row
            label = f"drawn, EOT {PASSES}" if name == "sampled" else "mean"
            table.add_row(label, *(percent(row[column]) for column in shown))
            for line in row["warnings"]:
                context.console.print(f"{label}: {line}", markup=False, soft_wrap=True)
    if "sampled" in numbers:
        numbers["sampling"] = {"sample_at_test": True, "passes": PASSES}
    return PartResult(numbers, [table])


def _draw(subject: Subject) -> None:
    """Let the network of a subject draw its code in every pass."""
    subject.model.model.generator.sample_at_test = True  # type: ignore[attr-defined]


def _draws(context: PartContext) -> bool:
    """Whether the run's network answers otherwise when its code is drawn: a codebook draws nothing."""
    model = context.run.model
    if not isinstance(model, ClassDisentangled) or model.generator is None:
        return False
    x = next(iter(context.batches()))[0][:1]
    with own_draws(context.device, derive(context.request.seed, "white-box")), torch.no_grad():
        mean = model.generator(model.normalisation(x)).image
        model.generator.sample_at_test = True
        try:
            drawn = model.generator(model.normalisation(x)).image
        finally:
            model.generator.sample_at_test = False
    return not torch.equal(mean, drawn)


def _no_classifier(run: Run) -> str | None:
    if isinstance(run.model, ClassDisentangled) and not set(run.config.ways) & {"r", "s"}:
        return (
            f"{run.path.name} ({run.config.method}) trained no classifier of G(x); evaluate a run of cdvae_adv or of "
            f"cdvae_classifier"
        )
    return None


PART = Part(
    "white-box",
    "attacks through G and the classifier, by the mean of the code and by draws of it (table 7)",
    _make,
    unfit=_no_classifier,
    takes=("steps",),
)
