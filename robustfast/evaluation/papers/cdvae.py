"""Class disentanglement (CD-VAE): tables 1 to 7 and figures 2 to 4, numbers as printed; its appendices are not here.

Source: "Class-Disentanglement and Applications in Adversarial Detection and Defense" (Yang et al. 2021), sections 3, 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from robustfast.attacks.config import AttackConfig
from robustfast.evaluation.comparison import Column
from robustfast.evaluation.papers.part_tables import Lead, PartTable, Row
from robustfast.evaluation.reproducible import Reproducible

__all__ = ["COSTS", "ITEMS"]

Printed = float | tuple[float, float] | None

COSTS: Mapping[str, float] = {
    "reconstruction": 2,
    # PGD of 20 steps, and both parts.
    "norms": 43,
    "similarity": 43,
    "latent": 43,
    # Eight images.
    "images": 1,
    "cross": 9,
    # For two parts: features of five training images, then for each of five attacks its images and their scores, of
    # which Mahalanobis takes a gradient for each of its settings.
    "detection": 2 * (5 + 5 * (2 * 5 + 3 * (2 + 3 * 7))),
    # Of each of six runs, detection by one attack and its defence.
    "gamma": 6 * (2 + 10 + 3 * 23 + 43),
    # Five attacks of 100 steps, on the classifier and for some rows on the row itself.
    "grey-box": 2 * 5 * 200,
    # AutoAttack under two norms (see AFD's) and four attacks of 100 steps; then APGD of 100 steps, twice and under two
    # norms, and the four, with gradients of 20 draws.
    "white-box": 2 * 9800 + 4 * 200 + 20 * (2 * 2 * 200 + 4 * 200),
}
"""Part to F per test image, at most."""

SMOKE_COSTS: Mapping[str, float] = {
    "norms": 7,
    "similarity": 7,
    "latent": 7,
    "detection": 2 * (5 + 5 * (2 * 2 + 3 * (2 + 3 * 7))),
    "gamma": 6 * (2 + 4 + 3 * 23 + 7),
    "grey-box": 2 * 5 * 5,
    # The targeted attacks of AutoAttack take nine classes.
    "white-box": 2 * 100 + 4 * 5 + 20 * (2 * 2 * 5 + 4 * 5),
}
"""Those of two steps."""

SMOKE_IMAGES = (256, 256)
"""Detectors are tried on images that are classified right, and their regression is fitted to a tenth of these."""

_CIFAR, _IMAGENET = "cifar10", "rimagenet"
_SMALL = ("digits", "mnist")
_DATA = {_CIFAR: "CIFAR-10", _IMAGENET: "restricted ImageNet", "digits": "digits", "mnist": "MNIST"}

# Of tables of many runs and attacks: HGD's denoiser of CIFAR-10 has 1 GFLOP a pass. The training images are as many as
# those of the other tables, so that the batches are the same and a run is trained once for all of them.
_FEWER = {_CIFAR: (256, 4), _IMAGENET: (256, 16), **dict.fromkeys(_SMALL, (256, 24))}
# Of 203 classes next to no image is classified right, and detectors have nothing to look at. A sweep has six runs.
_DETECTED = {_CIFAR: SMOKE_IMAGES, _IMAGENET: (256, 64)}
_OF_SWEEP = {_CIFAR: (256, 48), _IMAGENET: (256, 16)}

# Class loss by use: the best trade-off, and what defends best, which differs from one data set to the other.
_DEFENCE_GAMMA = {_CIFAR: 2e-3, _IMAGENET: 2e-1}
_GAMMAS = (2e-4, 2e-3, 2e-2, 2e-1, 2.0, 20.0)


def _zipped(columns: Sequence[Column], numbers: Sequence[Printed]) -> dict[str, Any]:
    """Numbers by column; of a row that the paper has not, none."""
    pairs = zip((column.key for column in columns), numbers, strict=True) if numbers else ()
    return {key: value for key, value in pairs if value is not None}


def _split(data: str, gamma: float | None = None) -> Row:
    """G and D; of another gamma than the preset's where one is given."""
    return Row("CD-VAE", f"{data}-cdvae", settings={} if gamma is None else {"gamma": gamma}, only_lent=True)


