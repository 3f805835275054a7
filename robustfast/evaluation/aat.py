"""The AAT protocol: three ways on natural images, under attack, and as a detector.

Source: AAT sections 2.4, 2.5 and 3.1, appendix C. Numbers in `robustfast.evaluation.metrics`, layout of the file in
`robustfast.evaluation.document`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

import robustfast
from robustfast.data import Dataset, Feed, ImageFiles, feed, load
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.evaluation.attacks import EvaluationAttack, attacks_for
from robustfast.evaluation.curves import held_out_curves
from robustfast.evaluation.document import assemble, write
from robustfast.evaluation.metrics import accuracy, detection, dia
from robustfast.evaluation.predictions import Predictions, predict
from robustfast.evaluation.progress import attack_bar
from robustfast.evaluation.tables import accuracy_table, detection_table
from robustfast.together import together
from robustfast.training.fit import data_folder
from robustfast.training.held_out import spread
from robustfast.training.run_folder import Run, RunFolder, load_run
from robustfast.training.threads import cpu_threads
from robustfast.visualization import disentanglement_bars, disentanglement_curve

__all__ = ["CUSTOM", "FILE", "aat_numbers", "draw", "evaluate_run"]

FILE = Path("evaluation") / "aat.json"
"""Where in a run folder the numbers of the data set's own attacks on the whole test split are written."""

CUSTOM = Path("evaluation") / "aat-custom.json"
"""Where those of any other evaluation are."""

BATCH = 256
"""The largest batch that is taken unasked: that of a run on many GPUs need not fit on one of them."""


