"""The classes of advertorch 0.2: ``from robustfast.attacks.compat.advertorch import LinfPGDAttack``.

Each is built with ``predict`` first and called by ``.perturb(x, y=None)`` or directly; y None takes the model's own
predictions. The loss is the sum of cross entropies, or `loss_fn(outputs, y)`. eps and eps_iter of the PGD family may be
tensors [B]. On purpose different: images outside [clip_min, clip_max] are an error, weights get no gradients, batch
norms in train mode keep their running statistics, a zero gradient makes no nan, and draws are keyed by one number from
torch's generator per call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Laplace

from robustfast import attacks
from robustfast.attacks.compat.clip_first import ClipFirst
from robustfast.attacks.compat.model import (
    Attacks,
    as_it_is,
    fresh_key,
    loss_of,
    predictions,
    unsupported,
)
from robustfast.attacks.compat.starts import box_then_ball
from robustfast.attacks.draws import uniform

Size = float | Tensor
"""Pixels: one number, or a tensor [B]."""
_NORMS = {np.inf: "linf", 2: "l2", 1: "l1"}


class Attack:
    """Base class: ``perturb(x, y)``, also called directly."""

    def __init__(self, predict: Any, loss_fn: Any, clip_min: float, clip_max: float) -> None:
        self.predict = predict
        self.loss_fn = loss_fn
        self.clip_min = clip_min
        self.clip_max = clip_max
        self.targeted = False
        self._built = Attacks()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.perturb(*args, **kwargs)

    def perturb(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Adversarial images for x [B, ...]; y are the wanted labels where targeted.

        Raises:
            AssertionError: targeted without y.
        """
        assert y is not None or not self.targeted
        with as_it_is(self.predict) as held:
            labels = predictions(held, x) if y is None else y
            return self._perturb(held, x.detach(), labels)

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError("Sub-classes must implement perturb.")

    def _run(self, kind: Callable[..., attacks.Attack], held: Any, **settings: Any) -> attacks.Attack:
        return self._built.get(
            kind, held, targeted=self.targeted, bounds=(self.clip_min, self.clip_max), **settings
        )


class GradientSignAttack(Attack):
    """One step of eps along the sign; FGSM."""

    _step = "linf"

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, clip_min: float = 0.0, clip_max: float = 1.0,
        targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.eps = eps
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(attacks.FGSM, held, eps=self.eps, norm=self._step, loss=loss_of(self.loss_fn))
        return attack(x, y)


class GradientAttack(GradientSignAttack):
    """One step of eps along the gradient over its l2 norm; FGM."""

    _step = "l2"


class PGDAttack(Attack):
    """PGD under `ord` inf, 2 or 1.

    Under l2 it clips before it projects, under l1 after; without `l1_sparsity` an l1 step moves the largest entry
    alone, with it the share 1 - l1_sparsity. The starts are advertorch's: uniform in the box (linf); a uniform point of
    the image domain pulled into the ball, nearly always onto its edge (l2); a Laplace direction of a length that is
    uniform in [0, eps) (l1: there one length for the batch, here one for each sample).
    """

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, ord: float = np.inf,
        l1_sparsity: float | None = None, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        assert isinstance(eps, (float, Tensor))
        assert isinstance(eps_iter, (float, Tensor))
        if ord not in _NORMS:
            raise NotImplementedError("Only ord = inf, ord = 1 and ord = 2 have been implemented")
        self.eps = eps
        self.nb_iter = nb_iter
        self.eps_iter = eps_iter
        self.rand_init = rand_init
        self.ord = ord
        self.l1_sparsity = l1_sparsity
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        start = self._start(x) if self.rand_init else x
        entries = max(1, x[:1].numel())
        moved = 1 if self.l1_sparsity is None else max(1, int(np.round((1 - self.l1_sparsity) * entries)))
        attack = self._run(
            ClipFirst, held, eps=self.eps, step_size=self.eps_iter, steps=self.nb_iter, norm=_NORMS[self.ord],
            q=moved / entries, random_start=False, loss=loss_of(self.loss_fn),
        )  # fmt: skip
        return attack(x, y, start=start)

    def _start(self, x: Tensor) -> Tensor:
        key, bounds = fresh_key(), (self.clip_min, self.clip_max)
        if self.ord == 2:
            return box_then_ball(x, self.eps, bounds, key)
        index = torch.arange(len(x), device=x.device)
        draws = uniform(index, tuple(x.shape[1:]), seed=key, dtype=x.dtype)
        rows = (-1, *[1] * (x.dim() - 1))
        eps = self.eps.reshape(rows) if isinstance(self.eps, Tensor) else self.eps
        if self.ord == np.inf:
            return (x + eps * (2 * draws - 1)).clamp(*bounds)
        # Draws are multiples of 2**-24: half a one keeps the inverse off the ends, which are infinite.
        direction = Laplace(x.new_zeros(()), x.new_ones(())).icdf((draws + 2**-25).clamp(max=1 - 2**-24))
        length = eps * uniform(index, (1,) * (x.dim() - 1), seed=key, step=1, dtype=x.dtype)
        return (x + direction / direction.flatten(1).abs().sum(1).reshape(rows) * length).clamp(*bounds)


