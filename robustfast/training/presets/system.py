"""How the presets of one paper come about: each of its data sets and backbones with each of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup
from robustfast.training.config import TrainConfig

__all__ = ["Method", "System"]

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """What a preset's name ends in.

    Attributes:
        objective: its name in `OBJECTIVES`.
        settings: fields of the objective's `Config` that differ from its defaults.
        fields: fields of `TrainConfig` that replace those of the family.
    """

    objective: str
    settings: Fields = field(default_factory=dict)
    fields: Fields = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A paper's presets, FAMILY-METHOD.

    Attributes:
        families: what a name begins with, to the fields of `TrainConfig` of all its methods.
        methods: what it ends in.
        exceptions: (family, method) to the `Method` that stands there instead.
    """

    families: Mapping[str, Fields]
    methods: Mapping[str, Method]
    exceptions: Mapping[tuple[str, str], Method] = field(default_factory=dict)

    def presets(self) -> dict[str, TrainConfig]:
        """The configurations by name."""
        return {
            f"{family}-{ending}": _preset(
                f"{family}-{ending}", fields, self.exceptions.get((family, ending), method)
            )
            for family, fields in self.families.items()
            for ending, method in self.methods.items()
        }


def _preset(name: str, fields: Fields, method: Method) -> TrainConfig:
    objective = lookup("objective", OBJECTIVES, method.objective).Config(**method.settings)
    return TrainConfig(
        preset=name, method=method.objective, objective=objective, **{**fields, **method.fields}
    )