def _plain(data: str) -> Row:
    """D-hat, on which the attacks are made."""
    return Row("classifier of x", f"{data}-cdvae-x", only_lent=True)


def _of_g(data: str) -> Row:
    return Row("classifier of G(x)", f"{data}-cdvae-g", start=("cdvae",), only_lent=True)


def _table(name: str, title: str, rows: Mapping[str, Row], **more: Any) -> PartTable:
    return PartTable(
        f"cdvae-{name}",
        title,
        "cdvae",
        rows,
        costs=COSTS,
        smoke_costs=SMOKE_COSTS,
        **{"smoke_images": SMOKE_IMAGES, **more},
    )


_UNSAID = "The paper does not say how many steps the attack of its analysis takes: ours has 20."

_SIMILARITY = (
    Column("cosine.mean", "", "cosine", "fraction"),
    Column("distance", "", "FID", "value"),
)
_SIMILARITY_PRINTED: Mapping[str, tuple[Printed, ...]] = {
    "g": ((0.9997, 0.0003), 0.90),
    "r": ((0.9460, 0.0260), 22.31),
}

_NORMS = (
    Column("l1", "", "l1 x 1e-3", "thousands"),
    Column("l2", "", "l2", "value"),
    Column("linf", "", "linf", "value"),
)
# Spreads over the images; of R(x') two of them cannot be read.
_NORMS_PRINTED: Mapping[str, tuple[Printed, ...]] = {
    "x": ((142.83, 37.02), (427.99, 92.59), (2.49, 0.20)),
    "g": ((133.68, 37.07), (397.77, 92.14), (2.08, 0.11)),
    "r": ((36.76, 11.75), (127.95, 37.27), (2.45, 0.46)),
    "x_adv": ((142.74, 36.57), (427.91, 91.19), (2.53, 0.18)),
    "g_adv": ((133.52, 36.96), (397.26, 91.85), (2.08, 0.11)),
    "r_adv": ((38.13, 11.06), 131.20, 2.46),
    "delta": ((13.65, 0.88), (39.09, 1.40), (0.14, 0.00)),
    "delta_g": ((4.15, 0.65), (16.56, 2.47), (0.39, 0.17)),
    "delta_r": ((13.78, 0.92), (40.97, 1.87), (0.48, 0.16)),
}
_NAMES = {
    "x": "x",
    "g": "G(x)",
    "r": "R(x)",
    "x_adv": "x'",
    "g_adv": "G(x')",
    "r_adv": "R(x')",
    "delta": "delta",
    "delta_g": "delta_G",
    "delta_r": "delta_R",
}

_CROSS = tuple(
    Column(f"{part}.{top}", f"tested on {_NAMES[part]}", heading)
    for part in "xrg"
    for top, heading in (("top1", "top-1"), ("top5", "top-5"))
)
_CROSS_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    _CIFAR: {
        "x": (96.01, 99.84, 92.68, 99.65, 18.86, 67.93),
        "r": (95.81, 99.81, 96.20, 99.82, 18.12, 66.30),
        "g": (51.84, 86.52, 25.67, 68.98, 75.25, 97.39),
    },
    _IMAGENET: {
        "x": (82.53, 96.88, 11.17, 25.61, 65.26, 88.94),
        "r": (63.33, 82.14, 82.14, 96.47, 5.36, 12.01),
        "g": (44.46, 69.13, 1.71, 5.02, 74.08, 93.37),
    },
}