class LinfPGDAttack(PGDAttack):
    """PGD under linf."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, np.inf, None, targeted
        )


class L2PGDAttack(PGDAttack):
    """PGD under l2."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, 2, None, targeted
        )


class L1PGDAttack(PGDAttack):
    """PGD under l1, one entry a step."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 10.0, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, 1, None, targeted
        )


class SparseL1DescentAttack(PGDAttack):
    """PGD under l1 that moves a share of 1 - l1_sparsity of the entries."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = False, clip_min: float = 0.0, clip_max: float = 1.0, l1_sparsity: float = 0.95,
        targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, 1, l1_sparsity, targeted
        )


class LinfBasicIterativeAttack(PGDAttack):
    """PGD under linf from the image itself."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.1, nb_iter: int = 10, eps_iter: Size = 0.05,
        clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, False, clip_min, clip_max, np.inf, None, targeted
        )


class L2BasicIterativeAttack(PGDAttack):
    """PGD under l2 from the image itself."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.1, nb_iter: int = 10, eps_iter: Size = 0.05,
        clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, False, clip_min, clip_max, 2, None, targeted
        )


class MomentumIterativeAttack(Attack):
    """Momentum of gradients over their l1 norm, from the image itself; `ord` inf or 2.

    Under l2 advertorch divides zero by zero for pixels that did not move; here they stay.
    """

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, decay_factor: float = 1.0,
        eps_iter: Size = 0.01, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
        ord: float = np.inf,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        if ord not in (np.inf, 2):
            raise NotImplementedError("Only ord = inf and ord = 2 have been implemented")
        self.eps = eps
        self.nb_iter = nb_iter
        self.decay_factor = decay_factor
        self.eps_iter = eps_iter
        self.targeted = targeted
        self.ord = ord

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.MIM, held, eps=self.eps, step_size=self.eps_iter, steps=self.nb_iter, decay=self.decay_factor,
            norm=_NORMS[self.ord], loss=loss_of(self.loss_fn),
        )  # fmt: skip
        return attack(x, y)


class LinfMomentumIterativeAttack(MomentumIterativeAttack):
    """Momentum under linf."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, decay_factor: float = 1.0,
        eps_iter: Size = 0.01, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, decay_factor, eps_iter, clip_min, clip_max, targeted, np.inf
        )


class L2MomentumIterativeAttack(MomentumIterativeAttack):
    """Momentum under l2."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, decay_factor: float = 1.0,
        eps_iter: Size = 0.01, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, decay_factor, eps_iter, clip_min, clip_max, targeted, 2
        )


