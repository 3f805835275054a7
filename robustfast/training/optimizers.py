"""Optimizers: whose kernels move the weights, and a step that the device itself can leave out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.training.config import TrainConfig

__all__ = ["APEX_RECIPE", "OVERRIDES", "Updater", "apex_status", "overridden"]

APEX_RECIPE = (
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation git+https://github.com/NVIDIA/apex"
)
"""How NVIDIA's apex gets its compiled modules: with a torch for CUDA and nvcc of the same release."""

OVERRIDES = frozenset(
    {"optimizer", "lr", "momentum", "nesterov", "betas", "weight_decay", "clip_norm", "clip_value"}
)
"""What an objective may set for one of its optimizers; "lr" there is a factor, since the schedule goes for all."""


def apex_status() -> str | None:
    """None where NVIDIA's apex can be used, else why not.

    It is known by its compiled module amp_C: on PyPI an unrelated project has the name apex, and a build of NVIDIA's
    without its CUDA extensions has no fused optimizer.
    """
    package = find_spec("apex")
    # Looked up without importing it: the code of an unrelated package is none of ours.
    folders = package.submodule_search_locations if package else None
    optimizers = folders and PathFinder.find_spec("apex.optimizers", folders)
    if find_spec("amp_C") is None:
        if package is None:
            return "NVIDIA apex is not installed"
        if optimizers:
            return "NVIDIA apex is installed without its compiled modules (there is no amp_C)"
        return (
            "the installed package apex is not NVIDIA's but the unrelated project of that name on PyPI (there is no "
            "amp_C): pip uninstall apex"
        )
    if not optimizers:
        found = "hidden by another package of that name: pip uninstall apex" if package else "gone"
        return f"NVIDIA apex's compiled module amp_C is there, its package is {found}"
    try:
        importlib.import_module("amp_C")
    except ImportError as error:
        return f"NVIDIA apex was built for another torch, its module amp_C does not load ({error})"
    return None


def overridden(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """`config` as one optimizer of an objective has it; its `lr` is the peak for that optimizer.

    Raises:
        TypeError: a field that is not in `OVERRIDES`.
        UserError: a value out of range.
    """
    if unknown := sorted(set(overrides) - OVERRIDES):
        raise TypeError(
            f"optimizers() sets {', '.join(unknown)}, expected some of {', '.join(sorted(OVERRIDES))}"
        )
    fields = dict(overrides)
    fields["lr"] = config.lr * fields.get("lr", 1.0)
    # The run's choice of Nesterov's momentum goes for its SGD.
    if fields.get("optimizer", "sgd") != "sgd":
        fields.setdefault("nesterov", False)
    return replace(config, **fields)


class Updater:
    """One optimizer and the parameters it moves.

    Its state is there from the start. Torch's fused SGD would otherwise allocate the momentum in the first step, and,
    where that one is skipped for an overflow, leave whatever the memory held in it.

    Args:
        parameters: what it moves.
        config: optimizer, whose kernels, learning rate, momentum, betas, weight decay, and bounds on the gradient.
        factor: of the learning rate that each step is given.

    Attributes:
        parameters: the argument, as a list.

    Raises:
        UserError: apex is asked for and cannot be used here.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], config: TrainConfig, *, factor: float = 1.0
    ) -> None:
        self.parameters = list(parameters)
        self.factor = factor
        self.clip_norm, self.clip_value = config.clip_norm, config.clip_value
        self._lr = config.lr
        if config.optimizer_impl == "apex":
            self._optimizer = _apex(self.parameters, config)
            self._skips = False
        else:
            self._optimizer, self._skips = _torch(self.parameters, config)
        for parameter in self.parameters:
            self._optimizer.state[parameter] = _initial_state(config, parameter, fused=self._skips)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients that there are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self) -> Tensor | None:
        """Bound the gradients as the configuration says.

        Returns:
            1 where the bound on the norm shortened them and 0 where not, float32 []; None without such a bound.
        """
        if self.clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        if not self.clip_norm:
            return None
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        return (norm > self.clip_norm).float()

    def step(self, lr: float | Tensor, skip: Tensor) -> None:
        """Move the parameters along their gradients.

        Args:
            lr: learning rate before `factor`; a tensor [] on the parameters' device is never read on the host.
            skip: float32 [], 0, or 1 to leave parameters and state as they are. Torch's fused kernels read it on the
                device; for all others the host waits for it.
        """
        if not self._skips and bool(skip):
            return
        for group in self._optimizer.param_groups:
            group["lr"] = lr if self.factor == 1.0 else lr * self.factor
        if self._skips:
            self._optimizer.found_inf = skip  # type: ignore[attr-defined]
        self._optimizer.step()
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; no settings, which are the configuration's."""
        state = self._optimizer.state_dict()
        # apex counts the steps of AdamW beside the settings.
        counters = [group["step"] for group in state["param_groups"] if "step" in group]
        return {"state": state["state"], "counters": counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for group, counter in zip(self._optimizer.param_groups, state["counters"], strict=False):
            group["step"] = counter


def _torch(parameters: list[nn.Parameter], config: TrainConfig) -> tuple[torch.optim.Optimizer, bool]:
    """Torch's optimizer, and whether it is the fused one."""
    kinds = {(config.optimizer, parameter.device, parameter.dtype) for parameter in parameters}
    fused = all(_fused_runs(*kind) for kind in kinds)
    how: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    if config.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            **how,
        )
    else:
        on_cuda = all(parameter.is_cuda for parameter in parameters)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            # Torch refuses to capture a step of AdamW that was not told of it.
            capturable=fused and on_cuda and config.whole_step == "graph",
            **how,
        )
        # It would warn of each that runs eagerly, as the first steps before a capture do.
        optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
    return optimizer, fused


