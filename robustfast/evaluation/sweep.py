"""Accuracy against eps under many attacks: curves, the area under them, per-image results, signs of masked gradients.

The layout of the file is in `robustfast.evaluation.sweep_document`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

import robustfast
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NORMS, known_names
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.partial_results import PartialResults
from robustfast.evaluation.progress import attack_bar
from robustfast.evaluation.subject import Subject
from robustfast.evaluation.sweep_batches import BatchWork
from robustfast.evaluation.sweep_document import assemble, other_sweep, write
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.evaluation.sweep_tables import grid_line, heading, sweep_table, warning_lines
from robustfast.signals import Stopped, signal_behind
from robustfast.training.threads import cpu_threads
from robustfast.visualization.accuracy_curves import accuracy_curves

__all__ = ["sweep"]


def sweep(
    subject: Subject,
    attacks: Sequence[SweepAttack],
    settings: SweepSettings | None = None,
    *,
    protocol: str = "sweep",
    out: Path | None = None,
    console: Console | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Attack at every radius, print the table, and keep numbers and figures in a folder.

    Images that are misclassified from the start are not attacked: they count as fooled at every radius. What is
    finished is kept batch by batch beside the result, so that the same call after an interruption goes on where it was;
    its result is the same bits. Several processes share out whole batches, as `robustfast.evaluation.aat` does.

    Args:
        subject: the model and its images.
        attacks: what to attack with, each name once.
        settings: of all attacks.
        protocol: what the file says it is, and is called.
        out: folder for the numbers and figures; None is the subject's.
        console: where the table goes, and the progress bar if it is a terminal; None is stdout.
        world: the processes, all of which call this; one of them prints and writes.

    Returns:
        The document, in every process.

    Raises:
        UserError: no attack, a setting that an attack refuses, a model without gradients, or a folder that cannot be
            written.
        Stopped: SIGTERM or SIGINT where something was kept; it says that the same call goes on from there.
    """
    settings = settings or SweepSettings()
    world = world or World()
    console = (console or Console(highlight=False)) if world.writes else Console(quiet=True)
    folder = out or subject.folder
    if folder is None:
        raise UserError(f"{subject.label}: say where its numbers go with --out FOLDER")
    if not attacks:
        raise UserError("no attack: name some with --attacks, such as apgd-ce,pgd20")
    weights = weights_digest(subject.model)
    if len(set(world.gather(weights))) > 1:
        raise UserError(
            f"{subject.label}: the processes hold different weights; let the function load them or fix its seed"
        )
    work = BatchWork(subject, attacks, settings, weights, PartialResults(folder / f"{protocol}.partial"))
    # Before the work, while there is time to think again.
    if former := other_sweep(
        folder / f"{protocol}.json", {attack.named.name: attack.eps for attack in attacks}, subject.images
    ):
        console.print(
            f"replaces the sweep of {', '.join(former)} in {folder}; --out takes another folder",
            markup=False,
            soft_wrap=True,
        )
    try:
        return _swept(subject, attacks, settings, work, weights, protocol, folder, console, world)
    except KeyboardInterrupt as stop:
        if not work.partial.any_kept:
            raise
        then = f"what is done is kept in {work.partial.folder}: the same command goes on from there"
        raise Stopped(signal_behind(stop), str(stop) or then) from None


def _swept(
    subject: Subject,
    attacks: Sequence[SweepAttack],
    settings: SweepSettings,
    work: BatchWork,
    weights: str,
    protocol: str,
    folder: Path,
    console: Console,
    world: World,
) -> dict[str, Any]:
    """Every batch attacked, the document put together, printed and written."""
    source = subject.source
    part = world.part(len(source))
    shown = min(part.stop * source.batch_size, subject.images) - min(
        part.start * source.batch_size, subject.images
    )
    mine = []
    with cpu_threads(subject.threads), attack_bar(shown * len(work.cells), console) as bar:
        for number, (x, y, index, *_) in enumerate(islice(source.batches(0, start=part.start), len(part))):
            mine.append(work.batch(part.start + number, x, y, index, bar))
    source.close()
    # A process with a batch more than another is behind by that batch, which may take an hour on a CPU.
    world.wait()
    batches = [record for records in world.gather(mine) for record in records]
    header = {
        "protocol": protocol,
        "robustfast": robustfast.__version__,
        **subject.header,
        "weights": weights,
        "dataset": subject.dataset,
        "split": "test",
        "images": subject.images,
        "images_in_split": subject.images_in_split,
        "batch_size": source.batch_size,
        "precision": "fp32",
        "device": source.device.type,
        **{name: getattr(settings, name) for name in ("seed", "eot", "monotone", "minimal")},
    }
    document = assemble(header, work.swept(), batches, probe_eps=work.probe_eps)
    if world.writes:
        _finish(subject, document, folder, protocol, console)
    # Only what is behind a file that was written may go.
    world.barrier()
    work.partial.clear()
    return document


def _finish(
    subject: Subject, document: Mapping[str, Any], folder: Path, protocol: str, console: Console
) -> None:
    file = folder / f"{protocol}.json"
    write(file, document)
    # Those of other numbers; under a norm that has no curve now they would stay.
    for norm in (*NORMS, *known_names()):
        (folder / f"{protocol}-{norm}.png").unlink(missing_ok=True)
    for norm in document["worst_case"]:
        console.print(heading(document, norm, subject.label), markup=False, soft_wrap=True)
        console.print(sweep_table(document, norm))
        console.print(grid_line(document, norm), markup=False, soft_wrap=True)
    for line in warning_lines(document):
        console.print(line, markup=False, soft_wrap=True)
    figures = [
        accuracy_curves(document, norm, folder / f"{protocol}-{norm}.png", title=subject.label)
        for norm, worst in document["worst_case"].items()
        if len(worst["eps"]) > 2
    ]
    console.print(f"written: {', '.join(map(str, (file, *figures)))}", markup=False, soft_wrap=True)
