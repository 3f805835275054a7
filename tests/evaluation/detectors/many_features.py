"""Kernel density and LID on 50,000 x 640 features, in a process of its own: prints its peak memory in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from given_features import Given

from robustfast.evaluation.detectors import KernelDensity, LocalIntrinsicDimensionality

SAMPLES, WIDTH, CLASSES, QUERIES = 50_000, 640, 10, 1000

features = torch.empty(SAMPLES, WIDTH).normal_(generator=torch.Generator().manual_seed(0))
labels = torch.arange(SAMPLES) % CLASSES
features[torch.arange(SAMPLES), labels] += 4


def loader() -> object:
    return zip(features.split(500), labels.split(500), strict=True)


model = Given(WIDTH, CLASSES)
# The classes one after the other, so that each has as many queries.
queries = features[:QUERIES]
density = KernelDensity(bandwidths=(0.5, 2.0), batch_size=500).fit(model, loader())
assert density.score(queries).isfinite().all()
del density
# Every training sample is a candidate for a neighbour: a matrix of all pairs would be QUERIES x SAMPLES.
whole = LocalIntrinsicDimensionality("features", reference_size=None, batch_size=500).fit(model, loader())
assert whole.score(queries).isfinite().all()
del whole
blocks = LocalIntrinsicDimensionality("features").fit(model, loader())
assert blocks.score(features[:5_000], reference=features[:5_000]).isfinite().all()


def peak() -> int:
    """In bytes, of this program alone: Linux hands the peak of whoever started it down in ru_maxrss."""
    if sys.platform == "linux":
        (line,) = (
            row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM")
        )
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


print(peak())