_ATTACKS = {"fgsm": "FGSM", "bim": "BIM", "cw": "C&W", "pgd-linf": "PGD-linf", "pgd-l2": "PGD-l2"}
_DETECTION = tuple(
    Column(f"{attack}.{key}", heading, shown)
    for attack, heading in _ATTACKS.items()
    for key, shown in (("tnr", "TNR"), ("auroc", "AUC"))
)
_DETECTORS = {"kd": "KD", "lid": "LID", "md": "MD"}
_DETECTION_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    _CIFAR: {
        "kd x": (42.38, 85.74, 74.54, 94.82, 73.33, 94.75, 73.12, 94.59, 70.62, 93.62),
        "kd r": (57.10, 89.69, 96.79, 99.27, 94.67, 98.73, 96.56, 99.30, 97.04, 99.32),
        "lid x": (69.05, 93.60, 77.73, 95.20, 74.98, 94.32, 71.52, 93.19, 72.57, 93.46),
        "lid r": (92.60, 98.59, 86.42, 97.29, 76.42, 95.10, 87.54, 97.57, 87.63, 97.38),
        "md x": (94.91, 98.69, 88.33, 97.66, 86.30, 97.36, 77.23, 95.38, 76.70, 95.33),
        "md r": (99.68, 99.36, 98.92, 99.74, 98.94, 99.68, 99.13, 99.79, 99.13, 99.77),
    },
    _IMAGENET: {
        "kd x": (8.76, 70.25, 99.26, 99.82, 99.22, 99.77, 99.25, 99.80, 44.02, 82.81),
        "kd r": (99.40, 99.63, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 92.85, 98.40),
        "lid x": (44.28, 85.91, 97.92, 99.57, 97.58, 99.49, 97.80, 99.51, 53.78, 87.37),
        "lid r": (99.91, 99.93, 99.46, 99.81, 98.24, 99.40, 99.43, 99.73, 61.32, 89.18),
        "md x": (34.69, 84.96, 99.33, 99.78, 98.72, 99.61, 99.18, 99.70, 44.16, 82.61),
        "md r": (100.0, 99.99, 100.0, 99.99, 100.0, 99.98, 99.99, 99.95, 95.42, 98.86),
    },
}

_GREY_BOX = (
    Column("clean", "", "clean"),
    Column("pgd-linf", "PGD", "linf"),
    Column("pgd-l2", "PGD", "l2"),
    Column("cw-linf", "C&W", "linf"),
    Column("cw-l2", "C&W", "l2"),
    Column("stadv", "", "StAdv"),
)
_GREY_BOX_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    _CIFAR: {
        "normal": (96.01, 0.0, 0.0, 0.0, 0.0, 0.0),
        "at-linf": (86.8, 51.7, 24.3, 52.0, 26.0, 4.8),
        "trades": (84.9, 55.1, 28.0, 53.8, 28.3, 9.2),
        "at-l2": (85.0, 41.9, 50.1, 43.4, 50.6, 7.8),
        "AT StAdv": (86.2, 0.1, 0.3, 0.2, 0.5, 53.9),
        "hgd": (80.75, 75.93, 75.44, 75.84, 77.15, 23.04),
        "ape-gan": (90.93, 59.28, 65.17, 59.23, 65.30, 7.28),
        "ours": (86.81, 77.05, 78.02, 77.04, 78.29, 19.41),
    },
    _IMAGENET: {
        "normal": (82.53, 0.0, 0.0, 0.0, 0.0, 0.0),
        "at-l2": (69.89, 10.93, 60.95, 9.49, 60.07, 0.31),
        "ours": (65.26, 52.48, 63.12, 52.95, 64.98, 4.75),
    },
    # Not in the paper.
    **dict.fromkeys(_SMALL, dict.fromkeys(("normal", "at-linf", "trades", "hgd", "ape-gan", "ours"), ())),
}

