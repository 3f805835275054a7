"""Adversarial feature desensitization (AFD): tables 1, 2, A3 to A5 and figures 2, 3, A1 to A8, numbers as printed.

Source: Bashivan et al. 2021 (arXiv:2006.04621), section 4 and appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustfast.evaluation.comparison import Column
from robustfast.evaluation.papers.part_tables import Lead, PartTable, Row
from robustfast.evaluation.reproducible import Reproducible

__all__ = ["COSTS", "ITEMS"]

COSTS: Mapping[str, float] = {
    # PGD of 40 steps, C&W of 9 x 100, AutoAttack: APGD of 100, targeted APGD and FAB of 9 x 100, Square of 5000.
    "nominal": 80 + 1800 + 9800,
    "black-box": 80 + 1800,
    # Those at five radii, AutoAttack at three; DeepFool's gradients of ten classes.
    "sweeps": 5 * 400 + 1800 + 600 + 3 * 9800,
    "transfer": 2 * 80,
    "hdh": 5 * 400 + 1800 + 600,
    "dimensions": 1,
    # Four runs at six radii.
    "sensitivity": 4 * 6 * 83,
    "tsne": 4 * 6 * 81,
}
"""Part to F per test image, at most."""

_DATA = {
    "mnist": ("MNIST", "mnist-afd"),
    "cifar10": ("CIFAR-10", "cifar10-rn18-afd"),
    "cifar100": ("CIFAR-100", "cifar100-rn18-afd"),
    "tiny": ("Tiny-ImageNet", "tiny-rn18-afd"),
    "digits": ("digits", "digits-afd"),
}
"""Data set to what the paper calls it, and to the family of its presets."""

_LABELS = {
    "nt": "NT",
    "at": "AT",
    "trades": "TRADES",
    "match": "representation matching",
    "dcgan": "AFD-DCGAN",
    "wgan": "AFD-WGAN",
}

_TABLE1 = (
    Column("nominal.clean", "", "clean"),
    Column("nominal.pgd", "white-box", "PGD"),
    Column("nominal.cw", "white-box", "C&W"),
    Column("nominal.aa", "white-box", "AA"),
    Column("black-box.pgd", "black-box", "PGD"),
    Column("black-box.cw", "black-box", "C&W"),
)
# Rows of the paper's own runs, then those that it took from other papers, by the label it gives them.
_TABLE1_PRINTED: Mapping[str, Mapping[str, tuple[float | None, ...]]] = {
    "mnist": {
        "nt": (98.84, 0.0, 62.43, 0.0, 50.82, 96.48),
        "at": (99.35, 95.66, 92.78, 89.99, 98.92, 98.95),
        "trades": (99.14, 94.81, 90.08, 88.66, 98.5, 98.57),
        "dcgan": (99.24, 95.72, 93.78, 88.79, 98.65, 98.49),
        "wgan": (99.14, 97.68, 97.68, 90.12, 98.59, 98.71),
    },
    "cifar10": {
        "nt": (94.89, 0.55, 0.31, 0.0, 17.93, None),
        "at": (85.92, 40.07, 40.27, 36.14, 85.14, 85.84),
        "trades": (81.94, 53.3, 40.24, 43.48, 80.82, 81.74),
        "dcgan": (86.82, 44.35, 50.93, 34.46, 85.73, 86.68),
        "wgan": (85.95, 59.38, 62.43, 37.33, 84.74, 85.79),
        "AT, published": (87.3, 45.8, None, None, 86.0, None),
        "TRADES, published": (84.92, 56.61, None, None, 87.60, None),
        "RLFAT, WRN-32-10": (82.72, 58.75, None, None, None, None),
        "RST+, WRN-34-10": (89.82, 64.86, None, None, None, None),
        "LLR, WRN-28-8": (86.83, 52.99, None, None, None, None),
        "JARN, WRN-34-10": (84.8, 46.7, None, None, None, None),
    },
    "cifar100": {
        "nt": (76.76, 0.01, 0.52, 0.02, None, None),
        "at": (56.49, 18.54, 17.71, 18.30, 56.07, 56.42),
        "trades": (60.32, 25.11, 20.52, 21.10, 59.62, 60.29),
        "dcgan": (60.95, 18.06, 21.47, 16.31, 60.31, 60.86),
        "wgan": (58.87, 22.35, 25.33, 18.00, 58.15, 58.75),
    },
    "tiny": {
        "nt": (58.30, 0.3, 0.0, 0.0, None, None),
        "at": (43.80, 12.62, 4.90, 9.48, 41.87, 42.86),
        "trades": (37.70, 13.26, 4.11, 12.57, 36.26, 36.72),
        "wgan": (47.70, 11.49, 5.90, 9.45, 43.5, 44.69),
    },
    "digits": {"nt": (), "at": (), "trades": (), "dcgan": (), "wgan": ()},
}
_TABLE1_CAVEAT = "Black-box images are made on the NT run: its own row has none (the paper's are another's)."

_ATTACKS = {
    "pgd-linf": "PGD-linf",
    "pgd-l2": "PGD-l2",
    "pgd-l1": "PGD-l1",
    "fgsm": "FGSM",
    "mim": "MIM",
    "ddn": "DDN",
    "deepfool": "DeepFool",
    "cw": "C&W",
    "aa": "AA",
}
_TABLE2 = tuple(
    Column(f"sweeps.attacks.{name}.printed.auc", "AUC", heading, "fraction")
    for name, heading in _ATTACKS.items()
)
_TABLE2_PRINTED: Mapping[str, Mapping[str, tuple[float | None, ...]]] = {
    "mnist": {
        "nt": (0.16, 0.06, 0.07, 0.3, 0.19, 0.09, 0.21, 0.57, 0.28),
        "at": (0.74, 0.29, 0.19, 0.83, 0.95, 0.49, 0.55, 0.87, 0.89),
        "trades": (0.71, 0.26, 0.15, 0.79, 0.88, 0.42, 0.47, 0.86, 0.88),
        "dcgan": (0.77, 0.33, 0.3, 0.78, 0.91, 0.51, 0.49, 0.9, 0.88),
        "wgan": (0.92, 0.54, 0.55, 0.9, 0.98, 0.68, 0.63, 0.94, 0.90),
    },
    "cifar10": {
        "nt": (0.05, 0.1, 0.17, 0.19, 0.05, 0.1, 0.16, 0.1, 0.12),
        "at": (0.28, 0.2, 0.44, 0.33, 0.31, 0.26, 0.29, 0.31, 0.22),
        "trades": (0.32, 0.22, 0.5, 0.24, 0.32, 0.33, 0.18, 0.28, 0.25),
        "dcgan": (0.34, 0.54, 0.43, 0.4, 0.31, 0.4, 0.43, 0.47, 0.22),
        "wgan": (0.56, 0.54, 0.66, 0.59, 0.56, 0.4, 0.52, 0.62, 0.24),
    },
    "cifar100": {
        "nt": (0.03, 0.08, 0.1, 0.07, 0.03, 0.08, 0.06, 0.08, 0.09),
        "at": (0.13, 0.1, 0.24, 0.13, 0.14, 0.14, 0.12, 0.15, 0.13),
        "trades": (0.16, 0.13, 0.31, 0.12, 0.17, 0.18, 0.1, 0.16, 0.15),
        "dcgan": (0.14, 0.12, 0.27, 0.17, 0.16, 0.15, 0.16, 0.18, 0.13),
        "wgan": (0.18, 0.16, 0.31, 0.22, 0.19, 0.16, 0.19, 0.23, 0.13),
    },
    "tiny": {
        "nt": (0.04, 0.03, 0.08, 0.05, 0.04, 0.06, 0.07, 0.07, 0.07),
        "at": (0.10, 0.03, 0.16, 0.15, 0.09, 0.14, 0.13, 0.11, 0.14),
        "trades": (0.10, 0.03, 0.16, 0.07, 0.09, 0.15, 0.11, 0.09, 0.16),
        "wgan": (0.10, 0.04, 0.19, 0.12, 0.09, 0.15, 0.16, 0.12, 0.15),
    },
}
_TABLE2_CAVEAT = (
    "Areas under accuracy in [0, 1] over eps / (largest eps), on the grids of table A2; some printed areas cannot come "
    "from these (each run's file has those on the grids that fit, as corrected), so take the printed ones as +/- 0.03."
)

_TABLE_A3_PRINTED: Mapping[str, Mapping[str, tuple[float | None, ...]]] = {
    "mnist": {"at": (None, 97.32), "trades": (96.64, None), "wgan": (97.41, 97.58)},
    "cifar10": {"at": (None, 64.34), "trades": (78.43, None), "wgan": (86.36, 66.49)},
    "cifar100": {"at": (None, 42.54), "trades": (39.22, None), "wgan": (43.59, 42.26)},
}
_TABLE_A3 = (Column("transfer.AT", "PGD made on", "AT"), Column("transfer.TRADES", "PGD made on", "TRADES"))

_TABLE_A4_PRINTED: Mapping[str, Mapping[str, tuple[float | None, ...]]] = {
    "mnist": {"nt": (64, 9), "at": (64, 9), "trades": (64, 14), "wgan": (28, 9)},
    "cifar10": {"nt": (512, 70), "at": (512, 75), "trades": (512, 70), "wgan": (389, 12)},
    "cifar100": {"nt": (512, 376), "at": (512, 440), "trades": (512, 339), "wgan": (511, 304)},
}
_TABLE_A4 = (
    Column("dimensions.units", "", "units", "count"),
    Column("dimensions.dimensions", "", "dims", "count"),
)
_TABLE_A4_CAVEAT = (
    "Section 4.5 speaks of 6, 9 and 76 dimensions for AFD, table A4 of 9, 12 and 304: here is the table."
)

_TABLE_A5 = (Column("nominal.pgd", "", "PGD-linf 0.3"),)
_TABLE_A5_ROWS = {
    "fc1-pd": Row("FC1-PD", "mnist-afd-wgan", {"nominal.pgd": 85.96}, {"discriminator": "fc1-pd"}),
    "fc3": Row("FC3", "mnist-afd-wgan", {"nominal.pgd": 90.73}, {"discriminator": "fc3"}),
    "fc3-pd": Row("FC3-PD", "mnist-afd-wgan", {"nominal.pgd": 97.03}),
}

_FOUR = ("nt", "at", "trades", "wgan")


def _rows(
    data: str, columns: tuple[Column, ...], printed: Mapping[str, tuple[float | None, ...]]
) -> dict[str, Row]:
    """Rows by method; one that is no method of ours is named as it is labelled."""
    family = _DATA[data][1]
    found = {}
    for method, numbers in printed.items():
        values = (
            dict(zip((column.key for column in columns), numbers, strict=bool(numbers))) if numbers else {}
        )
        found[method] = Row(
            _LABELS.get(method, method),
            f"{family}-{method}" if method in _LABELS else None,
            {key: value for key, value in values.items() if value is not None},
        )
    return found


def _table(name: str, title: str, rows: Mapping[str, Row], **more: Any) -> PartTable:
    return PartTable(f"afd-{name}", title, "afd", rows, costs=COSTS, **more)


def _drawn(
    name: str, title: str, data: str, part: str, methods: tuple[str, ...] = _FOUR, **more: Any
) -> PartTable:
    """A figure of the last method, beside the others."""
    paper, _ = _DATA[data]
    rows = _rows(data, (), dict.fromkeys(methods, ()))
    lead = Lead(methods[-1], (part,))
    return _table(name, f"{title}, {paper}", rows, lead=lead, against=methods[:-1], **more)


def _figures() -> list[PartTable]:
    curves = {"fig2": "cifar10", "figA1": "mnist", "figA2": "cifar100", "figA3": "tiny"}
    found = [
        _drawn(
            name,
            f"Figure {name.removeprefix('fig')}: accuracy against eps under nine attacks",
            data,
            "curves",
            tuple(_TABLE2_PRINTED[data]),
            parts=("sweeps",),
        )
        for name, data in curves.items()
    ]
    found.append(
        _drawn(
            "fig3",
            "Figure 3: HdH distance and the gap between adversarial and natural error",
            "cifar10",
            "hdh",
            ("wgan",),
        )
    )
    found += [
        _drawn(f"figA4-{data}", "Figure A4: normalised feature sensitivity", data, "sensitivity")
        for data in ("mnist", "cifar10", "cifar100", "tiny")
    ]
    found.append(
        _drawn(
            "figA5",
            "Figure A5: AFD and representation matching",
            "mnist",
            "curves",
            ("match", "wgan"),
            parts=("sweeps",),
        )
    )
    found += [
        _drawn(
            name, f"Figure {name.removeprefix('fig')}: t-SNE of features, natural and attacked", data, "tsne"
        )
        for name, data in {"figA6": "mnist", "figA7": "cifar10", "figA8": "cifar100"}.items()
    ]
    return found


def _tables() -> list[PartTable]:
    found = [
        _table(
            f"table1-{data}",
            f"Table 1: ResNet18 on {_DATA[data][0]}",
            _rows(data, _TABLE1, printed),
            columns=_TABLE1,
            source="nt",
            caveat=_TABLE1_CAVEAT,
        )
        for data, printed in _TABLE1_PRINTED.items()
        if data != "digits"
    ]
    for number, columns, rows, caveat, more in (
        ("2", _TABLE2, _TABLE2_PRINTED, _TABLE2_CAVEAT, {}),
        ("A3", _TABLE_A3, _TABLE_A3_PRINTED, "", {"against": ("at", "trades")}),
        ("A4", _TABLE_A4, _TABLE_A4_PRINTED, _TABLE_A4_CAVEAT, {}),
    ):
        what = {
            "2": "areas under accuracy against eps",
            "A3": "transferred attacks",
            "A4": "dimensions of the features",
        }
        found += [
            _table(
                f"table{number}-{data}",
                f"Table {number}: {what[number]}, {_DATA[data][0]}",
                _rows(data, columns, printed),
                columns=columns,
                caveat=caveat,
                **more,
            )
            for data, printed in rows.items()
        ]
    found.append(
        _table("tableA5", "Table A5: domain discriminators, MNIST", _TABLE_A5_ROWS, columns=_TABLE_A5)
    )
    return found


_DIGITS = _table(
    "digits",
    "AFD on digits, which the paper has not",
    _rows("digits", (), _TABLE1_PRINTED["digits"]),
    columns=(*_TABLE1, *_TABLE_A4),
    source="nt",
    caveat="Black-box images are made on the NT run, so its own row has none.",
)

ITEMS: dict[str, Reproducible] = {item.name: item for item in (*_tables(), *_figures(), _DIGITS)}
