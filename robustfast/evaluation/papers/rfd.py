"""Robust, non-robust and domain-specific features (RFD): tables I to V, figures 1, 3 to 8, detection, as printed.

Source: "Exploring Robust Features for Improving Adversarial Robustness", section IV; means and spreads of five runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustfast.evaluation.comparison import Column
from robustfast.evaluation.papers.part_tables import Lead, PartTable, Row
from robustfast.evaluation.reproducible import SMOKE_STEPS, Reproducible

__all__ = ["COSTS", "ITEMS"]

Printed = float | tuple[float, float] | None

COSTS: Mapping[str, float] = {
    # FGSM, PGD of 20, CW of 30, C&W of 9 x 100, AutoAttack (see AFD's), SPSA of 100 x 256.
    "nominal": 2 + 40 + 60 + 1800 + 9800 + 25600,
    "black-box": 42,
    # 100 steps, of two runs.
    "iterations": 2 * 211,
    # Six training images for each test image (CIFAR has five, SVHN three), and PGD of 20.
    "knn": 6 + 43,
    "angles": 43,
    # Six radii, two further norms, and noise.
    "detection": 9 * 43,
    # 220 steps through two encoders on one extractor; of the whole 100 through these and the source, and two PGD of 20.
    "adaptive": 900,
    "routed": 720,
    # Of few images; t-SNE looks at some of them twice, and at two other runs.
    "gradcam": 50,
    "tsne": 3 * 2 * 43,
    "histograms": 43,
}
"""Part to F per test image, at most."""

_CLEAN, _FGSM, _PGD, _CW, _CW2, _AA = (
    Column("nominal.clean", "", "clean"),
    Column("nominal.fgsm", "", "FGSM"),
    Column("nominal.pgd", "", "PGD"),
    Column("nominal.cw", "", "CW"),
    Column("nominal.cw_l2", "", "CW_2"),
    Column("nominal.aa", "", "AA"),
)
_BLACK_BOX = Column("black-box.pgd", "", "PGD (BB)")

_LABELS = {
    "rfd-um": "UM",
    "rfd-at": "AT",
    "rfd-trades": "TRADES",
    "rfd-mart": "MART",
    "rfd-alp": "ALP",
    "rfd": "Ours",
    "rfd-cw": "Ours-CW",
    "rfd-dlr": "Ours-DLR",
}
"""Method to what the paper calls it; another row is of a method that is not here, and named as it is labelled."""

_ATTACK_LOSS = {"rfd-cw": "margin", "rfd-dlr": "dlr"}
"""Methods that train under another attack."""

_TABLE1 = (_CLEAN, _FGSM, _PGD, _CW, _AA, _BLACK_BOX)
_TABLE1_PRINTED: Mapping[str, tuple[Printed, ...]] = {
    "rfd-um": (96.20, 31.39, 0.0, 0.0, 0.0, None),
    "rfd-at": (86.19, 62.42, 45.57, 46.26, 44.04, 79.55),
    "rfd-trades": (83.50, 63.68, 52.80, 50.90, 52.70, 81.60),
    "rfd-mart": (82.16, 63.91, 52.67, 49.44, 51.20, 82.60),
    "LBGAT": (88.22, None, 54.66, 54.29, 52.23, None),
    "DRRDN": (85.76, 62.81, 52.32, 51.88, None, 82.65),
    "AFD-WGAN": (85.95, None, 59.38, None, 37.33, 84.74),
    "IAD": (85.09, 66.54, 55.45, 54.63, 52.29, None),
    "rfd": ((83.52, 0.12), (66.81, 0.79), (57.97, 0.26), (55.39, 0.25), (53.64, 0.22), (83.33, 0.21)),
    "rfd-cw": ((80.17, 0.11), (65.51, 0.35), (57.79, 0.30), (56.02, 0.18), (51.60, 0.11), (80.03, 0.15)),
    "rfd-dlr": ((87.20, 0.12), (69.61, 0.27), (63.28, 0.27), (50.98, 0.29), (48.30, 0.36), (87.03, 0.08)),
}

_TABLE2 = (_CLEAN, _FGSM, _PGD, _CW)
_TABLE2_PRINTED: Mapping[str, tuple[Printed, ...]] = {
    "rfd-um": (96.36, 46.33, 0.33, 0.37),
    "rfd-at": (91.55, 67.13, 45.64, 47.14),
    "ML": (83.95, 70.28, 51.91, 51.25),
    "rfd-trades": (91.16, 69.85, 50.90, 50.85),
    "rfd-mart": (91.16, 67.31, 48.72, 50.52),
    "rfd": ((91.01, 0.73), (72.41, 1.10), (55.20, 0.52), (54.09, 0.66)),
}

_TABLE3 = (_CLEAN, _PGD, _CW2, _AA)
_TABLE3_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    "cifar100": {
        "rfd-um": (76.76, 0.01, 0.52, 0.02),
        "rfd-at": (56.49, 18.54, 17.71, 18.30),
        "rfd-trades": (60.32, 25.11, 20.52, 21.10),
        "LBGAT": (60.64, 30.56, None, 29.33),
        "AFD-WGAN": (58.87, 22.35, 25.33, 18.00),
        "rfd": ((56.64, 0.57), (31.78, 0.46), (24.31, 0.10), (27.93, 0.21)),
    },
    "tiny": {
        "rfd-um": (64.62, 0.07, 0.0, 0.0),
        "rfd-at": (43.80, 12.62, 4.90, 9.48),
        "rfd-trades": (37.70, 13.26, 4.11, 12.57),
        "AFD-WGAN": (47.70, 11.49, 5.90, 9.45),
        "rfd": ((46.54, 0.49), (24.78, 0.18), (28.29, 0.32), (20.64, 0.16)),
    },
}

_TABLE4 = (_CLEAN, _PGD)
_TABLE4_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    "inception_v4": {
        "rfd-at": (80.71, 21.76),
        "rfd-mart": (28.31, 21.94),
        "rfd-trades": (68.82, 30.68),
        "rfd": ((66.93, 0.95), (38.01, 0.48)),
    },
    "inception_resnet_v2": {
        "rfd-at": (87.69, 24.38),
        "rfd-mart": (52.64, 35.44),
        "rfd-trades": (74.98, 36.92),
        "rfd": ((76.71, 0.24), (42.49, 0.27)),
    },
    "resnetv2_152": {
        "rfd-at": (87.95, 27.34),
        "rfd-mart": (64.05, 42.75),
        "rfd-trades": (70.19, 32.48),
        "rfd": ((73.88, 0.21), (43.36, 0.19)),
    },
}
_BATCH_SIZES = {"inception_v4": 128, "inception_resnet_v2": 64, "resnetv2_152": 40}

_TABLE5 = (
    Column("knn.clean.knn", "clean", "k-NN"),
    Column("knn.clean.softmax", "clean", "softmax"),
    Column("knn.pgd.knn", "PGD", "k-NN"),
    Column("knn.pgd.softmax", "PGD", "softmax"),
)
_TABLE5_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    "cifar10": {
        "rfd-at": (87.1, 86.2, 47.5, 45.6),
        "rfd-alp": (89.6, 89.8, 48.9, 48.5),
        "ML": (86.3, 86.2, 51.7, 51.6),
        "rfd": (83.0, 83.3, 58.1, 58.0),
    },
    "svhn": {
        "rfd-at": (91.5, 91.6, 45.8, 45.6),
        "rfd-alp": (91.4, 91.3, 52.0, 52.2),
        "ML": (84.3, 84.0, 52.0, 51.9),
        "rfd": (92.6, 90.4, 55.1, 55.0),
    },
    "tiny": {
        "rfd-at": (36.6, 42.3, 20.2, 19.6),
        "rfd-alp": (35.2, 41.5, 20.3, 20.0),
        "ML": (34.0, 40.6, 20.7, 20.7),
        "rfd": (42.0, 46.2, 22.6, 24.6),
    },
}

_DETECTION = (
    Column("detection.training_eps.tpr", "discriminator", "TPR"),
    Column("detection.training_eps.tnr", "discriminator", "TNR"),
    Column("routed.clean", "UM where judged clean", "clean"),
    Column("routed.adversarial", "UM where judged clean", "PGD"),
)
_SPSA = (Column("nominal.pgd", "", "PGD"), Column("nominal.spsa", "", "SPSA"))
_FIGURE6 = tuple(
    Column(f"iterations.accuracy.{position}", "steps of PGD", steps)
    for position, steps in {0: "10", 1: "20", 4: "50", 9: "100"}.items()
)

_DATA = {
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "cifar100": "CIFAR-100",
    "tiny": "Tiny-ImageNet",
    "imagenette": "Imagenette",
    "digits": "digits",
}
_UNSAID = "The paper names no radius for its tests: ours are linf 8/255 and l2 1.0."


def _rows(
    data: str, columns: tuple[Column, ...], printed: Mapping[str, tuple[Printed, ...]], **fields: Any
) -> dict[str, Row]:
    """Rows by method; `fields` are those of the presets that are otherwise."""
    found = {}
    for method, numbers in printed.items():
        loss = _ATTACK_LOSS.get(method)
        values = zip((column.key for column in columns), numbers, strict=True) if numbers else ()
        found[method] = Row(
            _LABELS.get(method, method),
            None if method not in _LABELS else f"{data}-{'rfd' if loss else method}",
            {key: value for key, value in values if value is not None},
            settings={"attack_loss": loss} if loss else {},
            fields=fields,
        )
    return found


def _table(name: str, title: str, rows: Mapping[str, Row], **more: Any) -> PartTable:
    return PartTable(f"rfd-{name}", title, "rfd", rows, costs=COSTS, smoke_settings=SMOKE, **more)


def _alone(
    name: str,
    title: str,
    columns: tuple[Column, ...],
    numbers: tuple[Printed, ...],
    others: tuple[str, ...] = (),
) -> PartTable:
    """Numbers that the paper gives of its own method on CIFAR-10 alone, with others that these take."""
    rows = _rows("cifar10", columns, {**dict.fromkeys(others, ()), "rfd": numbers})
    parts = tuple(dict.fromkeys(column.key.partition(".")[0] for column in columns))
    source = others[0] if others else None
    return _table(name, title, rows, columns=columns, source=source, lead=Lead("rfd", parts), caveat=_UNSAID)


def _figure(
    name: str, title: str, part: str, others: tuple[str, ...] = (), words: tuple[str, ...] = (), **more: Any
) -> PartTable:
    rows = _rows("cifar10", (), dict.fromkeys((*others, "rfd"), ()))
    lead = Lead("rfd", (part,), words)
    return _table(
        name, f"Figure {name.removeprefix('fig')}: {title}", rows, lead=lead, against=others, **more
    )


SMOKE: Mapping[str, Any] = {"steps": (SMOKE_STEPS,)}
"""The objective draws the steps of its attack from a list of its own."""


def _items() -> list[PartTable]:
    found = [
        _table(
            "table1",
            "Table I: WideResNet34-10 on CIFAR-10",
            _rows("cifar10", _TABLE1, _TABLE1_PRINTED),
            columns=_TABLE1,
            source="rfd-um",
            caveat=f"Black-box images are made on the UM run, so its own row has none. {_UNSAID}",
        ),
        _table(
            "table2",
            "Table II: WideResNet34-10 on SVHN",
            _rows("svhn", _TABLE2, _TABLE2_PRINTED),
            columns=_TABLE2,
            caveat=_UNSAID,
        ),
    ]
    found += [
        _table(
            f"table3-{data}",
            f"Table III: WideResNet34-10 on {_DATA[data]}",
            _rows(data, _TABLE3, printed),
            columns=_TABLE3,
            caveat=_UNSAID,
        )
        for data, printed in _TABLE3_PRINTED.items()
    ]
    found += [
        _table(
            f"table4-{model}",
            f"Table IV: {model} on Imagenette",
            _rows("imagenette", _TABLE4, printed, model=model, batch_size=_BATCH_SIZES[model]),
            columns=_TABLE4,
            caveat=_UNSAID,
        )
        for model, printed in _TABLE4_PRINTED.items()
    ]
    found += [
        _table(
            f"table5-{data}",
            f"Table V: k nearest neighbours and softmax on {_DATA[data]}",
            _rows(data, _TABLE5, printed),
            columns=_TABLE5,
            caveat=_UNSAID,
        )
        for data, printed in _TABLE5_PRINTED.items()
    ]
    found += [
        _alone(
            "detection",
            "Section IV-E: detection by the discriminator, CIFAR-10",
            _DETECTION,
            (99.86, 100.0, 96.20, 57.88),
            ("rfd-um",),
        ),
        _alone("spsa", "Section IV-H: an attack without gradients, CIFAR-10", _SPSA, (57.97, 80.21)),
        _figure("fig1", "Grad-CAM of robust, non-robust and domain-specific features", "gradcam"),
        _figure("fig3", "t-SNE of domain-specific features", "tsne", ("rfd-um", "rfd-at")),
        _figure("fig4", "histograms of domain-specific features", "histograms"),
        _figure("fig5", "t-SNE of robust and non-robust features of one class", "tsne", ("rfd-um", "rfd-at")),
        _table(
            "fig6",
            "Figure 6: accuracy under PGD of 10 to 100 steps, CIFAR-10",
            _rows("cifar10", _FIGURE6, {"rfd-at": (), "rfd": (58.38, 57.97, None, 57.82)}),
            columns=_FIGURE6,
            against=("rfd-at",),
            lead=Lead("rfd", ("iterations",)),
            caveat=_UNSAID,
        ),
        _figure("fig7", "t-SNE of all classes with adversarial images of one", "tsne", ("rfd-um", "rfd-at")),
        _figure("fig8", "t-SNE of one class by what it is taken for", "tsne", ("rfd-um", "rfd-at")),
        _table(
            "digits",
            "RFD on digits, which the paper has not",
            _rows("digits", (), dict.fromkeys(("rfd-um", "rfd-at", "rfd"), ())),
            columns=(_CLEAN, _FGSM, _PGD, _CW, _AA, _BLACK_BOX, *_TABLE5),
            source="rfd-um",
            caveat="Black-box images are made on the UM run, so its own row has none.",
        ),
    ]
    return found


ITEMS: dict[str, Reproducible] = {item.name: item for item in _items()}