_WHITE_BOX = (
    Column("clean", "", "clean"),
    Column("unseen_mean", "unseen", "mean"),
    Column("aa-linf", "AA", "linf"),
    Column("aa-l2", "AA", "l2"),
    Column("jpeg", "", "JPEG"),
    Column("recolor", "", "ReColor"),
    Column("stadv", "", "StAdv"),
)
_WHITE_BOX_PRINTED: Mapping[str, Mapping[str, tuple[Printed, ...]]] = {
    _CIFAR: {
        "normal": (96.0, 0.1, 0.0, 0.0, 0.0, 0.4, 0.0),
        "at-linf": (86.8, 27.2, 49.0, 19.2, 30.2, 54.5, 4.8),
        "trades": (84.9, 31.0, 52.5, 23.3, None, 60.6, 9.2),
        "at-l2": (85.0, 40.3, 39.5, 47.8, 60.3, 53.5, 7.8),
        "AT ReColorAdv": (93.4, 7.9, 8.5, 3.9, 19.2, 65.0, 0.0),
        "AT StAdv": (86.2, 1.8, 0.1, 0.2, 1.9, 5.1, 53.9),
        "hgd": (80.8, 0.1, 0.0, 0.0, 0.0, 0.4, 0.0),
        "ape-gan": (90.9, 0.2, 0.0, 0.0, 0.0, 1.1, 0.0),
        "SAT-linf": (85.6, 32.4, 53.1, 23.4, 35.9, 66.5, 3.9),
        "OIA-linf": (83.4, 33.6, 51.6, 24.2, 35.4, 67.8, 7.0),
        "PAT-linf": (82.4, 50.3, 30.2, 34.9, 48.7, 71.0, 46.4),
        "ours-linf": (81.2, 51.4, 40.5, 43.1, 62.1, 73.1, 27.4),
        "ours-l2": (81.0, 50.4, 39.4, 42.4, 61.6, 72.2, 28.4),
    },
    # Not in the paper.
    **{data: {"normal": (), "ours-linf": ()} for data in _SMALL},
}

_L2_ATTACK = AttackConfig(eps=1.0, step_size=0.25, steps=10, norm="l2")


def _similarity() -> PartTable:
    rows = {"plain": _plain(_IMAGENET), "cdvae": _split(_IMAGENET)}
    for part, numbers in _SIMILARITY_PRINTED.items():
        label = f"{_NAMES[part]} and {_NAMES[f'{part}_adv']}"
        rows[part] = Row(
            label, of="cdvae", reads=f"similarity.{part}.{{key}}", printed=_zipped(_SIMILARITY, numbers)
        )
    return _table(
        "table1",
        "Table 1: likeness of parts of images and of attacked images, restricted ImageNet",
        rows,
        columns=_SIMILARITY,
        source="plain",
        caveat="FID: of Inception-v3's features with --inception-weights; without them of D's, and not comparable. "
        + _UNSAID,
    )


def _norms() -> PartTable:
    rows = {"plain": _plain(_IMAGENET), "cdvae": _split(_IMAGENET)}
    for name, numbers in _NORMS_PRINTED.items():
        rows[name] = Row(
            _NAMES[name], of="cdvae", reads=f"norms.{name}.{{0}}.mean", printed=_zipped(_NORMS, numbers)
        )
    return _table(
        "table2",
        "Table 2: norms of normalised images, their parts and changes, restricted ImageNet",
        rows,
        columns=_NORMS,
        source="plain",
        caveat=_UNSAID,
    )


def _cross(data: str) -> PartTable:
    rows = {"plain": _plain(data), "cdvae": _split(data), "of-g": _of_g(data)}
    for part, numbers in _CROSS_PRINTED[data].items():
        rows[part] = Row(
            f"trained on {_NAMES[part]}",
            of="cdvae",
            reads=f"cross.{part}.{{key}}",
            printed=_zipped(_CROSS, numbers),
        )
    return _table(
        f"table3-{data}",
        f"Table 3: classifiers of one part, tested on each, {_DATA[data]}",
        rows,
        columns=_CROSS,
        source="plain",
        against=("of-g",),
    )


