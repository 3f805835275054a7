"""When APGD looks at its step sizes, and how its l1 ball shrinks."""

from __future__ import annotations

import math

__all__ = ["phases", "windows"]


def windows(steps: int, norm: str) -> list[int]:
    """For each of `steps` steps the number of them since the last check, or 0 where this is no time for one.

    Under linf and l2 the first check comes after 0.22 steps, each later one 0.03 sooner, down to 0.06. The authors'
    code rounds these down, to one at least, and so is it here; Croce and Hein 2020 (arXiv:2003.01690), section 3.1,
    round them up. At 100 steps both say 22, 41, 57, 70, 80, 87, 93, 99; at 10, 20, 40 and 50 they differ. Under l1
    checks come every 0.04 steps (Croce and Hein 2021, arXiv:2103.01208, appendix B).
    """
    window = max(int((0.04 if norm == "l1" else 0.22) * steps), 1)
    shrink = 0 if norm == "l1" else max(int(0.03 * steps), 1)
    least = window if norm == "l1" else max(int(0.06 * steps), 1)
    found, since = [], 0
    for _ in range(steps):
        since += 1
        found.append(window if since == window else 0)
        if since == window:
            since, window = 0, max(window - shrink, least)
    return found


def phases(steps: int, norm: str) -> list[tuple[float, int]]:
    """(radius in units of eps, steps) of each phase.

    One, but for l1: 0.3 of the steps in the ball of 3 eps, 0.3 in that of 2 eps, rounded up, and the rest in that of
    eps.
    """
    if norm != "l1":
        return [(1.0, steps)]
    first = math.ceil(0.3 * steps)
    return [(3.0, first), (2.0, first), (1.0, max(0, steps - 2 * first))]
