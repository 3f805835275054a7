"""The functions of cleverhans 4: ``from robustfast.attacks.compat.cleverhans import projected_gradient_descent``.

As there: x any number of dimensions, y None takes the model's own predictions, eps or eps_iter 0 gives x itself, no
clipping unless clip_min and clip_max are given, `sanity_checks` asserts. On purpose different: float64 images stay
float64 (cleverhans makes float32 of them), images outside given bounds are an error with or without `sanity_checks`,
the result is detached, weights get no gradients, batch norms in train mode keep their running statistics, and draws are
keyed by one number from torch's generator per call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.clip_first import ClipFirst
from robustfast.attacks.compat.model import as_it_is, fresh_key, predictions, unsupported
from robustfast.ops import random_start

__all__ = ["carlini_wagner_l2", "fast_gradient_method", "projected_gradient_descent", "spsa"]

Model = Callable[[Tensor], Tensor]
_NORMS = {np.inf: "linf", 2: "l2", 1: "l1"}


def fast_gradient_method(
    model_fn: Model,
    x: Tensor,
    eps: float,
    norm: float,
    clip_min: float | None = None,
    clip_max: float | None = None,
    y: Tensor | None = None,
    targeted: bool = False,
    sanity_checks: bool = False,
) -> Tensor:
    """One step of length eps: along the sign (norm inf), the gradient (2), or its largest entries alone (1).

    Raises:
        ValueError: another norm, a negative eps, bounds upside down or given on one side alone.
    """
    if norm not in _NORMS:
        raise ValueError(f"Norm order must be either np.inf, 1, or 2, got {norm} instead.")
    _check_length("eps", eps)
    if eps == 0:
        return x
    bounds = _bounds(clip_min, clip_max)
    with as_it_is(model_fn) as held:
        labels = predictions(held, x) if y is None else y
        # The smallest share of entries makes the l1 step that of the largest one, or of those tied with it.
        share = {"q": 1 / max(1, x[:1].numel()), "step": "auto"}
        return attacks.FGSM(
            held, eps, norm=_NORMS[norm], targeted=targeted, bounds=bounds, engine="eager", **share
        )(x, labels)


def projected_gradient_descent(
    model_fn: Model,
    x: Tensor,
    eps: float,
    eps_iter: float,
    nb_iter: int,
    norm: float,
    clip_min: float | None = None,
    clip_max: float | None = None,
    y: Tensor | None = None,
    targeted: bool = False,
    rand_init: bool = True,
    rand_minmax: float | None = None,
    sanity_checks: bool = True,
) -> Tensor:
    """Steps that are clipped first and projected then; the start is U(-rand_minmax, rand_minmax) per pixel, projected.

    Raises:
        NotImplementedError: norm 1.
        ValueError: another norm, a negative eps or eps_iter, bounds upside down or given on one side alone.
        AssertionError: eps_iter above eps; with `sanity_checks`, eps above what the bounds are apart.
    """
    if norm == 1:
        raise NotImplementedError(
            "It's not clear that FGM is a good inner loop step for PGD when norm=1, because norm=1 FGM changes only "
            "one pixel at a time."
        )
    if norm not in (np.inf, 2):
        raise ValueError("Norm order must be either np.inf or 2.")
    _check_length("eps", eps)
    _check_length("eps_iter", eps_iter)
    if eps == 0 or eps_iter == 0:
        return x
    assert eps_iter <= eps, (eps_iter, eps)
    bounds = _bounds(clip_min, clip_max)
    if sanity_checks and norm == np.inf and clip_min is not None:
        assert eps + clip_min <= clip_max
    with as_it_is(model_fn) as held:
        labels = predictions(held, x) if y is None else y
        start = x
        if rand_init:
            width = eps if rand_minmax is None else rand_minmax
            start = _projected(x, _per_pixel(x, width) - x, norm, eps).clamp(*bounds)
        if nb_iter == 0:
            return start.detach()
        attack = ClipFirst(
            held, eps, eps_iter, nb_iter, _NORMS[norm], random_start=False, targeted=targeted, bounds=bounds,
            engine="eager",
        )  # fmt: skip
        return attack(x, labels, start=start)


def carlini_wagner_l2(
    model_fn: Model,
    x: Tensor,
    n_classes: int,
    y: Tensor | None = None,
    targeted: bool = False,
    lr: float = 5e-3,
    confidence: float = 0,
    clip_min: float = 0,
    clip_max: float = 1,
    initial_const: float = 1e-2,
    binary_search_steps: int = 5,
    max_iterations: int = 1000,
) -> Tensor:
    """The nearest image found by `robustfast.attacks.CarliniWagner`, x where there is none.

    `n_classes` is taken and not needed. Each sample stops by its own loss; cleverhans never stops early.
    """
    with as_it_is(model_fn) as held:
        labels = predictions(held, x) if y is None else y
        attack = attacks.ATTACKS["cw-l2"].attack(
            held, step_size=lr, confidence=confidence, c=initial_const, search_steps=binary_search_steps,
            steps=max_iterations, abort_early=False, targeted=targeted, bounds=(clip_min, clip_max), engine="eager",
        )  # fmt: skip
        return attack(x.clamp(clip_min, clip_max), labels)


def spsa(
    model_fn: Model,
    x: Tensor,
    eps: float,
    nb_iter: int,
    norm: float = np.inf,
    clip_min: float = -np.inf,
    clip_max: float = np.inf,
    y: Tensor | None = None,
    targeted: bool = False,
    early_stop_loss_threshold: float | None = None,
    learning_rate: float = 0.01,
    delta: float = 0.01,
    spsa_samples: int = 128,
    spsa_iters: int = 1,
    is_debug: bool = False,
    sanity_checks: bool = True,
) -> Tensor:
    """`robustfast.attacks.SPSA` from a random start in the ball, the whole batch at once.

    `is_debug` is taken and prints nothing.

    Raises:
        NotImplementedError: another norm than inf, or a threshold other than 0, at which the label changes.
        ValueError: a negative eps, labels of another number than images, bounds upside down.
    """
    if norm != np.inf:
        raise NotImplementedError(f"norm is {norm}: SPSA runs under np.inf alone here")
    if early_stop_loss_threshold not in (None, 0):
        raise NotImplementedError(f"early_stop_loss_threshold is {early_stop_loss_threshold}: None or 0 here")
    if y is not None and len(x) != len(y):
        raise ValueError(f"number of inputs {len(x)} is different from number of labels {len(y)}")
    _check_length("eps", eps)
    if eps == 0:
        return x
    bounds = _bounds(clip_min, clip_max)
    with as_it_is(model_fn) as held:
        labels = predictions(held, x) if y is None else y
        attack = attacks.ATTACKS["spsa"].attack(
            held, eps=eps, delta=delta, step_size=learning_rate, steps=nb_iter, samples=spsa_samples * spsa_iters,
            early_stop=early_stop_loss_threshold == 0, targeted=targeted, bounds=bounds, engine="eager",
        )  # fmt: skip
        return attack(x, labels, epoch=fresh_key(), start=_per_pixel(x, eps).clamp(*bounds))


def _per_pixel(x: Tensor, width: float) -> Tensor:
    far = torch.finfo(x.dtype).max
    return random_start(x.detach(), eps=width, law="pixel", bounds=(-far, far), seed=fresh_key())


def _projected(x: Tensor, delta: Tensor, norm: float, eps: float) -> Tensor:
    if norm == np.inf:
        return x.detach() + delta.clamp(-eps, eps)
    length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    return x.detach() + delta * (eps / length).clamp(max=1).reshape(-1, *[1] * (x.dim() - 1))


def _check_length(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{name} must be greater than or equal to 0, got {value} instead")


def _bounds(clip_min: float | None, clip_max: float | None) -> tuple[float, float]:
    if clip_min is None and clip_max is None:
        return -float("inf"), float("inf")
    if clip_min is None or clip_max is None:
        raise ValueError(
            "One of clip_min and clip_max is None but we don't currently support one-sided clipping"
        )
    if clip_min > clip_max:
        raise ValueError(
            f"clip_min must be less than or equal to clip_max, got clip_min={clip_min} and clip_max={clip_max}"
        )
    return clip_min, clip_max


def __getattr__(name: str) -> NoReturn:
    raise unsupported("cleverhans", name)