def _detection(number: int, data: str) -> PartTable:
    rows = {"plain": _plain(data), "cdvae": _split(data)}
    for name, numbers in _DETECTION_PRINTED[data].items():
        detector, part = name.split()
        rows[name] = Row(
            f"{_DETECTORS[detector]}{' (R(x))' if part == 'r' else ''}",
            of="cdvae",
            reads=f"detection.known.{{0}}.{detector}.{part}.{{1}}",
            printed=_zipped(_DETECTION, numbers),
        )
    return _table(
        f"table{number}",
        f"Table {number}: adversarial images detected on x and on R(x), {_DATA[data]}",
        rows,
        columns=_DETECTION,
        smoke_images=_DETECTED[data],
        source="plain",
    )


def _baselines(data: str) -> dict[str, Row]:
    """Runs of other methods, by the keys of the printed numbers."""
    return {
        "at-linf": Row("AT PGD-linf", f"{data}-cdvae-at"),
        "trades": Row("TRADES linf", f"{data}-cdvae-trades"),
        "at-l2": Row("AT PGD-l2", f"{data}-cdvae-at", variant="l2", fields={"attack": _L2_ATTACK}),
        "hgd": Row("HGD", f"{data}-cdvae-hgd", start=("plain",)),
        "ape-gan": Row("APE-GAN", f"{data}-cdvae-ape-gan", start=("plain",)),
    }


def _known_or_printed(
    known: Mapping[str, Row], columns: Sequence[Column], printed: Mapping[str, tuple[Printed, ...]]
) -> dict[str, Row]:
    """The rows of the printed numbers: those that are known, and others by the paper's label alone."""
    return {
        name: replace(known.get(name, Row(name)), printed=_zipped(columns, numbers))
        for name, numbers in printed.items()
    }


def _grey_box(name: str, title: str, data: str) -> PartTable:
    own, itself = "grey-box.own.{key}", "grey-box.itself.{key}"
    known = {
        "normal": Row("Normal", of="cdvae", reads="grey-box.undefended.{key}"),
        # Denoisers stand before the attacked classifier; what was trained robust is attacked itself.
        **{row: replace(run, reads=own if run.start else itself) for row, run in _baselines(data).items()},
        "ours": Row("Ours", of="cdvae", reads="grey-box.d_g.{key}"),
    }
    rows = {
        "plain": _plain(data),
        "cdvae": _split(data, _DEFENCE_GAMMA.get(data)),
        "of-g": _of_g(data),
        **_known_or_printed(known, _GREY_BOX, _GREY_BOX_PRINTED[data]),
        "ours-plain": Row("Ours, G(x) by the classifier of x", of="cdvae", reads="grey-box.d_hat.{key}"),
    }
    return _table(
        name,
        f"{title}, {_DATA[data]}",
        rows,
        columns=_GREY_BOX,
        smoke_images=_FEWER[data],
        source="plain",
        against=("of-g",),
        caveat="Attacks on the plain classifier alone; adversarially trained ones are attacked themselves, as in the "
        "paper.",
    )


def _white_box(name: str, title: str, data: str) -> PartTable:
    mean, drawn = "white-box.mean.{key}", "white-box.sampled.{key}"
    ours = Row("Ours-linf", f"{data}-cdvae-adv", start=("cdvae", "classifier_g=plain"), reads=mean)
    known = {
        "normal": Row("Normal", of="plain", reads=mean),
        **{row: replace(run, reads=mean) for row, run in _baselines(data).items()},
        "ours-linf": ours,
        "ours-l2": replace(ours, label="Ours-l2", variant="l2", fields={"attack": _L2_ATTACK}),
    }
    rows = {
        "plain": _plain(data),
        "cdvae": _split(data, _DEFENCE_GAMMA.get(data)),
        **_known_or_printed(known, _WHITE_BOX, _WHITE_BOX_PRINTED[data]),
    }
    rows |= {
        f"{row}-drawn": Row(f"{rows[row].label}, codes drawn", of=row, reads=drawn)
        for row in ("ours-linf", "ours-l2")
        if row in rows
    }
    return _table(
        name,
        f"{title}, {_DATA[data]}",
        rows,
        columns=_WHITE_BOX,
        smoke_images=_FEWER[data],
        caveat="The paper's network draws its codes at test time, and its AutoAttack takes them for fixed. Ours takes "
        "their mean; where codes are drawn, attacks average their gradients over draws.",
    )


