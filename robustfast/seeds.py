"""Sub-seeds: one seed for a run, from which every draw derives its own."""

from __future__ import annotations

import hashlib

__all__ = ["derive"]


def derive(seed: int, *keys: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and `keys` alone.

    The same on every machine, Python version and process (Python's own `hash` is salted per process). Distinct key
    tuples give independent seeds, so that attacks, data order and augmentation of one run never share draws.

    Args:
        seed: the run's seed.
        keys: what the draw is for, for example ``("order", epoch)``.
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
