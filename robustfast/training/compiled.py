"""torch.compile of the encoders, each a unit of its own, for training passes and attacks alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustfast.attacks.compiled import Compiled
from robustfast.models import Network

__all__ = ["compile_encoders"]


def compile_encoders(model: Network, *, say: Callable[[str], Any] = print, **options: Any) -> None:
    """Compile the encoders in place; all else of the model stays as it is.

    The modules, their parameters and the keys of their state stay the same, and a copy of the model is not compiled.
    Each encoder has one graph for training passes and, since an attack freezes the weights, another for attacks, whose
    backward computes no weight gradient. Encoders of one class share theirs: weights are inputs of a graph.

    To call before the objective is built, whose attacks with engine "compile" then take the encoders as they find
    them. An encoder that is a bare container of torch's, such as `nn.Sequential`, has no code to compile and runs
    eagerly.

    Args:
        model: whose `encoders()` to compile.
        say: told in one line, once, why they run eagerly after all.
        options: further keywords of torch.compile.
    """
    encoders = list(model.encoders().values())
    refused = False

    def refuse(reason: str) -> None:
        nonlocal refused
        for encoder in encoders:
            encoder._compiled_call_impl = None
        if not refused:
            say(f"encoders run eagerly, not compiled: {reason}")
        refused = True

    for encoder in encoders:
        compiled = Compiled(encoder._call_impl, refuse, **options)
        if not refused:
            # Where nn.Module.compile puts it: called instead of the module, and left out of copies and pickles.
            encoder._compiled_call_impl = compiled