class CarliniWagnerL2Attack(Attack):
    """The nearest image of `robustfast.attacks.CarliniWagner`, x where there is none.

    `num_classes` and `loss_fn` are taken and not needed.
    """

    def __init__(
        self, predict: Any, num_classes: int, confidence: float = 0, targeted: bool = False,
        learning_rate: float = 0.01, binary_search_steps: int = 9, max_iterations: int = 10000,
        abort_early: bool = True, initial_const: float = 1e-3, clip_min: float = 0.0, clip_max: float = 1.0,
        loss_fn: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(predict, None, clip_min, clip_max)
        self.num_classes = num_classes
        self.confidence = confidence
        self.targeted = targeted
        self.learning_rate = learning_rate
        self.binary_search_steps = binary_search_steps
        self.max_iterations = max_iterations
        self.abort_early = abort_early
        self.initial_const = initial_const

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["cw-l2"].attack, held, confidence=self.confidence, step_size=self.learning_rate,
            search_steps=self.binary_search_steps, steps=self.max_iterations, abort_early=self.abort_early,
            c=self.initial_const,
        )  # fmt: skip
        return attack(x, y)


class DDNL2Attack(Attack):
    """`robustfast.attacks.DDN`.

    With `quantize` the result is rounded to `levels` grey levels where the rounded image still fools the model;
    advertorch rounds every step.
    """

    def __init__(
        self, predict: Any, nb_iter: int = 100, gamma: float = 0.05, init_norm: float = 1.0, quantize: bool = True,
        levels: int = 256, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False, loss_fn: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(predict, None, clip_min, clip_max)
        self.nb_iter = nb_iter
        self.gamma = gamma
        self.init_norm = init_norm
        self.quantize = quantize
        self.levels = levels
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["ddn"].attack, held, steps=self.nb_iter, gamma=self.gamma, init_eps=self.init_norm
        )
        found = attack(x, y)
        if not self.quantize:
            return found
        width = self.clip_max - self.clip_min
        steps = ((found - self.clip_min) / width * (self.levels - 1)).round() / (self.levels - 1)
        rounded = (steps * width + self.clip_min).clamp(self.clip_min, self.clip_max)
        fooled = (predictions(held, rounded) == y) == self.targeted
        return torch.where(fooled.reshape(-1, *[1] * (x.dim() - 1)), rounded, found)


class DeepfoolLinfAttack(Attack):
    """`robustfast.attacks.DeepFool` under linf.

    The result is clipped to a perturbation of (1 + overshoot) * eps; advertorch holds the sum of steps to eps in each
    step, which comes to the same where eps is not reached.
    """

    def __init__(
        self, predict: Any, num_classes: int | None = None, nb_iter: int = 50, eps: float = 0.1,
        overshoot: float = 0.02, clip_min: float = 0.0, clip_max: float = 1.0, loss_fn: Any = None,
        targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.num_classes = num_classes
        self.nb_iter = nb_iter
        self.eps = eps
        self.overshoot = overshoot
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["deepfool"].attack, held, norm="linf", steps=self.nb_iter, candidates=self.num_classes,
            overshoot=self.overshoot, keep_failed=True,
        )  # fmt: skip
        reach = (1 + self.overshoot) * self.eps
        return (x + (attack(x, y) - x).clamp(-reach, reach)).clamp(self.clip_min, self.clip_max)


class LinfSPSAAttack(Attack):
    """`robustfast.attacks.SPSA`: directions of its own for each image."""

    def __init__(
        self, predict: Any, eps: Size, delta: float = 0.01, lr: float = 0.01, nb_iter: int = 1, nb_sample: int = 128,
        max_batch_size: int = 64, targeted: bool = False, loss_fn: Any = None, clip_min: float = 0.0,
        clip_max: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.eps = eps
        self.delta = delta
        self.lr = lr
        self.nb_iter = nb_iter
        self.nb_sample = nb_sample
        self.max_batch_size = max_batch_size
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["spsa"].attack, held, eps=self.eps, delta=self.delta, step_size=self.lr,
            steps=self.nb_iter, samples=self.nb_sample, chunk=max(1, self.max_batch_size // 2),
            loss="margin" if self.loss_fn is None else loss_of(self.loss_fn),
        )  # fmt: skip
        return attack(x, y, epoch=fresh_key())


FGSM = GradientSignAttack
FGM = GradientAttack


def __getattr__(name: str) -> NoReturn:
    raise unsupported("advertorch", name)
