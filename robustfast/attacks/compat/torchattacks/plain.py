"""The attacks of torchattacks that need no gradient: none, noise, SPSA; and several attacks in a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.compat.model import fresh_key
from robustfast.attacks.compat.starts import noise
from robustfast.attacks.compat.torchattacks.attack import Attack
from robustfast.attacks.presets import ATTACKS

__all__ = ["GN", "SPSA", "VANILA", "MultiAttack"]


class VANILA(Attack):
    """The images themselves. ``VANILA(model)``."""

    def __init__(self, model: Any) -> None:
        super().__init__("VANILA", model)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.on_device(images)[0].clone()


class GN(Attack):
    """Normal noise, clipped. ``GN(model, std=0.1)``."""

    def __init__(self, model: Any, std: float = 0.1) -> None:
        super().__init__("GN", model)
        self.std = std

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        (images,) = self.on_device(images)
        return (images + self.std * noise(images, fresh_key())).clamp(0, 1)


class SPSA(Attack):
    """``SPSA(model, eps=0.3, delta=0.01, lr=0.01, nb_iter=1, nb_sample=128, max_batch_size=64)``.

    Directions are drawn for each image by itself, where torchattacks draws them for the batch.
    """

    def __init__(
        self, model: Any, eps: float = 0.3, delta: float = 0.01, lr: float = 0.01, nb_iter: int = 1,
        nb_sample: int = 128, max_batch_size: int = 64,
    ) -> None:  # fmt: skip
        super().__init__("SPSA", model)
        self.eps = eps
        self.delta = delta
        self.lr = lr
        self.nb_iter = nb_iter
        self.nb_sample = nb_sample
        self.max_batch_size = max_batch_size
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.on_device(images, labels)
        return self.run(
            ATTACKS["spsa"].attack, images, eps=self.eps, delta=self.delta, step_size=self.lr, steps=self.nb_iter,
            samples=self.nb_sample, chunk=max(1, self.max_batch_size // 2), **self._goal(images, labels),
        )  # fmt: skip


class MultiAttack(Attack):
    """Attacks in a row, each on the samples that are left; a sample keeps the first image that fools the model.

    ``MultiAttack([one, other], verbose=False)``; twice the same attack is a random restart.
    """

    def __init__(self, attacks: list[Attack], verbose: bool = False) -> None:
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks = attacks
        self.verbose = verbose
        self.check_validity()
        self._accumulate_multi_atk_records = False
        self._multi_atk_records = [0.0]

    def check_validity(self) -> None:
        if len(self.attacks) < 2:
            raise ValueError("More than two attacks should be given.")
        if len({id(attack.model) for attack in self.attacks}) != 1:
            raise ValueError("At least one of attacks is referencing a different model.")

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.on_device(images, labels)
        final = images.clone()
        left = torch.arange(len(images), device=images.device)
        records = [len(images)]
        for attack in self.attacks:
            adv = attack(images[left], labels[left])
            with torch.no_grad():
                right = self.get_logits(adv).argmax(1) == labels[left]
            final[left[~right]] = adv[~right]
            left = left[right]
            records.append(len(left))
            if not len(left):
                break
        if self.verbose:
            print(self._return_sr_record(records))
        if self._accumulate_multi_atk_records:
            # An attack that was not needed any more left no sample over.
            records += [0] * (len(self._multi_atk_records) - len(records))
            self._multi_atk_records = [a + b for a, b in zip(self._multi_atk_records, records, strict=True)]
        return final

    def _covert_to_success_rates(self, records: list[float]) -> list[float]:
        return [(1 - left / records[0]) * 100 for left in records[1:]]

    def _return_sr_record(self, records: list[float]) -> str:
        rates = self._covert_to_success_rates(records)
        return "Attack success rate: " + " | ".join(f"{rate:2.2f} %" for rate in rates)

    def save(
        self,
        data_loader: Any,
        save_path: Any = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> Any:
        """As of one attack; with `return_verbose`: (robust accuracy, success rates by attack, l2, seconds)."""
        self._multi_atk_records = [0.0] * (len(self.attacks) + 1)
        shown, self.verbose = self.verbose, False
        self._accumulate_multi_atk_records = True
        try:
            found = super().save(
                data_loader,
                save_path,
                verbose,
                return_verbose,
                save_predictions,
                save_clean_inputs,
                save_type,
            )
            rates = self._covert_to_success_rates(self._multi_atk_records)
        finally:
            self._accumulate_multi_atk_records = False
            self._multi_atk_records = [0.0]
            self.verbose = shown
        return None if found is None else (found[0], rates, *found[1:])

    def _save_print(self, progress: float, rob_acc: float, l2: float, elapsed_time: float, end: str) -> None:
        print(
            f"- Save progress: {progress:2.2f} % / Robust accuracy: {rob_acc:2.2f} % / "
            f"{self._return_sr_record(self._multi_atk_records)} / L2: {l2:1.5f} ({elapsed_time:2.3f} it/s) \t",
            end=end,
        )
