"""What a model is, as digests: its weights, and the code that runs them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.attacks.modes import module_of

__all__ = ["code_digest", "weights_digest"]

Model = Callable[[Tensor], Tensor]


def weights_digest(model: Model) -> str:
    """SHA-256 of the parameters and buffers behind a model, and of what it is made of.

    Of a plain function it is that of the file it is written in: weights it holds beside a module cannot be seen.
    """
    digest = hashlib.sha256()
    module = module_of(model)
    digest.update(repr(model if isinstance(model, nn.Module) else getattr(model, "name", "")).encode())
    if module is None:
        try:
            digest.update(Path(inspect.getsourcefile(inspect.unwrap(model)) or "").read_bytes())
        except (OSError, TypeError):
            digest.update(repr(type(model)).encode())
        return digest.hexdigest()
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def code_digest(model: Model) -> str:
    """SHA-256 of the source files that a model's classes, or its function, are written in.

    Those of torch, whose version says as much, and what has no source are left out; so is what these files import.
    """
    module = module_of(model)
    kinds = {type(part) for part in ((model,) if module is None else (model, *module.modules()))}
    written: list[Any] = [
        found
        for kind in kinds
        for owner in kind.__mro__
        if owner.__module__.partition(".")[0] not in ("torch", "builtins")
        # By its functions: a module that was loaded from a file need not be the one of that name.
        for found in vars(owner).values()
    ]
    written.append(getattr(model, "func", model))  # a functools.partial's
    plain = (inspect.unwrap(found) for found in written if callable(found))
    files = {found.__code__.co_filename for found in plain if hasattr(found, "__code__")}
    digests = []
    for file in files:
        try:
            digests.append(hashlib.sha256(Path(file).read_bytes()).digest())
        except OSError:
            continue  # typed at a prompt
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
