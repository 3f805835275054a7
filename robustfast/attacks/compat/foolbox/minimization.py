"""Foolbox's attacks that look for the nearest adversarial image: Carlini and Wagner, DDN, DeepFool."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.foolbox.base import MinimizationAttack, goal, verify_input_bounds
from robustfast.attacks.compat.foolbox.criteria import get_criterion
from robustfast.attacks.compat.foolbox.distances import l2, linf
from robustfast.attacks.compat.foolbox.eager import unwrap
from robustfast.attacks.compat.foolbox.models import Model
from robustfast.attacks.compat.model import Attacks, as_it_is

__all__ = ["DDNAttack", "L2CarliniWagnerAttack", "L2DeepFoolAttack", "LinfDeepFoolAttack"]


class _Nearest(MinimizationAttack):
    """Where nothing was found, the image itself comes back; Foolbox gives other failures, see each class."""

    def run(
        self, model: Model, inputs: Any, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> Any:
        """Perturbed inputs; `early_stop` is taken and not used, as in Foolbox."""
        if kwargs:
            raise TypeError(f"attack got an unexpected keyword argument '{next(iter(kwargs))}'")
        x, restore = unwrap(inputs)
        verify_input_bounds(x, model)
        classes, targeted = goal(get_criterion(criterion), len(x))
        with as_it_is(model.through) as held:
            return restore(self._find(held, x, classes, targeted, tuple(model.bounds)))

    def _find(
        self, held: Any, x: Tensor, classes: Tensor, targeted: bool, bounds: tuple[float, float]
    ) -> Tensor:
        if "_built" not in vars(self):
            self._built = Attacks()
        kind, settings = self._settings()
        return self._built.get(kind, held, targeted=targeted, bounds=bounds, **settings)(x, classes)

    def _settings(self) -> tuple[type, dict[str, Any]]:
        raise NotImplementedError


class L2CarliniWagnerAttack(_Nearest):
    """``L2CarliniWagnerAttack(binary_search_steps=9, steps=10000, stepsize=0.01, confidence=0, ...)``.

    `robustfast.attacks.CarliniWagner`: each sample stops by its own loss, where Foolbox stops the batch by the sum; and
    a sample for which nothing was found comes back as it is, where Foolbox returns a black image.
    """

    distance = l2

    def __init__(
        self,
        binary_search_steps: int = 9,
        steps: int = 10000,
        stepsize: float = 1e-2,
        confidence: float = 0,
        initial_const: float = 1e-3,
        abort_early: bool = True,
    ) -> None:
        self.binary_search_steps = binary_search_steps
        self.steps = steps
        self.stepsize = stepsize
        self.confidence = confidence
        self.initial_const = initial_const
        self.abort_early = abort_early

    def _settings(self) -> tuple[type, dict[str, Any]]:
        return attacks.ATTACKS["cw-l2"].attack, {
            "search_steps": self.binary_search_steps,
            "steps": self.steps,
            "step_size": self.stepsize,
            "confidence": self.confidence,
            "c": self.initial_const,
            "abort_early": self.abort_early,
        }


class DDNAttack(_Nearest):
    """``DDNAttack(init_epsilon=1.0, steps=100, gamma=0.05)``: `robustfast.attacks.DDN`.

    Only where a gradient is zero do the two differ: Foolbox draws a new direction in each step, here it is one.
    """

    distance = l2

    def __init__(self, *, init_epsilon: float = 1.0, steps: int = 100, gamma: float = 0.05) -> None:
        self.init_epsilon = init_epsilon
        self.steps = steps
        self.gamma = gamma

    def _settings(self) -> tuple[type, dict[str, Any]]:
        settings = {"init_eps": self.init_epsilon, "steps": self.steps, "gamma": self.gamma}
        return attacks.ATTACKS["ddn"].attack, settings


class _DeepFool(_Nearest):
    def __init__(
        self, *, steps: int = 50, candidates: int | None = 10, overshoot: float = 0.02, loss: str = "logits"
    ) -> None:
        # Differences of cross entropies are differences of logits: the two losses are one.
        if loss not in ("logits", "crossentropy"):
            raise ValueError(f"expected loss to be 'logits' or 'crossentropy', got '{loss}'")
        self.steps = steps
        self.candidates = candidates
        self.overshoot = overshoot
        self.loss = loss

    def _settings(self) -> tuple[type, dict[str, Any]]:
        return attacks.ATTACKS["deepfool"].attack, {
            "norm": self.norm,
            "steps": self.steps,
            "candidates": self.candidates,
            "overshoot": self.overshoot,
            "keep_failed": True,
        }


class L2DeepFoolAttack(_DeepFool):
    """``L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02, loss="logits")``: `robustfast.attacks.DeepFool`.

    Labels say what is adversarial. A targeted criterion goes to the wanted class, where Foolbox goes to the nearest
    class and looks whether it is the wanted one.
    """

    norm, distance = "l2", l2


class LinfDeepFoolAttack(_DeepFool):
    """The same under linf."""

    norm, distance = "linf", linf
