"""The attacks of the AutoAttack package by themselves, each called by ``perturb(x, y)``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.autoattack_versions import for_classes
from robustfast.attacks.compat.autoattack.one_ball import OneBallAPGD, OneBallAPGDT
from robustfast.attacks.compat.model import Attacks, as_it_is, fresh_key, predictions
from robustfast.attacks.presets import ATTACKS

__all__ = ["APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "SquareAttack"]

_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}


class _Part:
    """An attack whose settings are attributes that may change between calls; the seed alone makes its draws."""

    norm: str
    eps: float | None
    seed: float | None
    device: Any

    def __init__(self, predict: Any, is_tf_model: bool = False) -> None:
        if is_tf_model:
            raise ValueError("models of TensorFlow are not supported: pass one of PyTorch")
        self.predict = predict
        # Set by an ensemble for its own calls: what it does to samples once they are won is lost work there.
        self.stops_early = False
        self._built = Attacks()
        self._classes: tuple[Any, int] | None = None

    def _perturb(
        self, name: str, x: Tensor, y: Tensor | None, index: Tensor | None, *, start: Tensor | None = None,
        one_ball: bool = False, **settings: Any,
    ) -> Tensor:  # fmt: skip
        assert self.norm in _NORMS, f"norm is {self.norm!r}, expected one of {', '.join(_NORMS)}"
        assert self.eps is not None, "eps is None, expected a radius"
        device = self.device or x.device
        if y is not None and not y.dim():
            x, y = x.unsqueeze(0), y.unsqueeze(0)
        x = x.detach().to(device)
        x = x if x.dtype == torch.float64 else x.float()
        preset = ATTACKS[name]
        with as_it_is(self.predict) as held:
            y = predictions(held, x) if y is None else y.detach().to(device).long()
            settings = {**preset.settings, "norm": _NORMS[self.norm], "eps": self.eps, **settings}
            settings |= self._loss_for_classes(name, held, x)
            kind = preset.attack
            if one_ball:
                kind = OneBallAPGDT if name == "apgd-t" else OneBallAPGD
            attack = self._built.get(kind, held, **settings)
            key = fresh_key() if self.seed is None else int(self.seed)
            return attack(x, y, index, epoch=key, start=start)

    def _loss_for_classes(self, name: str, held: Any, x: Tensor) -> dict[str, Any]:
        """Another loss where the model has too few classes for the attack's; the model is asked once."""
        if name not in ("apgd-t", "apgd-dlr") or not len(x):
            return {}
        if self._classes is None or self._classes[0] is not self.predict:
            with torch.no_grad():
                self.classes_are(held(x).shape[1])
            why = for_classes(name, {}, self._classes[1])[1]
            if why:
                warnings.warn(why, RuntimeWarning, stacklevel=4)
        return for_classes(name, {}, self._classes[1])[0]

    def classes_are(self, classes: int) -> None:
        """Tell what the model has, so that it is neither asked nor warned about."""
        self._classes = self.predict, classes


