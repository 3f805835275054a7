"""Which environment the Makefile works in. Prints one line: KIND KEY INSTALLED REASON...

KIND       own      the caller's environment: it has torch >= 2.10 and pip may write to it
           inherit  .venv on top of the caller's environment: it has torch >= 2.10 but pip may not write to it
           venv     .venv with its own torch
           old      this Python is older than 3.10
KEY        changes with the environment, its Python and its torch
INSTALLED  yes when this checkout is installed in the caller's own environment, else no
REASON     why this KIND, in words

Needs only the standard library: it runs before anything is installed.
"""

import hashlib
import json
import os
import re
import sys
import sysconfig

TORCH_AT_LEAST = (2, 10)


def choose():
    if sys.version_info < (3, 10):
        return "old", "is Python %d.%d, 3.10 or later is needed" % sys.version_info[:2]
    from importlib import metadata, util

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "venv", "it has no torch"
    if tuple(map(int, re.findall(r"\d+", torch)[:2])) < TORCH_AT_LEAST:
        return "venv", f"its torch is {torch}, 2.10 or later is needed"
    if util.find_spec("pip") is None:
        return "venv", f"it has torch {torch} but no pip"
    # A second venv on top of one would see the packages of its base, not those of the first.
    in_venv = sys.prefix != sys.base_prefix
    writable = os.access(sysconfig.get_path("purelib"), os.W_OK)
    if in_venv:
        return ("own", f"torch {torch} in {sys.prefix}") if writable else ("venv", "pip may not write to it")
    if os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")):
        return "inherit", f"its packages are managed by the system; its torch {torch} is used"
    if not writable:
        return "inherit", f"pip may not write to it; its torch {torch} is used"
    return "own", f"torch {torch} in {sys.prefix}"


def installed():
    from importlib import metadata

    try:
        origin = metadata.distribution("robustfast").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return False
    here = "file://" + os.getcwd()
    return origin is not None and json.loads(origin)["url"] == here


if __name__ == "__main__":
    kind, reason = choose()
    key = hashlib.sha256("\n".join([sys.prefix, sys.version, kind, reason]).encode()).hexdigest()[:12]
    print(kind, key, "yes" if kind == "own" and installed() else "no", reason)
