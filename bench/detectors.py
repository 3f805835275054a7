"""What exact distances in tiles cost the detectors: `python bench/detectors.py`.

Kernel densities and nearest neighbours of 640 features, those that CIFAR-10's images have in a wide ResNet, by the
detectors' own tiles of float64 and by matrices of all pairs, in float32 and float64 (`torch.cdist`, with products, its
default for many rows, and with differences). Each is first held to differences in float64: the error of a log density
is that of the score itself, in nats; that of a LID is relative. Beside the times, the bytes of the distances that exist
at once. Kernel density: one class of the training images and the queries that are taken for it. LID: queries against
many clean images, more than the protocol's 100.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hardware import hardware
from measure import interleaved
from torch import Tensor

import robustfast
from robustfast.evaluation.detectors import CHUNK_BYTES, lid_estimates, log_densities
from robustfast.training.checkpoint import write_durably

RESULTS = Path(__file__).resolve().parent / "results" / "detectors.json"
WIDTH, BANDWIDTHS, K = 640, (0.1, 0.26, 1.0), 20
CHUNKS = {"16 MiB": 2**24, "64 MiB": CHUNK_BYTES, "256 MiB": 2**28}
WITH_DIFFERENCES = "donot_use_mm_for_euclid_dist"
RIVALS = {
    "all pairs, float32": (torch.float32, "use_mm_for_euclid_dist_if_necessary"),
    "all pairs, float64": (torch.float64, "use_mm_for_euclid_dist_if_necessary"),
    "all pairs, float32 differences": (torch.float32, WITH_DIFFERENCES),
}

Score = Callable[[Tensor, Tensor], Tensor]


def densities(dtype: torch.dtype, mode: str, bandwidths: tuple[float, ...]) -> Score:
    """Log densities from the matrix of all distances, [len(bandwidths), N]."""

    def score(queries: Tensor, samples: Tensor) -> Tensor:
        squares = torch.cdist(queries.to(dtype), samples.to(dtype), compute_mode=mode).square()
        found = [
            (squares * (-0.5 / h**2)).logsumexp(1)
            - math.log(len(samples))
            - WIDTH / 2 * math.log(2 * math.pi * h * h)
            for h in bandwidths
        ]
        return torch.stack(found)

    return score


def lids(dtype: torch.dtype, mode: str) -> Score:
    """LID from the matrix of all distances, [N]; no query is among the samples."""

    def score(queries: Tensor, samples: Tensor) -> Tensor:
        distances = torch.cdist(queries.to(dtype), samples.to(dtype), compute_mode=mode)
        near = distances.topk(K, largest=False).values
        return -K / (near / near[:, -1:]).log().sum(1)

    return score


def measure(name: str, sizes: tuple[int, int], rivals: dict[str, Score], truth: Score, seconds: float) -> Any:
    """Error of each rival against differences in float64, and its time."""
    queries, samples = sizes
    generator = torch.Generator().manual_seed(0)
    # As after a ReLU and a mean over places: positive, in clusters as training images of one class are.
    centre = torch.randn(1, WIDTH, generator=generator).abs()
    images = [(centre + 0.1 * torch.randn(n, WIDTH, generator=generator)).relu() for n in sizes]
    exact = truth(*images)
    errors = {}
    for rival, call in rivals.items():
        apart = (call(*images).double() - exact).abs()
        errors[rival] = float((apart / exact.abs()).max()) if name == "lid" else apart.max(1).values.tolist()
    timings = interleaved(
        {rival: lambda call=call: call(*images) for rival, call in rivals.items()}, seconds=seconds
    )
    for rival, timing in timings.items():
        print(
            f"{name} {queries} x {samples}, {rival}: {timing.median:.3f} s, error {errors[rival]}", flush=True
        )
    return {
        "case": name,
        "queries": queries,
        "samples": samples,
        "features": WIDTH,
        **({"k": K} if name == "lid" else {"bandwidths": BANDWIDTHS}),
        "error": errors,
        "distance_bytes": {rival: _bytes(rival, queries * samples) for rival in rivals},
        "seconds": {rival: timing.as_dict() for rival, timing in timings.items()},
    }


def _bytes(rival: str, pairs: int) -> int:
    for name, chunk in CHUNKS.items():
        if rival.endswith(name):
            return chunk
    return pairs * (8 if "float64" in rival else 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each case")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("ROBUSTFAST_BENCH_THREADS", "1")))
    result: dict[str, Any] = {
        "command": "python bench/detectors.py",
        "robustfast": robustfast.__version__,
        "hardware": hardware(torch.device("cpu")) | {"system": platform.system()},
        "clock": "CPU time of the process",
        "load": os.getloadavg()[0],
        "rows": [],
    }
    tiled_densities = {
        f"tiles of {name}": lambda queries, samples, size=size: log_densities(
            queries, samples, BANDWIDTHS, chunk_bytes=size
        )
        for name, size in CHUNKS.items()
    }
    tiled_lids = {
        f"tiles of {name}": lambda queries, samples, size=size: lid_estimates(
            queries, samples, [K], leave_out_nearest=False, chunk_bytes=size
        )[K]
        for name, size in CHUNKS.items()
    }
    cases = (
        (
            "kernel density",
            (1000, 5000),
            tiled_densities | {name: densities(*rival, BANDWIDTHS) for name, rival in RIVALS.items()},
            densities(torch.float64, WITH_DIFFERENCES, BANDWIDTHS),
        ),
        (
            "lid",
            (400, 5000),
            tiled_lids | {name: lids(*rival) for name, rival in RIVALS.items()},
            lids(torch.float64, WITH_DIFFERENCES),
        ),
    )
    for name, sizes, rivals, truth in cases:
        result["rows"].append(measure(name, sizes, rivals, truth, arguments.seconds))
        text = json.dumps(result, indent=1) + "\n"
        write_durably(arguments.out, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    main()
