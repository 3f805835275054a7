"""The attacks of torchattacks that climb the gradient: FGSM to momentum, under linf and l2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.averaged import Averaged
from robustfast.attacks.compat.model import fresh_key
from robustfast.attacks.compat.starts import noise, sphere_by_radius
from robustfast.attacks.compat.torchattacks.attack import Attack
from robustfast.attacks.draws import signs

__all__ = ["BIM", "EOTPGD", "FFGSM", "FGSM", "MIFGSM", "PGD", "PGDL2", "RFGSM", "TPGD"]


class _Climb(Attack):
    """Steps of length alpha within eps; a subclass says from where."""

    norm = "linf"
    steps = 1

    def __init__(self, name: str, model: Any, eps: float, alpha: float, steps: int | None = None) -> None:
        super().__init__(name, model)
        self.eps = eps
        self.alpha = alpha
        if steps is not None:
            self.steps = steps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.on_device(images, labels)
        if self.steps == 0:
            return images.clone()
        key = fresh_key() if self._draws() else 0
        start = self._start(images, key)
        return self.run(
            self._kind(), images, key=key, start=start, **self._goal(images, labels), **self._settings()
        )

    def _kind(self) -> Any:
        return attacks.PGD

    def _settings(self) -> dict[str, Any]:
        random = self._draws()
        return {
            "eps": self.eps,
            "step_size": self.alpha,
            "steps": self.steps,
            "norm": self.norm,
            "random_start": random,
        }

    def _draws(self) -> bool:
        return False

    def _start(self, images: Tensor, key: int) -> Tensor | None:
        """Where to start; None leaves it to the attack."""
        return None


class FGSM(Attack):
    """One step of length eps along the sign. ``FGSM(model, eps=8/255)``."""

    def __init__(self, model: Any, eps: float = 8 / 255) -> None:
        super().__init__("FGSM", model)
        self.eps = eps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.on_device(images, labels)
        return self.run(attacks.FGSM, images, key=0, eps=self.eps, **self._goal(images, labels))


class FFGSM(_Climb):
    """One step of alpha from U(-eps, eps), clipped. ``FFGSM(model, eps=8/255, alpha=10/255)``."""

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 10 / 255) -> None:
        super().__init__("FFGSM", model, eps, alpha)

    def _draws(self) -> bool:
        return True


class BIM(_Climb):
    """Steps from the image itself; steps=0 counts them as the paper does. ``BIM(model, eps, alpha, steps=10)``."""

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        by_paper = int(min(eps * 255 + 4, 1.25 * eps * 255))
        super().__init__("BIM", model, eps, alpha, steps or by_paper)


class RFGSM(_Climb):
    """Steps from alpha times random signs. ``RFGSM(model, eps=8/255, alpha=2/255, steps=10)``."""

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        super().__init__("RFGSM", model, eps, alpha, steps)

    def _draws(self) -> bool:
        return True

    def _start(self, images: Tensor, key: int) -> Tensor:
        index = torch.arange(len(images), device=images.device)
        draw = signs(index, tuple(images.shape[1:]), seed=key, dtype=images.dtype)
        return (images + self.alpha * draw).clamp(0, 1)


class PGD(_Climb):
    """Project, then clip; start uniform in the ball, clipped; last iterate.

    ``PGD(model, eps=8/255, alpha=2/255, steps=10, random_start=True)``; bit-equal to torchattacks' without a random
    start.
    """

    def __init__(
        self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, random_start: bool = True
    ) -> None:  # fmt: skip
        super().__init__("PGD", model, eps, alpha, steps)
        self.random_start = random_start

    def _draws(self) -> bool:
        return bool(self.random_start)


class PGDL2(PGD):
    """The same under l2. ``PGDL2(model, eps=1.0, alpha=0.2, steps=10, random_start=True, eps_for_division=1e-10)``.

    The start has a uniform radius, as in torchattacks: denser in the middle than a uniform draw. eps_for_division is
    kept but not used: a zero gradient makes no step, in every precision, where torchattacks makes nan in half.
    """

    norm = "l2"

    def __init__(
        self, model: Any, eps: float = 1.0, alpha: float = 0.2, steps: int = 10, random_start: bool = True,
        eps_for_division: float = 1e-10,
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, random_start)
        self.attack = "PGDL2"
        self.eps_for_division = eps_for_division

    def _start(self, images: Tensor, key: int) -> Tensor | None:
        if not self.random_start:
            return None
        return (images + self.eps * sphere_by_radius(images, key)).clamp(0, 1)


class EOTPGD(PGD):
    """PGD along the mean of `eot_iter` gradients, for models that draw. ``EOTPGD(model, ..., eot_iter=2)``."""

    def __init__(
        self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, eot_iter: int = 2,
        random_start: bool = True,
    ) -> None:  # fmt: skip
        _Climb.__init__(self, "EOTPGD", model, eps, alpha, steps)
        self.eot_iter = eot_iter
        self.random_start = random_start

    def _kind(self) -> Any:
        return Averaged

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "eot": self.eot_iter}


class TPGD(_Climb):
    """Climbs the divergence from the prediction at the image, from 0.001 normal noise around it, clipped.

    ``TPGD(model, eps=8/255, alpha=2/255, steps=10)``, called with images alone; never targeted.
    """

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        super().__init__("TPGD", model, eps, alpha, steps)
        self.supported_mode = ["default"]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        (images,) = self.on_device(images)
        with torch.no_grad():
            wanted = self.get_logits(images).softmax(1)
        key = fresh_key()
        start = (images + 0.001 * noise(images, key)).clamp(0, 1)
        return self.run(attacks.PGD, images, wanted, key=key, start=start, loss="kl", **self._settings())


class MIFGSM(_Climb):
    """Steps along the sign of the momentum of mean-normalised gradients, from the image itself.

    ``MIFGSM(model, eps=8/255, alpha=2/255, steps=10, decay=1.0)``. A zero gradient adds nothing; in torchattacks it
    makes the sample's momentum nan for good.
    """

    def __init__(
        self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, decay: float = 1.0
    ) -> None:
        Attack.__init__(self, "MIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.supported_mode = ["default", "targeted"]

    def _kind(self) -> Any:
        return attacks.MIM

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "decay": self.decay}
