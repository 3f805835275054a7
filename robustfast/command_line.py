"""What every command of the project shares: typed flags from dataclasses, and a user's mistake on one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from robustfast.errors import SaidElsewhereError, UserError
from robustfast.signals import raised_on_sigterm, signal_behind

__all__ = ["main_wrapper", "number", "parse"]

T = TypeVar("T")


def main_wrapper(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    A `UserError` ends in ``error: MESSAGE`` on one line of stderr and code 2; SIGTERM and Ctrl-C in one line and 128
    plus the signal's number. Of several processes one speaks. Any other exception is a defect of the project and keeps
    its trace.

    Args:
        main: the command; takes the arguments after the program's name.
        argv: those arguments; None takes `sys.argv`.
    """
    try:
        with raised_on_sigterm():
            main(sys.argv[1:] if argv is None else argv)
    except SaidElsewhereError:
        return 2
    except UserError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        number = signal_behind(stop)
        if os.environ.get("RANK", "0") == "0":
            then = f", {_one_line(str(stop))}" if stop.args else ""
            print(f"stopped by {signal.Signals(number).name}{then}", file=sys.stderr)
        return 128 + number
    return 0


def parse(kind: type[T], argv: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Build the dataclass `kind` from command-line flags.

    Nested dataclasses become ``--outer.inner``; booleans ``--flag`` and ``--no-flag``; tuples one argument with commas;
    floats also fractions (``8/255``). ``--help`` prints the flags and leaves with code 0.

    Args:
        kind: dataclass whose field docstrings are the help.
        argv: arguments after the program's name.
        prog: how the command is called, for the usage line.
        description: what `--help` says above the flags.
        default: values of the flags that are not given.

    Raises:
        UserError: an unknown flag, a missing value or one of the wrong kind.
    """
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind, args=list(argv), prog=prog, description=description, registry=_FLAGS, **keywords
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
    # Under torchrun each process of a machine reads the same line, and they do not know each other yet.
    kind_of_error = UserError if os.environ.get("LOCAL_RANK", "0") == "0" else SaidElsewhereError
    raise kind_of_error(_mistake(complaint.getvalue(), prog))


def number(text: str) -> float:
    """Read a float, or a fraction of two (``8/255``).

    Raises:
        ValueError: anything else, a zero denominator included.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number such as 0.03 or 8/255, got {text!r}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _mistake(box: str, prog: str) -> str:
    """One line from the framed, wrapped text with which tyro rejects an argument."""
    rows = [row.strip("│ \n") for row in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    body: list[str] = []
    for row in rows[1:]:
        if row.startswith(("╰", "Argument helptext", "For full helptext")):
            break
        body.append(";" if row.startswith("───") else row)
    message = _one_line(" ".join(body)).replace(" ;", ";").rstrip(";.")
    # A check of a whole dataclass (eps above 1, say) is complete in itself, and the dataclass's name says nothing.
    message, checks = re.subn(r"^Error parsing (?!--)\S+: ", "", message)
    message = re.sub(r"^Error parsing (--\S+):", r"\1:", message)
    return message if checks else f"{message} (all flags: {prog} --help)"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a whole number, got {text!r}") from None


def _show(value: float) -> str:
    """`8/255` where the float is a pixel value that has no short decimal."""
    pixels = round(value * 255)
    return f"{pixels}/255" if len(repr(value)) > 8 and abs(value * 255 - pixels) < 1e-9 else repr(value)


_FLAGS = ConstructorRegistry()
_READ: dict[Any, tuple[str, Callable[[str], Any], Callable[[Any], str]]] = {
    float: ("NUMBER", number, _show),
    int: ("INT", _whole, str),
    str: ("NAME", str, str),
    Path: ("PATH", Path, str),
}


@_FLAGS.primitive_rule
def _single(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """One value: float, int, str, Path, or one of them or None (the default where the flag is not given)."""
    kind = info.type
    if typing.get_origin(kind) in (UnionType, typing.Union):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        kind = options[0] if len(options) == 1 and len(typing.get_args(kind)) == 2 else None
    if kind not in _READ:
        return None
    metavar, read, show = _READ[kind]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: read(args[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["none" if value is None else show(value)],
    )


@_FLAGS.primitive_rule
def _many(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A tuple of any length: one argument, separated by commas (``st,as,ar``); an empty one is the empty tuple."""
    if typing.get_origin(info.type) is not tuple or typing.get_args(info.type)[1:] != (...,):
        return None
    element = typing.get_args(info.type)[0]
    if element not in _READ:
        return None
    metavar, read, show = _READ[element]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{metavar},{metavar},...",
        instance_from_str=lambda args: tuple(read(part) for part in args[0].split(",") if part),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(show, value))],
    )
