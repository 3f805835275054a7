"""What every attack of torchattacks offers beside its call: modes, normalisation, saving and loading."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from robustfast import attacks
from robustfast.attacks.compat.model import Attacks, Through, as_it_is, device_of, fresh_key
from robustfast.attacks.modes import eval_mode, module_of

__all__ = ["Attack"]


class Attack:
    """The base class of torchattacks 3.5.1: built with a model, called with images in [0, 1] and labels.

    A subclass of your own sets `supported_mode` and gives `forward(images, labels)`, as there. The same as there: the
    modes, the normalisation, `save` and `load`, the device that inputs are brought to. On purpose different:

    * every module gets its own mode back, also when an exception passes through, where torchattacks wakes frozen
      submodules by `model.train()`; batch norms in train mode leave their running statistics alone;
    * no random generator is seeded; without a seed of its own, an attack draws one key per call from torch's global
      generator, so that `torch.manual_seed` repeats a script and two calls differ;
    * images outside [0, 1] are an error, as is an attack of half-precision images.

    Args:
        name: what `attack` and repr say.
        model: a module, or any callable from images to logits.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.attack = name
        self._attacks: OrderedDict[str, Attack] = OrderedDict()
        self._built = Attacks()
        self.set_model(model)
        self.device = device_of(model)
        if self.device is None:
            print("Failed to set device automatically, please try set_device() manual.")
        self.attack_mode = "default"
        self.supported_mode = ["default"]
        self.targeted = False
        self._target_map_function: Callable[..., Tensor] | str | None = None
        self.normalization_used: dict[str, Tensor] | None = None
        self._normalization_applied: bool | None = None
        self._through: Through | None = None
        self._model_training = False
        self._batchnorm_training = False
        self._dropout_training = False
        self._kth_min = 1

    def forward(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Adversarial images for images in [0, 1]."""
        raise NotImplementedError

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Attack one batch; inputs and result are normalised where `set_normalization_used` said so."""
        with self._modes():
            if self._normalization_applied is not True:
                return self.forward(inputs, labels, *args, **kwargs)
            inputs = self.inverse_normalize(inputs)
            # What was normalised in float32 comes back up to two roundings of 1 away from [0, 1].
            inputs = torch.where((inputs < 0) & (inputs > -1e-5), 0.0, inputs)
            inputs = torch.where((inputs > 1) & (inputs < 1 + 1e-5), 1.0, inputs)
            self._set_normalization_applied(False)
            try:
                return self.normalize(self.forward(inputs, labels, *args, **kwargs))
            finally:
                self._set_normalization_applied(True)

    # What a subclass runs.

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Logits of images as `forward` has them."""
        return self._model()(inputs)

    def run(
        self, kind: Callable[..., attacks.Attack], images: Tensor, labels: Tensor, *, key: int | None = None,
        start: Tensor | None = None, **settings: Any,
    ) -> Tensor:  # fmt: skip
        """Attack by one of `robustfast.attacks`; `key` None: draws keyed anew by each call."""
        key = fresh_key() if key is None else key
        model = self._model()
        if not self._model_training:
            attack = self._built.get(kind, model, **settings)
            return attack(images, labels, epoch=key, start=start)
        with as_it_is(model) as held:
            return kind(held, engine="eager", **settings)(images, labels, epoch=key, start=start)

    def on_device(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Detached, and on the attack's device."""
        return tuple(tensor.detach().to(self.device or tensor.device) for tensor in tensors)

    def _model(self) -> Any:
        if self._normalization_applied is not False:
            return self.model
        if self._through is None or self._through.model is not self.model:
            self._through = Through(self.model, self.normalize)
        return self._through

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """The modes that `set_model_training_mode` asks for; each module gets its own back."""
        module = module_of(self.model)
        if not self._model_training or module is None:
            with eval_mode(self.model):
                yield
            return
        before = [(part, part.training) for part in module.modules()]
        try:
            for part, _ in before:
                kind = type(part).__name__
                held = ("BatchNorm" in kind and not self._batchnorm_training) or (
                    "Dropout" in kind and not self._dropout_training
                )
                part.training = not held
            with as_it_is(self.model):
                yield
        finally:
            for part, mode in before:
                part.training = mode

    # What a script sets.

    def set_model(self, model: Any) -> None:
        self.model = model
        self.model_name = type(model).__name__
        self._each("set_model", model)

    def set_device(self, device: Any) -> None:
        self.device = device
        self._each("set_device", device)

    def set_normalization_used(self, mean: Any, std: Any) -> None:
        """Inputs and results are normalised by mean and std [C]: the attack itself runs in [0, 1]."""
        mean, std = (torch.as_tensor(value).detach().clone().reshape(1, -1, 1, 1) for value in (mean, std))
        self.normalization_used = {"mean": mean, "std": std}
        self._set_normalization_applied(True)
        self._each("set_normalization_used", mean.flatten(), std.flatten())

    def _set_normalization_applied(self, flag: bool) -> None:
        self._normalization_applied = flag
        self._each("_set_normalization_applied", flag)

    def normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._normalisation(inputs)
        return (inputs - mean) / std

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        mean, std = self._normalisation(inputs)
        return inputs * std + mean

    def _normalisation(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        assert self.normalization_used is not None, "set_normalization_used was not called"
        return tuple(
            self.normalization_used[name].to(inputs.device, inputs.dtype) for name in ("mean", "std")
        )

    def get_mode(self) -> str:
        return self.attack_mode

    def set_mode_default(self) -> None:
        self.attack_mode = "default"
        self.targeted = False
        print("Attack mode is changed to 'default.'")
        self._each("set_mode_default")

    def set_mode_targeted_by_function(
        self, target_map_function: Callable[[Tensor, Tensor], Tensor], quiet: bool = False
    ) -> None:
        """Aim at ``target_map_function(images, labels)``."""
        self._set_mode_targeted("targeted(custom)", quiet)
        self._target_map_function = target_map_function
        self._each("set_mode_targeted_by_function", target_map_function, quiet)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Aim at a random other class than each label."""
        self._set_mode_targeted("targeted(random)", quiet)
        self._target_map_function = self.get_random_target_label
        self._each("set_mode_targeted_random", quiet)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Aim at the class with the kth_min-th smallest logit among the others than the label."""
        self._set_mode_targeted("targeted(least-likely)", quiet)
        assert kth_min > 0
        self._kth_min = kth_min
        self._target_map_function = self.get_least_likely_label
        self._each("set_mode_targeted_least_likely", kth_min, quiet)

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Aim at the labels that are given."""
        self._set_mode_targeted("targeted(label)", quiet)
        self._target_map_function = "function is a string"
        self._each("set_mode_targeted_by_label", quiet)

    def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError("Targeted mode is not supported.")
        self.targeted = True
        self.attack_mode = mode
        if not quiet:
            print(f"Attack mode is changed to '{mode}'.")

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Attack in train mode; batch norm and dropout stay in eval mode unless they are named too."""
        self._model_training = model_training
        self._batchnorm_training = batchnorm_training
        self._dropout_training = dropout_training
        self._each("set_model_training_mode", model_training, batchnorm_training, dropout_training)

    def _each(self, method: str, *arguments: Any) -> None:
        """The same for the attacks this one holds."""
        for attack in self._attacks.values():
            getattr(attack, method)(*arguments)

    # Targets.

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        if self._target_map_function is None:
            raise ValueError("target_map_function is not initialized by set_mode_targeted.")
        if self.attack_mode == "targeted(label)":
            return labels
        return self._target_map_function(inputs, labels)

    def get_least_likely_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        outputs = self.get_output_with_eval_nograd(inputs)
        labels = outputs.argmax(1) if labels is None else labels.to(outputs.device)
        others = outputs.scatter(1, labels[:, None], torch.inf)
        return others.kthvalue(self._kth_min, dim=1).indices

    def get_random_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        outputs = self.get_output_with_eval_nograd(inputs)
        labels = outputs.argmax(1) if labels is None else labels.to(outputs.device)
        skip = torch.randint(1, outputs.shape[1], labels.shape)
        return (labels + skip.to(labels.device)) % outputs.shape[1]

    @torch.no_grad()
    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        with eval_mode(self.model):
            return self.get_logits(inputs)

    def _goal(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Where to go: labels and targeted, as `run` takes them."""
        if not self.targeted:
            return {"labels": labels, "targeted": False}
        return {"labels": self.get_target_label(images, labels).to(images.device), "targeted": True}

    # Files.

    def save(
        self,
        data_loader: Any,
        save_path: str | Path | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attack every batch of a loader and keep the results in one file, which `load` and torchattacks read.

        The images are saved in [0, 1], as float32 or (`save_type` "int") as bytes. Written once, at the end, where
        torchattacks writes the file anew after each batch.

        Returns:
            With `return_verbose`: robust accuracy in percent, mean l2 length of the perturbations that fooled the
            model, and seconds of the last batch.
        """
        parts: dict[str, list[Tensor]] = {"adv_inputs": [], "labels": [], "preds": [], "clean_inputs": []}
        correct = total = 0
        lengths: list[Tensor] = []
        found = (0.0, 0.0, 0.0)
        for step, (inputs, labels) in enumerate(data_loader):
            begun = time.time()
            adv_inputs = self(inputs, labels)
            predicted = None
            if verbose or return_verbose or save_predictions:
                predicted = self.get_output_with_eval_nograd(adv_inputs).argmax(1)
            if verbose or return_verbose:
                right = predicted == labels.to(predicted.device)
                total += len(labels)
                correct += int(right.sum())
                delta = (adv_inputs - inputs.to(adv_inputs.device)).flatten(1)
                lengths.append(delta[~right].norm(dim=1))
                found = (100 * correct / total, torch.cat(lengths).mean().item(), time.time() - begun)
                if verbose:
                    self._save_print(100 * (step + 1) / len(data_loader), *found, end="\r")
            kept = {"adv_inputs": adv_inputs, "labels": labels}
            kept |= {"preds": predicted} if save_predictions else {}
            kept |= {"clean_inputs": inputs} if save_clean_inputs else {}
            for name, value in kept.items():
                parts[name].append(value.detach().cpu())
        if verbose:
            self._save_print(100.0, *found, end="\n")
        if save_path is not None:
            saved: dict[str, Any] = {name: torch.cat(values) for name, values in parts.items() if values}
            for name in ("adv_inputs", "clean_inputs"):
                if name in saved and self.normalization_used is not None:
                    saved[name] = self.inverse_normalize(saved[name])
                if name in saved and save_type == "int":
                    saved[name] = self.to_type(saved[name], "int")
            torch.save({**saved, "save_type": save_type}, save_path)
        return found if return_verbose else None

    @staticmethod
    def to_type(inputs: Tensor, type: str) -> Tensor:
        """Images as bytes ("int") or as float32 in [0, 1] ("float")."""
        if type not in ("int", "float"):
            raise ValueError(type + " is not a valid type. [Options: float, int]")
        if type == "int" and inputs.dtype == torch.float32:
            return (inputs * 255).type(torch.uint8)
        if type == "float" and inputs.dtype == torch.uint8:
            return inputs.float() / 255
        return inputs

    @staticmethod
    def _save_print(progress: float, rob_acc: float, l2: float, elapsed_time: float, end: str) -> None:
        print(
            f"- Save progress: {progress:2.2f} % / Robust accuracy: {rob_acc:2.2f} % / L2: {l2:1.5f} "
            f"({elapsed_time:2.3f} it/s) \t",
            end=end,
        )

    @staticmethod
    def load(
        load_path: str | Path,
        batch_size: int = 128,
        shuffle: bool = False,
        normalize: dict[str, Any] | None = None,
        load_predictions: bool = False,
        load_clean_inputs: bool = False,
    ) -> DataLoader:
        """A loader over what `save` kept: adversarial images, labels, and predictions and clean images on request."""
        saved = torch.load(load_path, weights_only=True)
        keys = ["adv_inputs", "labels"]
        keys += ["preds"] * load_predictions + ["clean_inputs"] * load_clean_inputs
        for name in {"adv_inputs", "clean_inputs"} & set(keys):
            if saved["save_type"] == "int":
                saved[name] = saved[name].float() / 255
            if normalize is not None:
                mean, std = (torch.tensor(normalize[value]).reshape(1, -1, 1, 1) for value in ("mean", "std"))
                saved[name] = (saved[name] - mean) / std
        print(f"Data is loaded in the following order: [{', '.join(keys)}]")
        return DataLoader(
            TensorDataset(*[saved[key] for key in keys]), batch_size=batch_size, shuffle=shuffle
        )

    def __repr__(self) -> str:
        hidden = ("model", "attack", "supported_mode")
        shown = {name: value for name, value in vars(self).items() if name[0] != "_" and name not in hidden}
        shown["attack_mode"] = self.attack_mode
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        held = vars(self).get("_attacks")
        if held is None or name.startswith("_built"):
            return
        # What is set on this attack later holds for those it was given, as attributes or in lists.
        found = value if isinstance(value, (list, tuple)) else [value]
        for number, attack in enumerate(item for item in found if isinstance(item, Attack)):
            held[f"{name}.{number}"] = attack
            held.update({f"{name}.{number}.{key}": inner for key, inner in attack._attacks.items()})