def evaluate_run(
    path: Path,
    attacks: Sequence[EvaluationAttack] = (),
    *,
    images: int | None = None,
    checkpoint: Literal["last", "best"] = "last",
    device: str = "auto",
    batch_size: int | None = None,
    data_dir: Path | None = None,
    console: Console | None = None,
    file: Path | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Evaluate a run on its test split in float32, print its tables, and keep numbers and figures in its folder.

    Several processes share out whole batches, so that each is computed from the same numbers, in the same shape, as in
    one process, and their predictions are put together in the images' order: the same document, on like devices.

    Args:
        path: the run folder.
        attacks: what to attack with; none takes the data set's own. The first one leads the file.
        images: how many test images, spread evenly over the split; None takes all.
        checkpoint: "last" is what the paper reports, "best" had the highest held-out robust accuracy in training.
        device: "auto", "cpu" or "cuda".
        batch_size: images a batch; None takes the run's, or `BATCH` where that is smaller. Does not change which
            adversarial images are found.
        data_dir: folder of the data sets; None takes the run's.
        console: where the tables go, and the progress bar if it is a terminal; None is stdout.
        file: where in the run folder the numbers go, `FILE` with figures or `CUSTOM` without; None is `FILE` for the
            data set's own attacks on all test images at the last checkpoint, and else `CUSTOM`.
        world: the processes, all of which call this; one of them prints and writes.

    Returns:
        The document, in every process, as `robustfast.evaluation.document` lays it out.

    Raises:
        UserError: no run there, a damaged one, data missing, or a folder that cannot be written.
    """
    world = world or World()
    console = (console or Console(highlight=False)) if world.writes else Console(quiet=True)
    # What the writing process has just trained is on the disk.
    world.barrier()

    def read() -> tuple[Run, Dataset | ImageFiles, Feed]:
        run = load_run(path, which=checkpoint, device=device)
        config = run.config
        found = load(config.dataset, "test", data_dir or data_folder(config), image_size=config.image_size)
        split = RunFolder.open(path).fitting(found)
        if images is not None and not 1 <= images <= len(split):
            raise UserError(
                f"--images {images}: expected 1 to {len(split)}, the test images of {config.dataset}"
            )
        source = feed(
            spread(split, len(split) if images is None else images),
            min(config.batch_size, BATCH) if batch_size is None else batch_size,
            # The one that can be had wherever a run is evaluated; where another was named, whatever suits this machine.
            loader="torch" if config.loader == "torch" else "auto",
            seed=config.seed,
            device=next(run.model.parameters()).device,
            channels_last=config.channels_last,
            shuffle=False,
            say=None,
        )
        return run, split, source

    run, split, source = together(world, read)
    config, chosen = run.config, source.dataset
    ways = config.ways
    own = attacks_for(config.dataset)
    attacks = tuple(attacks) or own
    if file is None:
        whole = attacks == own and len(chosen) == len(split) and checkpoint == "last"
        file = FILE if whole else CUSTOM
    built = {attack.name: attack.build(run.model, ways) for attack in attacks}
    part = world.part(len(source))
    batches = islice(source.batches(0, start=part.start), len(part))
    # The bar is that of the first process, whose part begins with the first image.
    shown = min(part.stop * source.batch_size, len(chosen)) * len(attacks)
    with cpu_threads(config.threads), attack_bar(shown, console) as bar:
        predictions = predict(run.model, batches, built, ways=ways, on_batch=bar.advance, world=world)
    source.close()
    natural, numbers = aat_numbers(predictions)
    header = {
        "protocol": "aat",
        "robustfast": robustfast.__version__,
        "preset": config.preset,
        "method": config.method,
        "ways": ways,
        "checkpoint": {"name": checkpoint, "epoch": run.epoch},
        "dataset": config.dataset,
        "split": "test",
        "images": len(chosen),
        "images_in_split": len(split),
        "precision": "fp32",
        "device": source.device.type,
        "natural": natural,
    }
    records = {
        attack.name: {
            "attack": attack.as_json(),
            "images": len(chosen),
            **numbers[attack.name],
            "gradients": {
                "zero": predictions.attacked[attack.name].zero_gradient,
                "nonfinite": predictions.attacked[attack.name].nonfinite_gradient,
            },
        }
        for attack in attacks
    }
    document = assemble(header, records)
    if not world.writes:
        return document
    write(path / file, document)
    console.print(accuracy_table(document))
    if (table := detection_table(document)) is not None:
        console.print(table)
    figures = draw(path, document) if file == FILE else []
    written = ", ".join(map(str, (path / file, *figures)))
    if file != FILE:
        written += f" (not the data set's own evaluation: {FILE} and the figures are as they were)"
    console.print(f"written: {written}", markup=False, soft_wrap=True)
    return document


def aat_numbers(
    predictions: Predictions,
) -> tuple[dict[str, float | None], dict[str, dict[str, dict[str, float | None]]]]:
    """The protocol's numbers from predictions: fractions, None for what a way that was not trained leaves undefined.

    Returns:
        Natural accuracies by way, and per attack its "adversarial", "standard_way", "detection" and
        "detection_adversarial".
    """
    labels = predictions.labels

    def accuracies(predicted: Mapping[str, Tensor], ways: str) -> dict[str, float | None]:
        return {way: accuracy(predicted[way], labels) if way in predicted else None for way in ways}

    numbers = {}
    for name, attacked in predictions.attacked.items():
        adversarial = accuracies(attacked.own, "rn")
        standard_way = accuracies(attacked.standard, "srn")
        if None in standard_way.values():
            undefined = dict.fromkeys(("tpr", "fpr", "balanced_accuracy", "raw", "calibrated"))
            mixture, half = undefined, dict(undefined)
        else:
            mixture, half = detection(predictions.natural, attacked.standard, labels)
        numbers[name] = {
            "adversarial": {**adversarial, "dia": dia(adversarial["r"], adversarial["n"])},
            "standard_way": {**standard_way, "dia": dia(standard_way["r"], standard_way["n"])},
            "detection": mixture,
            "detection_adversarial": half,
        }
    return accuracies(predictions.natural, "srn"), numbers


def draw(path: Path, document: Mapping[str, Any]) -> list[Path]:
    """Draw a run's figures into its folder: the ways as bars and, where training checked on the way, over the epochs.

    Returns:
        The files written.
    """
    name = document["attack"]["name"]
    adversarial = document["adversarial"]
    figures = [
        disentanglement_bars(
            document["natural"],
            {"s": document["standard_way"]["s"], "r": adversarial["r"], "n": adversarial["n"]},
            path / "figures" / "ways.png",
            title=f"{document['preset']}, each way attacked through itself ({name})",
            dia=adversarial["dia"],
        )
    ]
    curves = held_out_curves(path / "metrics.jsonl")
    if curves.epochs:
        figures.append(
            disentanglement_curve(
                curves.epochs,
                curves.natural,
                curves.adversarial,
                path / "figures" / "epochs.png",
                title=f"{document['preset']}, held-out images, training attack",
            )
        )
    return figures
