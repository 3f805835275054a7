"""Tables 4 and 5: attacked images by kernel density, LID and Mahalanobis distance, on x and on x - G(x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from robustfast.errors import UserError
from robustfast.evaluation.cdvae.classifiers import classifiers, no_generator, split_network
from robustfast.evaluation.cdvae.detection_samples import ATTACKS, NoiseRule, samples
from robustfast.evaluation.cdvae.detection_scores import DETECTORS, Candidates, PartDetectors, scored
from robustfast.evaluation.cdvae.detection_table import detection_tables
from robustfast.evaluation.detectors import Outcome, known_attack, unseen_attack
from robustfast.evaluation.detectors.parts import PartModel, part_model
from robustfast.evaluation.parts import Part, PartContext, PartResult, Request
from robustfast.evaluation.pieces import Pieces, pieces
from robustfast.training.run_folder import Run

__all__ = ["EQUAL_NOISE", "METRICS", "PART", "SEEN", "detected"]

SEEN = "fgsm"
"""The attack whose regression is tried on the others (Lee et al. 2018)."""
METRICS = ("tnr", "auroc", "dtacc", "aupr_in", "aupr_out")


def detected(
    kept: Pieces,
    models: Mapping[str, PartModel],
    *,
    names: Sequence[str] = DETECTORS,
    rule: NoiseRule = "fixed",
) -> dict[str, Any]:
    """Attack classifiers of parts of the images and detect that by each detector, on what each classifier looks at.

    The protocol of Lee et al. 2018, as `robustfast.evaluation.detectors` has it: a tenth of the kept images fits a
    logistic regression of the layers' scores and chooses the detector's setting, the others are the test.

    Args:
        kept: where finished batches are kept, and the images with them.
        models: part "x", "g" or "r" to the classifier that is attacked and looked at.
        names: of the detectors.
        rule: how strong the noise is; see `robustfast.evaluation.cdvae.detection_samples.samples`.

    Returns:
        Plain values: "known" and "unseen": ATTACK: DETECTOR: PART to the metrics, the number of images "kept" and the
        chosen "setting"; null with a "reason" where there are too few images. "mean" and "unseen_mean": DETECTOR: PART
        to means over the attacks "mean_over" in which every part has numbers. "samples": ATTACK: PART to how many
        images were kept and why. "layers": PART to where was looked.
    """
    found = {
        part: _of_part(kept, PartDetectors(kept.context, model, names), rule)
        for part, model in models.items()
    }
    known = {
        attack: {
            name: {part: _known(one.candidates[attack][name]) for part, one in found.items()}
            for name in names
        }
        for attack in ATTACKS
    }
    unseen = {
        attack: {
            name: {
                part: _unseen(
                    one.candidates[SEEN][name],
                    one.candidates[attack][name],
                    known[SEEN][name][part]["setting"],
                )
                for part, one in found.items()
            }
            for name in names
        }
        for attack in ATTACKS
        if attack != SEEN
    }
    known_mean, known_over = _means(known, names, list(models))
    unseen_mean, unseen_over = _means(unseen, names, list(models))
    return {
        "known": known,
        "unseen": unseen,
        "mean": known_mean,
        "mean_over": known_over,
        "unseen_mean": unseen_mean,
        "unseen_mean_over": unseen_over,
        "unseen_from": SEEN,
        "samples": {attack: {part: one.samples[attack] for part, one in found.items()} for attack in ATTACKS},
        "noise": rule,
        "layers": {part: one.layers for part, one in found.items()},
    }


Scores = tuple[Candidates | None, str | None]


@dataclass(frozen=True)
class _Found:
    """Of one part: ATTACK: DETECTOR to scores, ATTACK to its samples' numbers, and where was looked."""

    candidates: dict[str, dict[str, Scores]]
    samples: dict[str, dict[str, Any]]
    layers: list[str] | None


def _of_part(kept: Pieces, fitted: PartDetectors, rule: NoiseRule) -> _Found:
    candidates: dict[str, dict[str, Scores]] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for attack in ATTACKS:
        turned = samples(kept.context, kept, fitted.model, attack, rule=rule)
        numbers[attack] = turned.numbers
        candidates[attack] = {
            name: scored(kept, fitted, name, turned, work=f"{fitted.model.part}, {attack}, {name}")
            for name in fitted.names
        }
    return _Found(candidates, numbers, None if fitted.layers is None else list(fitted.layers))


def _known(scores: Scores) -> dict[str, Any]:
    candidates, reason = scores
    if candidates is None:
        return _nothing(reason)
    return _judged(partial(known_attack, candidates), candidates)


def _unseen(seen: Scores, other: Scores, chosen: float | None) -> dict[str, Any]:
    (fitted, why), (tried, reason) = seen, other
    if fitted is None:
        return _nothing(f"{SEEN}: {why}")
    if tried is None:
        return _nothing(reason)
    # The images that choose are the same as where the attack is known, and so is what they choose. Only where fewer
    # kept images leave LID fewer neighbours is it chosen anew, among those that both have.
    both = [chosen] if chosen in tried else [setting for setting in fitted if setting in tried]
    if not both:
        return _nothing(f"no setting serves {SEEN} and this attack alike")
    fitted, tried = ({setting: own[setting] for setting in both} for own in (fitted, tried))
    return _judged(partial(unseen_attack, fitted, tried), tried)


def _judged(protocol: partial[Outcome], candidates: Candidates) -> dict[str, Any]:
    count = len(next(iter(candidates.values())))
    try:
        return protocol().as_dict()
    except (UserError, ValueError) as error:
        # Too few images to fit, choose or test.
        return {**_nothing(str(error)), "kept": count}


def _nothing(reason: str | None) -> dict[str, Any]:
    return {**dict.fromkeys(METRICS), "kept": 0, "setting": None, "reason": reason}


def _means(
    table: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]],
    names: Sequence[str],
    parts: Sequence[str],
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """DETECTOR: PART to means over attacks, and DETECTOR to the attacks: those that have numbers for every part."""
    means, over = {}, {}
    for name in names:
        over[name] = [
            attack
            for attack, rows in table.items()
            if all(numbers["auroc"] is not None for numbers in rows[name].values())
        ]
        means[name] = {
            part: {
                metric: fmean(table[attack][name][part][metric] for attack in over[name])
                if over[name]
                else None
                for metric in METRICS
            }
            for part in parts
        }
    return means, over


def _make(context: PartContext, rule: NoiseRule = "fixed") -> PartResult:
    network = split_network(context.run)
    found = classifiers(context)
    models = {part: part_model(network, part, found[part]) for part in "xrg" if part in found}
    with pieces(context, PART.name if rule == "fixed" else EQUAL_NOISE.name) as kept:
        numbers = detected(kept, models, rule=rule)
    return PartResult(numbers, detection_tables(numbers, context.path.name))


class _OnlyNamed(Part):
    """A part that is made where it is named, and left out where all parts are made."""

    def obstacle(self, run: Run, request: Request) -> str | None:
        if self.name not in request.parts:
            return f"made where it is asked for: --parts {self.name}"
        return super().obstacle(run, request)


_TAKES = ("source", "against", "steps")

PART = Part(
    "detection",
    "attacked images detected on x and on x - G(x) (tables 4 and 5)",
    _make,
    unfit=no_generator,
    takes=_TAKES,
)
EQUAL_NOISE = _OnlyNamed(
    "detection-equal-noise",
    "the same beside noise as long as the attack's change",
    partial(_make, rule="equal"),
    unfit=no_generator,
    takes=_TAKES,
)
