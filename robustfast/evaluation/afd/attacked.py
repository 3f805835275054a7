"""What the parts that attack share: sweeps whose files lie beside the protocol's, and images made on other models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.table import Table
from torch import Tensor

from robustfast.attacks import Attack
from robustfast.errors import UserError
from robustfast.evaluation.afd.taps import run_label
from robustfast.evaluation.attack_names import NamedAttack
from robustfast.evaluation.model_digests import code_digest, weights_digest
from robustfast.evaluation.parts import PartContext, document_path
from robustfast.evaluation.sweep import sweep
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.evaluation.sweep_tables import eps_labels
from robustfast.evaluation.tables import percent
from robustfast.training.run_folder import Run

__all__ = [
    "MadeOn",
    "add_accuracies",
    "attacked_way",
    "check_same_data",
    "configurations",
    "plain_table",
    "swept",
]


@dataclass(frozen=True)
class MadeOn(NamedAttack):
    """An attack whose images are made on another model than the one they are tried on.

    Unlike the attack "transfer" it may be one that looks for the nearest image: what it found on the other model is
    judged at each radius as in a white-box sweep.

    Attributes:
        source: the other model.
    """

    source: Callable[[Tensor], Tensor] = field(kw_only=True)

    @classmethod
    def on(cls, source: Callable[[Tensor], Tensor], attack: NamedAttack, name: str | None = None) -> MadeOn:
        """`attack` on `source`, under another name."""
        return cls(name or attack.name, attack.attack, attack.norm, attack.settings, source=source)

    @property
    def kind(self) -> Literal["black-box"]:
        """It knows nothing of the model under test."""
        return "black-box"

    def described(self, label: str) -> dict[str, str]:
        """What tells the source from another one, for the file."""
        return {
            "source": label,
            "source_weights": weights_digest(self.source),
            "source_code": code_digest(self.source),
        }

    def build(self, model: Any, eps: float | None, **settings: Any) -> Attack:
        return super().build(self.source, eps, **settings)


def swept(
    context: PartContext, name: str, attacks: Sequence[SweepAttack], *, probes: bool = False
) -> dict[str, Any]:
    """Run attacks on the evaluated images, batch by batch, so that an interruption loses a batch.

    The document with every setting and what became of each image lies beside the protocol's file, under its name and
    `name`. An image that is misclassified from the start counts as fooled at every radius.

    Args:
        context: of the part.
        name: the part's.
        attacks: what to attack with; those that look for the nearest image are judged as Foolbox does.
        probes: whether to look for masked gradients with attacks of their own.

    Returns:
        The document of `robustfast.evaluation.sweep`.
    """
    protocol = f"{document_path(context.path, context.protocol, whole=context.whole).stem}-{name}"
    # One made of something else; nobody asked for another sweep here, so there is nothing to tell.
    (context.folder / f"{protocol}.json").unlink(missing_ok=True)
    return sweep(
        context.subject(),
        attacks,
        SweepSettings(seed=context.request.seed, minimal="clip", probes=probes),
        protocol=protocol,
        out=context.folder,
        console=context.console,
    )


def configurations(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Attack to every setting of it, its radii and the number of images, of a sweep's document."""
    return {
        name: {**record["attack"], "eps": record["eps"][1:], "images": document["images"]}
        for name, record in document["attacks"].items()
    }


def attacked_way(run: Run) -> Callable[[Tensor], Tensor]:
    """The model that a run's attacks are made on and judged by: its robust way where it was trained."""
    return run.model.way(run.config.main_way)


def check_same_data(context: PartContext, named: str, dataset: str) -> None:
    """Refuse another run that knows other images.

    Args:
        context: of the part.
        named: the flag and what it names, for the message.
        dataset: that the other run was trained on.

    Raises:
        UserError: not what this run was trained on.
    """
    ours = context.run.config.dataset
    if dataset != ours:
        raise UserError(f"{named}: trained on {dataset}, this run on {ours}; name runs of {ours}")


def plain_table(context: PartContext, heading: str) -> Table:
    """An empty table; its heading goes to the console now, where it may be longer than the table is wide."""
    context.console.print(
        f"{run_label(context.run)}: {context.run.config.dataset}, {context.images} test images, {heading}",
        markup=False,
        soft_wrap=True,
    )
    return Table(box=box.SIMPLE_HEAD)


def add_accuracies(table: Table, accuracy: Mapping[str, float], eps: Mapping[str, tuple[str, float]]) -> None:
    """Accuracies in percent side by side, as in table 1.

    Args:
        table: without columns.
        accuracy: column to a fraction.
        eps: column to norm and radius, of those that have one.
    """
    for name in accuracy:
        norm, radius = eps.get(name, ("", 0.0))
        below = f"\n{norm} {eps_labels([radius])[0]}" if norm else ""
        table.add_column(f"{name}{below}", justify="right")
    table.add_row(*map(percent, accuracy.values()))