def _small(data: str) -> PartTable:
    """One run under everything but what the two tables of defences have."""
    detectors = [
        Column(f"detection.mean.{detector}.{part}.auroc", f"AUC {name}", _NAMES[part])
        for detector, name in _DETECTORS.items()
        for part in "xr"
    ]
    return _table(
        data,
        f"CD-VAE on {_DATA[data]}, which the paper has not",
        {"plain": _plain(data), "cdvae": replace(_split(data), only_lent=False), "of-g": _of_g(data)},
        columns=(
            Column("reconstruction.g.accuracy.mean", "", "G(x)"),
            Column("reconstruction.classification.r", "", "D(R(x))"),
            Column("norms.delta_r_larger", "delta_R", "larger"),
            Column("similarity.g.cosine.mean", "cosine", "G", "fraction"),
            Column("similarity.r.cosine.mean", "cosine", "R", "fraction"),
            Column("latent.mean", "code", "r", "fraction"),
            Column("cross.g.g.top1", "D_G", "G(x)"),
            *detectors,
        ),
        source="plain",
        against=("of-g",),
    )


def _figure(name: str, title: str, part: str, data: str) -> PartTable:
    rows = {"plain": _plain(data), "cdvae": replace(_split(data), only_lent=False)}
    number = name.removeprefix("fig")
    return _table(
        name, f"Figure {number}: {title}, {_DATA[data]}", rows, source="plain", lead=Lead("cdvae", (part,))
    )


def _sweep(data: str) -> PartTable:
    """The preset's gamma leads, and the runs of the others stand beside it."""
    own = 2.0
    rows = {"plain": _plain(data), "cdvae": replace(_split(data), only_lent=False)}
    others = {
        f"{gamma:g}": replace(_split(data, gamma), label=f"{gamma:g}") for gamma in _GAMMAS if gamma != own
    }
    return _table(
        f"fig4-{data}",
        f"Figure 4: four accuracies over the weight of the class loss, {_DATA[data]}",
        rows | others,
        source="plain",
        against=tuple(others),
        lead=Lead("cdvae", ("gamma",)),
        smoke_images=_OF_SWEEP[data],
        caveat="The paper prints neither the weights nor the numbers of its curves.",
    )


def _items() -> list[PartTable]:
    found = [
        _similarity(),
        _norms(),
        _cross(_CIFAR),
        _cross(_IMAGENET),
        _detection(4, _CIFAR),
        _detection(5, _IMAGENET),
    ]
    found += [
        _grey_box(f"table6-{data}", "Table 6: attacks on the plain classifier", data)
        for data in (_CIFAR, _IMAGENET)
    ]
    found += [
        _white_box("table7", "Table 7: white-box attacks", _CIFAR),
        _figure("fig2", "images, attacked images and their parts", "images", _IMAGENET),
        _figure("fig3", "correlation of codes of images and of attacked images", "latent", _IMAGENET),
        _sweep(_CIFAR),
        _sweep(_IMAGENET),
    ]
    for data in _SMALL:
        found += [
            _small(data),
            _grey_box(f"{data}-grey-box", "Attacks on the plain classifier", data),
            _white_box(f"{data}-white-box", "White-box attacks", data),
        ]
    return found


ITEMS: dict[str, Reproducible] = {item.name: item for item in _items()}
