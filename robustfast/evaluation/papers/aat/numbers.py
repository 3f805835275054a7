"""Every number of the AAT paper's tables 1, 2, 3, 4b, 6, 7 and 8, in percent, as printed.

Source: Adversarial Asymmetric Training (AAT), sections 2.5 and 3, appendix C. What the tables call "l2" stands under
the attack that fits the numbers: on CIFAR-10 sign steps projected to an l2 ball, on MNIST linf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["METHODS", "TABLES", "Attacked", "Detection", "PaperTable", "Row", "Ways"]

METHODS: dict[str, str] = {
    "st": "ST",
    "at": "AT",
    "st+at": "ST+AT",
    "pi": "PI",
    "aat": "AAT",
    "aatpp": "AAT++",
    "terms:st": "ST",
    "terms:st,as": "ST+AS",
    "terms:st,as,ar": "ST+AS+AR",
    "terms:st,as,an": "ST+AS+AN",
    "terms:st,as,ar,an": "ST+AS+AR+AN",
}
"""Rows by method, and as the tables print them.

A method is an objective's name; "st+at" combines the runs of two one-way models; "terms:..." names the terms of AAT++
that the ablation keeps (its "ST" trains all three ways on natural images, the tables' "ST" the non-robust way alone).
"""


@dataclass(frozen=True)
class Ways:
    """Accuracy of the standard, robust and non-robust way on natural images; None where the table has a dash."""

    s: float | None = None
    r: float | None = None
    n: float | None = None


@dataclass(frozen=True)
class Attacked:
    """Accuracies under one attack, and DIA = R - N (section 2.5)."""

    s: float | None = None
    r: float | None = None
    n: float | None = None
    dia: float | None = None


@dataclass(frozen=True)
class Detection:
    """Table 4b: rate of adversarial detection, accuracy before and after calibration."""

    rad: float
    raw: float
    calibrated: float


@dataclass(frozen=True)
class Row:
    """One method of one table: what it has on natural images, under each attack, and as a detector."""

    natural: Ways | None = None
    attacked: Mapping[str, Attacked] | None = None
    detection: Detection | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: what the table shows.
        source: what the attacks went through: "adversarial" (each way attacked through itself), "standard_way" (all
            ways under the attack on the standard way) or "detection" (eq. 12 on natural and standard-way images).
        attacks: attack presets of `robustfast.evaluation.attacks` to the heading the paper prints over them.
        rows: method to its numbers.
    """

    title: str
    source: str
    attacks: Mapping[str, str]
    rows: Mapping[str, Row]


_CIFAR = {"cifar-linf": "linf", "cifar-l2-sign": "l2"}
_MNIST = {"mnist-linf": "l2"}


def _self_attacked(natural: tuple, *attacked: tuple, attacks: Mapping[str, str]) -> Row:
    """A row of tables 1 to 3: S, R, N on natural images, then R, N, DIA per attack."""
    values = {name: Attacked(None, *numbers) for name, numbers in zip(attacks, attacked, strict=True)}
    return Row(natural=Ways(*natural), attacked=values)


def _standard_way(*attacked: tuple, attacks: Mapping[str, str]) -> Row:
    """A row of tables 6 to 8: S, R, N, DIA per attack."""
    return Row(attacked={name: Attacked(*numbers) for name, numbers in zip(attacks, attacked, strict=True)})


TABLES: dict[str, PaperTable] = {
    "aat-table1": PaperTable(
        "Table 1: WideResNet34-10 on CIFAR-10",
        "adversarial",
        _CIFAR,
        {
            "st": _self_attacked((None, None, 95.1), (None, 0.0, None), (None, 33.8, None), attacks=_CIFAR),
            "at": _self_attacked((None, 90.0, None), (39.9, None, None), (84.0, None, None), attacks=_CIFAR),
            "st+at": _self_attacked(
                (None, 90.0, 95.1), (39.9, 0.0, 39.9), (84.0, 33.8, 50.2), attacks=_CIFAR
            ),
            "pi": _self_attacked((86.8, 79.9, 81.9), (0.0, 0.0, 0.0), (39.3, 2.3, 37.0), attacks=_CIFAR),
            "aat": _self_attacked((95.2, 91.1, 94.7), (21.7, 0.0, 21.7), (81.7, 25.0, 56.7), attacks=_CIFAR),
            "aatpp": _self_attacked((94.1, 88.7, 93.7), (39.9, 0.0, 39.9), (82.5, 5.3, 77.2), attacks=_CIFAR),
        },
    ),
    "aat-table2": PaperTable(
        "Table 2: PreAct-ResNet18 on CIFAR-10",
        "adversarial",
        _CIFAR,
        {
            "st": _self_attacked((None, None, 94.2), (None, 0.0, None), (None, 35.1, None), attacks=_CIFAR),
            "at": _self_attacked((None, 89.0, None), (35.7, None, None), (81.5, None, None), attacks=_CIFAR),
            "st+at": _self_attacked(
                (None, 89.0, 94.2), (35.7, 0.0, 35.7), (81.5, 35.1, 46.4), attacks=_CIFAR
            ),
            "pi": _self_attacked((86.8, 79.9, 81.9), (0.0, 0.0, 0.0), (41.4, 0.8, 40.6), attacks=_CIFAR),
            "aat": _self_attacked((94.8, 91.8, 93.8), (10.8, 0.0, 10.8), (79.9, 22.1, 57.8), attacks=_CIFAR),
            "aatpp": _self_attacked(
                (94.2, 88.2, 93.7), (33.5, 0.0, 33.5), (81.0, 28.2, 52.8), attacks=_CIFAR
            ),
        },
    ),
    "aat-table3": PaperTable(
        "Table 3: small CNN on MNIST",
        "adversarial",
        _MNIST,
        {
            "st": _self_attacked((None, None, 99.5), (None, 17.9, None), attacks=_MNIST),
            "at": _self_attacked((None, 99.5, None), (90.1, None, None), attacks=_MNIST),
            "st+at": _self_attacked((None, 99.5, 99.5), (90.1, 17.9, 72.2), attacks=_MNIST),
            "aat": _self_attacked((99.6, 99.6, 99.5), (82.9, 4.6, 78.3), attacks=_MNIST),
            "aatpp": _self_attacked((99.6, 99.5, 99.4), (89.9, 0.0, 89.9), attacks=_MNIST),
        },
    ),
    "aat-table4b": PaperTable(
        "Table 4b: detection and calibration on CIFAR-10",
        "detection",
        {"cifar-linf": "linf"},
        {
            "pi": Row(detection=Detection(4.9, 4.6, 15.2)),
            "aat": Row(detection=Detection(64.8, 61.8, 65.5)),
            "aatpp": Row(detection=Detection(68.8, 67.1, 69.1)),
        },
    ),
    "aat-table6": PaperTable(
        "Table 6: WideResNet34-10 on CIFAR-10, attack on the standard way",
        "standard_way",
        _CIFAR,
        {
            "st": _standard_way((None, None, 0.0, None), (None, None, 33.8, None), attacks=_CIFAR),
            "at": _standard_way((None, 39.9, None, None), (None, 84.0, None, None), attacks=_CIFAR),
            "pi": _standard_way((0.0, 5.2, 0.0, 5.2), (22.5, 64.8, 4.9, 59.9), attacks=_CIFAR),
            "aat": _standard_way((0.0, 59.5, 0.0, 59.5), (69.0, 89.8, 35.2, 54.6), attacks=_CIFAR),
            "aatpp": _standard_way((9.8, 66.4, 0.0, 66.4), (77.9, 89.0, 23.7, 65.3), attacks=_CIFAR),
        },
    ),
    "aat-table7": PaperTable(
        "Table 7: PreAct-ResNet18 on CIFAR-10, attack on the standard way",
        "standard_way",
        _CIFAR,
        {
            "st": _standard_way((None, None, 0.0, None), (None, None, 35.1, None), attacks=_CIFAR),
            "at": _standard_way((None, 35.7, None, None), (None, 81.5, None, None), attacks=_CIFAR),
            "pi": _standard_way((0.0, 8.2, 0.0, 8.2), (21.6, 65.7, 1.3, 64.4), attacks=_CIFAR),
            "aat": _standard_way((0.2, 38.9, 0.0, 38.9), (66.6, 88.1, 31.4, 56.7), attacks=_CIFAR),
            "aatpp": _standard_way((1.3, 63.8, 0.0, 63.8), (68.4, 86.5, 35.3, 51.2), attacks=_CIFAR),
        },
    ),
    "aat-table8": PaperTable(
        "Table 8: small CNN on MNIST, attack on the standard way",
        "standard_way",
        _MNIST,
        {
            "st": _standard_way((None, None, 17.4, None), attacks=_MNIST),
            "at": _standard_way((None, 89.8, None, None), attacks=_MNIST),
            "aat": _standard_way((51.0, 93.9, 30.4, 63.5), attacks=_MNIST),
            "aatpp": _standard_way((12.6, 97.8, 7.3, 90.5), attacks=_MNIST),
        },
    ),
    "aat-ablation": PaperTable(
        "Figure 2b: ablation of the four losses, WideResNet34-10 on CIFAR-10",
        "adversarial",
        {"cifar-l2-sign": "l2"},
        {method: Row() for method in METHODS if method.startswith("terms:")},
    ),
}
"""The tables by the name `python -m robustfast.reproduce` takes. Figure 2b prints no values: its rows are empty."""
