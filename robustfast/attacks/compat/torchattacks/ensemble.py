"""The attacks of torchattacks that AutoAttack is made of, and AutoAttack."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from robustfast.attacks.autoattack_versions import for_classes
from robustfast.attacks.compat.model import fresh_key
from robustfast.attacks.compat.torchattacks.attack import Attack
from robustfast.attacks.presets import ATTACKS

__all__ = ["APGD", "APGDT", "FAB", "AutoAttack", "Square"]

_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}


class _Seeded(Attack):
    """An attack with a seed of its own: the same draws in each call; None draws anew in each.

    torchattacks seeds the global generator with it; here nothing but this attack hears of it.
    """

    preset: str
    norms: tuple[str, ...] = ("Linf", "L2")

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        assert self.norm in self.norms, f"norm is {self.norm!r}, expected one of {', '.join(self.norms)}"
        images, labels = self.on_device(images, labels)
        key = fresh_key() if self.seed is None else int(self.seed)
        preset, settings = ATTACKS[self._preset()], self._settings()
        settings = {**preset.settings, "norm": _NORMS[self.norm], "eps": self.eps, **settings}
        settings |= self._for_classes(images)
        goal = self._goal(images, labels)
        if "targeted" not in self.supported_mode or not goal["targeted"]:
            del goal["targeted"]
        return self.run(preset.attack, images, key=key, **goal, **settings)

    def _preset(self) -> str:
        return self.preset

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def _for_classes(self, images: Tensor) -> dict[str, Any]:
        """What must change where the model has few classes."""
        return {}


class APGD(_Seeded):
    """``APGD(model, norm='Linf', eps=8/255, steps=10, n_restarts=1, seed=0, loss='ce', eot_iter=1, rho=.75, ...)``.

    What comes back is misclassified or the image itself, as in torchattacks.
    """

    def __init__(
        self, model: Any, norm: str = "Linf", eps: float = 8 / 255, steps: int = 10, n_restarts: int = 1,
        seed: float | None = 0, loss: str = "ce", eot_iter: int = 1, rho: float = 0.75, verbose: bool = False,
    ) -> None:  # fmt: skip
        super().__init__("APGD", model)
        self.eps = eps
        self.steps = steps
        self.norm = norm
        self.n_restarts = n_restarts
        self.seed = seed
        self.loss = loss
        self.eot_iter = eot_iter
        self.thr_decr = rho
        self.verbose = verbose

    def _preset(self) -> str:
        return "apgd-ce"

    def _settings(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "restarts": self.n_restarts,
            "loss": self.loss,
            "eot": self.eot_iter,
            "rho": self.thr_decr,
        }


class APGDT(_Seeded):
    """``APGDT(model, norm='Linf', eps=8/255, steps=10, n_restarts=1, seed=0, eot_iter=1, ..., n_classes=10)``.

    Under l2 torchattacks steps all samples by the first one's step size; here each has its own. With fewer than four
    classes, which the targeted DLR loss needs, torchattacks crashes; here the margin to the target is climbed instead,
    and one warning says so.
    """

    preset = "apgd-t"

    def __init__(
        self, model: Any, norm: str = "Linf", eps: float = 8 / 255, steps: int = 10, n_restarts: int = 1,
        seed: float | None = 0, eot_iter: int = 1, rho: float = 0.75, verbose: bool = False, n_classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__("APGDT", model)
        self.eps = eps
        self.steps = steps
        self.norm = norm
        self.n_restarts = n_restarts
        self.seed = seed
        self.eot_iter = eot_iter
        self.thr_decr = rho
        self.verbose = verbose
        self.target_class = None
        self.n_target_classes = n_classes - 1
        self._classes: tuple[Any, int] | None = None

    def _settings(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "restarts": self.n_restarts,
            "eot": self.eot_iter,
            "rho": self.thr_decr,
            "n_target_classes": self.n_target_classes,
        }

    def _for_classes(self, images: Tensor) -> dict[str, Any]:
        if not len(images):
            return {}
        if self._classes is None or self._classes[0] is not self.model:
            self._classes = self.model, self.get_output_with_eval_nograd(images).shape[1]
            why = for_classes(self.preset, {}, self._classes[1])[1]
            if why:
                warnings.warn(why, RuntimeWarning, stacklevel=4)
        return for_classes(self.preset, {}, self._classes[1])[0]


class FAB(_Seeded):
    """``FAB(model, norm='Linf', eps=8/255, steps=10, n_restarts=1, alpha_max=.1, eta=1.05, beta=.9, ...)``.

    What comes back lies within eps and is misclassified, or is the image itself.
    """

    norms = ("Linf", "L2", "L1")

    def __init__(
        self, model: Any, norm: str = "Linf", eps: float | None = 8 / 255, steps: int = 10, n_restarts: int = 1,
        alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9, verbose: bool = False,
        seed: float | None = 0, multi_targeted: bool = False, n_classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__("FAB", model)
        self.norm = norm
        self.n_restarts = n_restarts
        self.eps = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}[norm] if eps is None else eps
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.steps = steps
        self.verbose = verbose
        self.seed = seed
        self.target_class = None
        self.multi_targeted = multi_targeted
        self.n_target_classes = n_classes - 1
        self.supported_mode = ["default", "targeted"]

    def _preset(self) -> str:
        return "fab-t" if self.multi_targeted else "fab"

    def _settings(self) -> dict[str, Any]:
        targets = {"n_target_classes": self.n_target_classes} if self.multi_targeted else {}
        return {
            "steps": self.steps,
            "restarts": self.n_restarts,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
            **targets,
        }


class Square(_Seeded):
    """``Square(model, norm='Linf', eps=8/255, n_queries=5000, n_restarts=1, p_init=.8, loss='margin', ...)``.

    Windows are drawn for each image by itself, where torchattacks draws one for all images of a batch.
    """

    preset = "square"

    def __init__(
        self, model: Any, norm: str = "Linf", eps: float = 8 / 255, n_queries: int = 5000, n_restarts: int = 1,
        p_init: float = 0.8, loss: str = "margin", resc_schedule: bool = True, seed: float | None = 0,
        verbose: bool = False,
    ) -> None:  # fmt: skip
        super().__init__("Square", model)
        self.norm = norm
        self.n_queries = n_queries
        self.eps = eps
        self.p_init = p_init
        self.n_restarts = n_restarts
        self.seed = seed
        self.verbose = verbose
        self.loss = loss
        self.rescale_schedule = resc_schedule
        self.supported_mode = ["default", "targeted"]

    def _settings(self) -> dict[str, Any]:
        return {
            "queries": self.n_queries,
            "restarts": self.n_restarts,
            "p_init": self.p_init,
            "loss": self.loss,
            "resc_schedule": self.rescale_schedule,
        }


class AutoAttack(_Seeded):
    """``AutoAttack(model, norm='Linf', eps=8/255, version='standard', n_classes=10, seed=None, verbose=False)``.

    As in torchattacks, APGD and FAB run 10 steps and Square fits its schedule to the number of queries: for the
    numbers of the AutoAttack package take `robustfast.attacks.compat.autoattack`.
    """

    preset = "autoattack"

    def __init__(
        self, model: Any, norm: str = "Linf", eps: float = 8 / 255, version: str = "standard", n_classes: int = 10,
        seed: float | None = None, verbose: bool = False,
    ) -> None:  # fmt: skip
        if version not in ("standard", "plus", "rand"):
            raise ValueError("Not valid version. ['standard', 'plus', 'rand']")
        super().__init__("AutoAttack", model)
        self.norm = norm
        self.eps = eps
        self.version = version
        self.n_classes = n_classes
        self.seed = seed
        self.verbose = verbose

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        found = super().forward(images, labels)
        if self.verbose and self._built.last is not None:
            for record in self._built.last.records:
                print(f"{record.name}: {record.fooled} of {record.attacked} fooled, {record.seconds:.1f} s")
        return found

    def _settings(self) -> dict[str, Any]:
        own: dict[str, dict[str, Any]] = {}
        if self.version != "rand":
            targets = {"n_target_classes": self.n_classes - 1}
            own = {"square": {"resc_schedule": True}, "apgd-t": targets, "fab-t": targets}
        return {"version": self.version, "steps": 10, "settings": own}
