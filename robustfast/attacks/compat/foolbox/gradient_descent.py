"""Foolbox's attacks along the gradient, under l1, l2 and linf: fast gradient, basic iterative, PGD, momentum, Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast import attacks
from robustfast.attacks.arguments import check_images
from robustfast.attacks.compat.foolbox.base import FixedEpsilonAttack, goal, verify_input_bounds
from robustfast.attacks.compat.foolbox.criteria import get_criterion
from robustfast.attacks.compat.foolbox.distances import l1, l2, linf
from robustfast.attacks.compat.foolbox.eager import unwrap
from robustfast.attacks.compat.foolbox.models import Model
from robustfast.attacks.compat.model import Attacks, as_it_is, fresh_key
from robustfast.ops import random_start

__all__ = [
    "FGM",
    "FGSM",
    "L1PGD",
    "L2PGD",
    "MIFGSM",
    "PGD",
    "AdamPGD",
    "BaseGradientDescent",
    "L1AdamPGD",
    "L1AdamProjectedGradientDescentAttack",
    "L1BaseGradientDescent",
    "L1BasicIterativeAttack",
    "L1FastGradientAttack",
    "L1MomentumIterativeFastGradientMethod",
    "L1ProjectedGradientDescentAttack",
    "L2AdamPGD",
    "L2AdamProjectedGradientDescentAttack",
    "L2BaseGradientDescent",
    "L2BasicIterativeAttack",
    "L2FastGradientAttack",
    "L2MomentumIterativeFastGradientMethod",
    "L2ProjectedGradientDescentAttack",
    "LinfAdamBasicIterativeAttack",
    "LinfAdamPGD",
    "LinfAdamProjectedGradientDescentAttack",
    "LinfBaseGradientDescent",
    "LinfBasicIterativeAttack",
    "LinfFastGradientAttack",
    "LinfMomentumIterativeFastGradientMethod",
    "LinfPGD",
    "LinfProjectedGradientDescentAttack",
]

Optimizer = Callable[[Tensor], Tensor]
_HOOKS = ("get_loss_fn", "get_optimizer", "value_and_grad", "normalize", "project", "get_random_start")


class BaseGradientDescent(FixedEpsilonAttack):
    """Steps relative to epsilon, project, then clip; the start is uniform in the ball; the result is the last iterate.

    As in Foolbox 3.3, and by `robustfast.attacks.PGDFoolbox`. A subclass may override Foolbox's hooks get_loss_fn,
    get_optimizer, value_and_grad, normalize, project and get_random_start, which get tensors of torch here; then a
    plain loop calls them, step by step. On purpose different: no gradient of a weight is computed or left behind, and a
    gradient of zero makes no step in every precision.
    """

    norm: str

    def __init__(
        self, *, rel_stepsize: float, abs_stepsize: float | None = None, steps: int, random_start: bool
    ) -> None:
        self.rel_stepsize = rel_stepsize
        self.abs_stepsize = abs_stepsize
        self.steps = steps
        self.random_start = random_start
        self._built = Attacks()

    def run(self, model: Model, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        """Perturbed inputs for one epsilon."""
        if kwargs:
            raise TypeError(f"attack got an unexpected keyword argument '{next(iter(kwargs))}'")
        x, restore = unwrap(inputs)
        verify_input_bounds(x, model)
        classes, targeted = goal(get_criterion(criterion), len(x))
        with as_it_is(model.through) as held:
            if all(getattr(type(self), hook) is getattr(_BASES[self.norm], hook) for hook in _HOOKS):
                return restore(self._fused(held, model, x, classes, targeted, epsilon))
            return restore(self._plain(model, x, classes, targeted, epsilon))

    def _stepsize(self, epsilon: float) -> float:
        return self.rel_stepsize * epsilon if self.abs_stepsize is None else self.abs_stepsize

    def _fused(
        self, held: Any, model: Model, x: Tensor, classes: Tensor, targeted: bool, epsilon: float
    ) -> Tensor:
        attack = self._built.get(
            attacks.PGDFoolbox, held, norm=self.norm, steps=self.steps, random_start=bool(self.random_start),
            targeted=targeted, bounds=tuple(model.bounds),
        )  # fmt: skip
        key = fresh_key() if self.random_start else 0
        return attack(x, classes, epoch=key, eps=epsilon, step_size=self._stepsize(epsilon))

    def _plain(self, model: Model, x0: Tensor, classes: Tensor, targeted: bool, epsilon: float) -> Tensor:
        check_images(x0, tuple(model.bounds))
        sign = -1.0 if targeted else 1.0
        loss_fn = self.get_loss_fn(model, classes)
        optimizer = self.get_optimizer(x0, self._stepsize(epsilon))
        x = self.get_random_start(x0, epsilon).clamp(*model.bounds) if self.random_start else x0
        for _ in range(self.steps):
            _, gradients = self.value_and_grad(loss_fn, x)
            # As everywhere here: an entry that is nan counts as zero, and does not stay in a momentum for good.
            gradients = self.normalize(gradients.nan_to_num(nan=0.0), x=x, bounds=model.bounds)
            x = self.project(x + sign * optimizer(gradients), x0, epsilon).clamp(*model.bounds)
        return x.detach()

    def get_loss_fn(self, model: Model, labels: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda inputs: F.cross_entropy(model(inputs), labels, reduction="sum")

    def get_optimizer(self, x: Tensor, stepsize: float) -> Optimizer:
        return lambda gradient: stepsize * gradient

    def value_and_grad(self, loss_fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = loss_fn(leaf)
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def normalize(self, gradients: Tensor, *, x: Tensor, bounds: Any) -> Tensor:
        raise NotImplementedError

    def project(self, x: Tensor, x0: Tensor, epsilon: float) -> Tensor:
        return self.distance.clip_perturbation(x0, x, epsilon)

    def get_random_start(self, x0: Tensor, epsilon: float) -> Tensor:
        far = torch.finfo(x0.dtype).max
        return random_start(x0, eps=epsilon, norm=self.norm, bounds=(-far, far), seed=fresh_key())


class L1BaseGradientDescent(BaseGradientDescent):
    """Along the gradient over its l1 norm; a point outside the ball is scaled back."""

    norm, distance = "l1", l1

    def normalize(self, gradients: Tensor, *, x: Tensor, bounds: Any) -> Tensor:
        return _unit(gradients, 1)


class L2BaseGradientDescent(BaseGradientDescent):
    """Along the gradient over its l2 norm."""

    norm, distance = "l2", l2

    def normalize(self, gradients: Tensor, *, x: Tensor, bounds: Any) -> Tensor:
        return _unit(gradients, 2)


class LinfBaseGradientDescent(BaseGradientDescent):
    """Along the sign of the gradient."""

    norm, distance = "linf", linf

    def normalize(self, gradients: Tensor, *, x: Tensor, bounds: Any) -> Tensor:
        return gradients.sign()


_BASES = {"l1": L1BaseGradientDescent, "l2": L2BaseGradientDescent, "linf": LinfBaseGradientDescent}


def _unit(gradients: Tensor, p: float) -> Tensor:
    """Each gradient over its norm, zero where that is zero."""
    norms = torch.linalg.vector_norm(gradients.flatten(1), p, dim=1, dtype=torch.float64)
    rows = norms.reshape(-1, *[1] * (gradients.dim() - 1))
    return torch.where(rows > 0, gradients / rows, 0).to(gradients.dtype)


class _OneStep(BaseGradientDescent):
    """One step of length epsilon; untargeted alone, as in Foolbox."""

    def __init__(self, *, random_start: bool = False) -> None:
        super().__init__(rel_stepsize=1.0, steps=1, random_start=random_start)

    def run(self, model: Model, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        if hasattr(criterion, "target_classes"):
            raise ValueError("unsupported criterion")
        return super().run(model, inputs, criterion, epsilon=epsilon, **kwargs)


class _Basic(BaseGradientDescent):
    """Ten steps of a fifth of epsilon from the image itself."""

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.2,
        abs_stepsize: float | None = None,
        steps: int = 10,
        random_start: bool = False,
    ) -> None:
        super().__init__(
            rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start
        )


class _Projected(BaseGradientDescent):
    """Fifty steps of a fortieth of epsilon from a random start."""

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.025,
        abs_stepsize: float | None = None,
        steps: int = 50,
        random_start: bool = True,
    ) -> None:
        super().__init__(
            rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start
        )


class _Momentum(_Basic):
    """Foolbox's momentum method: it adds up normalised gradients, under linf their signs.

    Not the method of Dong et al. 2018, which adds up gradients over their l1 norm: that is torchattacks' MIFGSM, and
    `robustfast.attacks.MIM`.
    """

    def __init__(
        self,
        *,
        momentum: float = 1.0,
        rel_stepsize: float = 0.2,
        abs_stepsize: float | None = None,
        steps: int = 10,
        random_start: bool = False,
    ) -> None:
        self.momentum = momentum
        super().__init__(
            rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start
        )

    def get_optimizer(self, x: Tensor, stepsize: float) -> Optimizer:
        total = torch.zeros_like(x)

        def step(gradient: Tensor) -> Tensor:
            total.mul_(self.momentum).add_(gradient)
            return stepsize * (total.sign() if self.norm == "linf" else _unit(total, float(self.norm[1:])))

        return step


class _Adam(BaseGradientDescent):
    """Normalised gradients through Adam (Kingma and Ba 2015)."""

    def __init__(
        self,
        *,
        adam_beta1: float = 0.9,
        adam_beta2: float = 0.999,
        adam_epsilon: float = 1e-8,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.adam_beta1 = adam_beta1
        self.adam_beta2 = adam_beta2
        self.adam_epsilon = adam_epsilon

    def get_optimizer(self, x: Tensor, stepsize: float) -> Optimizer:
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        done = 0

        def step(gradient: Tensor) -> Tensor:
            nonlocal done
            done += 1
            mean.lerp_(gradient, 1 - self.adam_beta1)
            square.mul_(self.adam_beta2).addcmul_(gradient, gradient, value=1 - self.adam_beta2)
            unbiased = mean / (1 - self.adam_beta1**done)
            scale = (square / (1 - self.adam_beta2**done)).sqrt() + self.adam_epsilon
            return stepsize * (unbiased / scale)

        return step


class L1FastGradientAttack(_OneStep, L1BaseGradientDescent):
    """One step under l1."""


class L2FastGradientAttack(_OneStep, L2BaseGradientDescent):
    """One step under l2."""


class LinfFastGradientAttack(_OneStep, LinfBaseGradientDescent):
    """One step under linf: FGSM."""


class L1BasicIterativeAttack(_Basic, L1BaseGradientDescent):
    """The basic iterative method under l1."""


class L2BasicIterativeAttack(_Basic, L2BaseGradientDescent):
    """The basic iterative method under l2."""


class LinfBasicIterativeAttack(_Basic, LinfBaseGradientDescent):
    """The basic iterative method under linf."""


class L1ProjectedGradientDescentAttack(_Projected, L1BaseGradientDescent):
    """PGD under l1."""


class L2ProjectedGradientDescentAttack(_Projected, L2BaseGradientDescent):
    """PGD under l2."""


class LinfProjectedGradientDescentAttack(_Projected, LinfBaseGradientDescent):
    """PGD under linf: 40 steps of epsilon / 30."""

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.01 / 0.3,
        abs_stepsize: float | None = None,
        steps: int = 40,
        random_start: bool = True,
    ) -> None:
        super().__init__(
            rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start
        )


class L1MomentumIterativeFastGradientMethod(_Momentum, L1BaseGradientDescent):
    """Foolbox's momentum method under l1."""


