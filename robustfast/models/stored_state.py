"""Read what a checkpoint file holds, and say in one line where it holds something else than a model expects."""

from __future__ import annotations

import pickle
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from robustfast.errors import UserError

__all__ = ["fits_the_model", "load"]


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        UserError: it is missing, truncated, corrupt, or holds more than tensors and plain values.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            # torch.load reads the tensors without their checksums.
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"{broken} fails its checksum")
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to execute the file.
        reason = "it holds more than tensors and plain values, and is not executed"
        raise UserError(f"{path} is no readable checkpoint: {reason}") from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise UserError(f"{path} is no readable checkpoint: {reason or type(error).__name__}") from error


@contextmanager
def fits_the_model(path: Path, mend: str) -> Iterator[None]:
    """Inside the block the content of the checkpoint `path` is taken apart and put into a model.

    Args:
        path: the file, for the message.
        mend: what the user can do, the end of the message.

    Raises:
        UserError: the content lacks a part, or a part is of another kind or shape than what takes it.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"{path} holds no checkpoint of this model: {textwrap.shorten(reason, 200, placeholder=' ...')}; {mend}"
        ) from error
