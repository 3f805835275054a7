"""Whether a fused op for RFD's divergences would pay: `python bench/pairwise_kl.py`.

Forward and backward of the loss L_kl of one domain from three batches of features: by the plain formula ("eager"), by
the one without logarithms, which is the objective's own, both also compiled (the divergences alone, and the loss as a
whole), and by the prototype of a fused C++ op in pairwise_kl.cpp, which this script builds in a temporary folder. All
are first held to the plain formula in float64.
Beside it: what share of a training step of `digits-rfd` the loss is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hardware import hardware
from measure import interleaved
from torch import Tensor

import robustfast
from robustfast.data import feed, load
from robustfast.models import NETWORKS
from robustfast.objectives import OBJECTIVES
from robustfast.objectives.rfd_losses import divergences, kl_loss
from robustfast.training.checkpoint import write_durably
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "pairwise-kl.json"
CPU = torch.device("cpu")
CASES = {"WRN-34-10": (128, 640), "digits": (120, 128)}
"""Network to batch and features."""
PAIRS = ((0, 1), (0, 2), (1, 2))

Divergences = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(r: Tensor, n: Tensor, d: Tensor) -> Tensor:
    """The reference, [3, B]: ``sum (p - q)(log p - log q)``."""
    log_p = [value.log_softmax(1) for value in (r, n, d)]
    p = [value.exp() for value in log_p]
    return torch.stack([((p[i] - p[j]) * (log_p[i] - log_p[j])).sum(1) for i, j in PAIRS])


def without_logarithms(r: Tensor, n: Tensor, d: Tensor) -> Tensor:
    """The same by ``sum (p - q)(x - y)``, as the objective computes it."""
    return divergences({"r": r, "n": n, "d": d})


def loss_of(found: Divergences) -> Divergences:
    return lambda r, n, d: torch.exp(-found(r, n, d)).mean()


def training(loss: Divergences, features: list[Tensor]) -> Callable[[], list[Tensor]]:
    """The loss and its gradients."""

    def run() -> list[Tensor]:
        leaves = [value.detach().requires_grad_() for value in features]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    return run


def fused() -> Divergences:
    """The prototype, built."""
    from torch.utils.cpp_extension import load as build

    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O3", "-std=c++20", "-ffp-contract=off"]
        source = [str(HERE / "pairwise_kl.cpp")]
        return build("pairwise_kl", source, extra_cflags=flags, build_directory=folder).pairwise_kl


def measure(case: str, prototype: Divergences, seconds: float) -> dict[str, Any]:
    """One size: error of each rival against float64, and its time."""
    torch._dynamo.reset()
    B, H = CASES[case]
    generator = torch.Generator().manual_seed(0)
    # As after a ReLU and a mean over 64 places.
    features = [torch.randn(B, H, generator=generator).abs() for _ in range(3)]
    losses = {
        "eager": loss_of(plain),
        "eager, no logarithms": loss_of(without_logarithms),
        "compiled divergences": loss_of(torch.compile(plain, fullgraph=True)),
        "compiled divergences, no logarithms": loss_of(torch.compile(without_logarithms, fullgraph=True)),
        "compiled loss": torch.compile(loss_of(plain), fullgraph=True),
        "compiled loss, no logarithms": torch.compile(loss_of(without_logarithms), fullgraph=True),
        "fused": loss_of(prototype),
    }
    right = training(loss_of(plain), [value.double() for value in features])()
    rivals = {name: training(loss, features) for name, loss in losses.items()}
    errors = {}
    for name, call in rivals.items():
        pairs = list(zip(call(), right, strict=True))
        errors[name] = max(float((mine - exact).norm() / exact.norm()) for mine, exact in pairs)
        assert errors[name] < 1e-5, (name, errors[name])
    timings = interleaved(rivals, seconds=seconds)
    ours = timings["fused"].median
    ratio = {name: timing.median / ours for name, timing in timings.items()}
    shown = ", ".join(f"{name} {1e6 * t.median:.0f} us x{ratio[name]:.2f}" for name, t in timings.items())
    print(f"{case} [{B}, {H}]: {shown}", flush=True)
    seconds_ = {name: timing.as_dict() for name, timing in timings.items()}
    return {
        "case": case,
        "batch": B,
        "features": H,
        "error": errors,
        "seconds": seconds_,
        "ratio_to_fused": ratio,
    }


def share(steps: int) -> dict[str, Any]:
    """The loss of both domains, forward and backward, in a training step of `digits-rfd`."""
    config = replace(PRESETS["digits-rfd"], device="cpu")
    torch.manual_seed(0)
    data = load(config.dataset, "train")
    model = NETWORKS[config.network](config.model, num_classes=data.num_classes, in_channels=data.channels)
    objective = OBJECTIVES[config.method](model, config.objective, config.attack, seed=0)
    engine = Engine(objective, config, CPU)
    source = feed(data, config.batch_size, seed=0, say=None)
    whole, part = [], []
    for number, batch in enumerate(source.batches(0)):
        if number == steps:
            break
        # Past the growth of the attack's radius; the number of attack steps is drawn anew for each batch.
        objective.begin(0, 0.5 + number / 1000)
        with torch.no_grad():
            z = model.encode(batch.x)
        leaves = {name: value.requires_grad_() for name, value in z.items()}
        start = time.process_time()
        torch.autograd.grad(kl_loss(leaves, leaves, "repel"), list(leaves.values()))
        middle = time.process_time()
        engine.step(batch, lr=0.01)
        whole.append(time.process_time() - middle)
        part.append(middle - start)
    source.close()
    step, loss = statistics.median(whole[1:]), statistics.median(part[1:])
    print(f"digits-rfd: a step {step:.3f} s, the divergences in it {1e3 * loss:.2f} ms, {loss / step:.2%}")
    return {"preset": "digits-rfd", "step_seconds": step, "kl_seconds": loss, "share": loss / step}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each size")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("ROBUSTFAST_BENCH_THREADS", "1")))
    prototype = fused()
    result: dict[str, Any] = {
        "command": "python bench/pairwise_kl.py",
        "robustfast": robustfast.__version__,
        "hardware": hardware(CPU) | {"system": platform.system()},
        "clock": "CPU time of the process",
        "load": os.getloadavg()[0],
        "training_step": share(6),
        "rows": [],
    }
    # After each case: what a run cut short has measured stays.
    for case in CASES:
        result["rows"].append(measure(case, prototype, arguments.seconds))
        text = json.dumps(result, indent=1) + "\n"
        write_durably(arguments.out, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    main()