class L2MomentumIterativeFastGradientMethod(_Momentum, L2BaseGradientDescent):
    """Foolbox's momentum method under l2."""


class LinfMomentumIterativeFastGradientMethod(_Momentum, LinfBaseGradientDescent):
    """Foolbox's momentum method under linf."""


class L1AdamProjectedGradientDescentAttack(_Adam, _Projected, L1BaseGradientDescent):
    """PGD under l1 through Adam."""


class L2AdamProjectedGradientDescentAttack(_Adam, _Projected, L2BaseGradientDescent):
    """PGD under l2 through Adam."""


class LinfAdamProjectedGradientDescentAttack(_Adam, _Projected, LinfBaseGradientDescent):
    """PGD under linf through Adam: 50 steps of epsilon / 40, as in Foolbox."""


class LinfAdamBasicIterativeAttack(_Adam, _Basic, LinfBaseGradientDescent):
    """The basic iterative method under linf through Adam.

    Foolbox's l1 and l2 classes of this name run without Adam, whatever is asked: they are left out here; take
    `L1BasicIterativeAttack` and `L2BasicIterativeAttack` for what they compute.
    """


FGM = L2FastGradientAttack
FGSM = LinfFastGradientAttack
L1PGD = L1ProjectedGradientDescentAttack
L2PGD = L2ProjectedGradientDescentAttack
LinfPGD = LinfProjectedGradientDescentAttack
PGD = LinfPGD
MIFGSM = LinfMomentumIterativeFastGradientMethod
L1AdamPGD = L1AdamProjectedGradientDescentAttack
L2AdamPGD = L2AdamProjectedGradientDescentAttack
LinfAdamPGD = LinfAdamProjectedGradientDescentAttack
AdamPGD = LinfAdamPGD