class APGDAttack(_Part):
    """``APGDAttack(predict, n_iter=100, norm='Linf', n_restarts=1, eps=None, seed=0, loss='ce', ...)``.

    Under L1 `use_largereps` runs the first steps in balls of three and two times eps, as in the package; `best_loss`
    goes without. Other norms have no such schedule, and refuse it. With fewer than three classes loss "dlr" climbs the
    margin, where the package crashes.
    """

    def __init__(
        self, predict: Any, n_iter: int = 100, norm: str = "Linf", n_restarts: int = 1, eps: float | None = None,
        seed: float | None = 0, loss: str = "ce", eot_iter: int = 1, rho: float = 0.75, topk: float | None = None,
        verbose: bool = False, device: Any = None, use_largereps: bool = False, is_tf_model: bool = False,
        logger: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(predict, is_tf_model)
        if topk is not None:
            raise ValueError("topk cannot be chosen: the first l1 steps move a fifth of the entries")
        self.n_iter = n_iter
        self.norm = norm
        self.n_restarts = n_restarts
        self.eps = eps
        self.seed = seed
        self.loss = loss
        self.eot_iter = eot_iter
        self.thr_decr = rho
        self.topk = topk
        self.verbose = verbose
        self.device = device
        self.use_largereps = use_largereps
        self.logger = logger

    def perturb(
        self, x: Tensor, y: Tensor | None = None, best_loss: bool = False, x_init: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Misclassified images, x where none was found; with `best_loss` those of the highest loss.

        `index` int64 [B], each sample's number in the data set, keys its draws.
        """
        assert self.loss in ("ce", "dlr")
        returns = "max_loss" if best_loss else "success_only"
        return self._perturb(
            f"apgd-{self.loss}", x, y, index, start=x_init, returns=returns, **self._steps(best_loss)
        )

    def _steps(self, best_loss: bool = False) -> dict[str, Any]:
        if self.use_largereps and self.norm != "L1":
            raise ValueError(f"use_largereps is True, which exists under L1 and not under {self.norm}")
        return {
            "one_ball": self.norm == "L1" and (best_loss or not self.use_largereps),
            "early_stop": self.stops_early,
            "steps": self.n_iter,
            "restarts": self.n_restarts,
            "eot": self.eot_iter,
            "rho": self.thr_decr,
        }


class APGDAttack_targeted(APGDAttack):  # noqa: N801
    """``APGDAttack_targeted(predict, n_iter=100, norm='Linf', n_restarts=1, eps=None, ..., n_target_classes=9)``.

    With fewer than four classes, where the package crashes, it goes by the margin to the target.
    """

    def __init__(
        self, predict: Any, n_iter: int = 100, norm: str = "Linf", n_restarts: int = 1, eps: float | None = None,
        seed: float | None = 0, eot_iter: int = 1, rho: float = 0.75, topk: float | None = None,
        n_target_classes: int = 9, verbose: bool = False, device: Any = None, use_largereps: bool = False,
        is_tf_model: bool = False, logger: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, n_iter, norm, n_restarts, eps, seed, "dlr-targeted", eot_iter, rho, topk, verbose, device,
            use_largereps, is_tf_model, logger,
        )  # fmt: skip
        self.y_target = None
        self.n_target_classes = n_target_classes

    def perturb(
        self, x: Tensor, y: Tensor | None = None, x_init: Tensor | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Misclassified images, x where none was found."""
        return self._perturb(
            "apgd-t", x, y, index, start=x_init, n_target_classes=self.n_target_classes, **self._steps()
        )


class FABAttack_PT(_Part):  # noqa: N801
    """``FABAttack_PT(predict, norm='Linf', n_restarts=1, n_iter=100, eps=None, ..., n_target_classes=9)``."""

    def __init__(
        self, predict: Any, norm: str = "Linf", n_restarts: int = 1, n_iter: int = 100, eps: float | None = None,
        alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9, loss_fn: Any = None, verbose: bool = False,
        seed: float | None = 0, targeted: bool = False, device: Any = None, n_target_classes: int = 9,
    ) -> None:  # fmt: skip
        super().__init__(predict)
        self.norm = norm
        self.n_restarts = n_restarts
        self.n_iter = n_iter
        self.eps = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}[norm] if eps is None else eps
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.verbose = verbose
        self.seed = seed
        self.targeted = targeted
        self.device = device
        self.n_target_classes = n_target_classes

    def perturb(self, x: Tensor, y: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Misclassified images within eps, x where none was found."""
        targets = {"n_target_classes": self.n_target_classes} if self.targeted else {}
        return self._perturb(
            "fab-t" if self.targeted else "fab", x, y, index, steps=self.n_iter, restarts=self.n_restarts,
            alpha_max=self.alpha_max, eta=self.eta, beta=self.beta, early_stop=self.stops_early, **targets,
        )  # fmt: skip


class SquareAttack(_Part):
    """``SquareAttack(predict, norm='Linf', n_queries=5000, eps=None, p_init=.8, n_restarts=1, seed=0, ...)``."""

    def __init__(
        self, predict: Any, norm: str = "Linf", n_queries: int = 5000, eps: float | None = None, p_init: float = 0.8,
        n_restarts: int = 1, seed: float | None = 0, verbose: bool = False, targeted: bool = False,
        loss: str = "margin", resc_schedule: bool = True, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(predict)
        self.norm = norm
        self.n_queries = n_queries
        self.eps = eps
        self.p_init = p_init
        self.n_restarts = n_restarts
        self.seed = seed
        self.verbose = verbose
        self.targeted = targeted
        self.loss = loss
        self.rescale_schedule = resc_schedule
        self.device = device

    def perturb(self, x: Tensor, y: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Misclassified images, x where none was found; y None draws other classes than the predicted if targeted."""
        if y is None and self.targeted:
            shown = x.to(self.device or x.device)
            with as_it_is(self.predict) as held, torch.no_grad():
                logits = held(shown)
            skip = torch.randint(1, logits.shape[1], (len(x),)).to(logits.device)
            y = (logits.argmax(1) + skip) % logits.shape[1]
        return self._perturb(
            "square", x, y, index, queries=self.n_queries, p_init=self.p_init, restarts=self.n_restarts,
            targeted=self.targeted, loss=self.loss, resc_schedule=self.rescale_schedule,
        )  # fmt: skip