@cache
def _fused_runs(optimizer: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a fused kernel for such parameters here; says so once where it has none."""
    parameter = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    parameter.grad = torch.zeros_like(parameter)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    try:
        kind([parameter], lr=0.1, fused=True).step()
    except RuntimeError as error:
        warnings.warn(
            f"{optimizer} steps with torch's foreach kernels: no fused one for {dtype} on {device.type} in torch "
            f"{torch.__version__} ({str(error).splitlines()[0]})",
            RuntimeWarning,
            stacklevel=5,
        )
        return False
    return True


def _apex(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """NVIDIA apex's fused optimizer."""
    if reason := apex_status():
        raise UserError(
            f"--optimizer-impl apex: {reason}; build it with: {APEX_RECIPE}; or take --optimizer-impl torch"
        )
    if not all(parameter.is_cuda and parameter.dtype == torch.float32 for parameter in parameters):
        # FusedSGD passes over other types without a word.
        found = sorted({f"{parameter.dtype} on {parameter.device.type}" for parameter in parameters})
        raise UserError(
            f"--optimizer-impl apex moves float32 weights on a GPU, these are {', '.join(found)}: take "
            f"--optimizer-impl torch"
        )
    optimizers = importlib.import_module("apex.optimizers")
    if config.optimizer == "sgd":
        return optimizers.FusedSGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    return optimizers.FusedAdam(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, adam_w_mode=True
    )


def _initial_state(config: TrainConfig, parameter: nn.Parameter, *, fused: bool) -> dict[str, Tensor]:
    """An optimizer's state before its first step: with zeros it goes on as if there were none yet."""
    zeros = torch.zeros_like(parameter, requires_grad=False)
    if config.optimizer == "sgd":
        return {"momentum_buffer": zeros} if config.momentum else {}
    if config.optimizer_impl == "apex":
        return {}
    # The fused kernel counts on the device, the others on the host.
    step = torch.zeros((), device=parameter.device if fused else "cpu")
    return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
