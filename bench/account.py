"""Where each millisecond of a training step goes: `python bench/account.py`, a minute on any machine.

Runs the real code (objective, attack, engine, optimizer) in bf16 and channels-last on tensors without storage, and
counts each operation that it dispatches: launches, bytes, floating-point operations. From these and from the rates of a
GPU, which are arguments and not measured here, follows how long the kernels take at least. An operand counts once, as
if no cache held it from the operation before; a batch norm in train mode reads its own twice.

Three columns: "unfused" is the network as it is written; "folded" has the attack's batch norms folded and
`affine_relu` elsewhere (`robustfast.attacks.folding`); "floor" is what convolutions, matrix products, the attack's step
and the optimizer read and write themselves, with everything else inside them. Writes bench/results/account.json, and
the tables of docs/performance.md, which come from files of results alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from account_tables import (
    FLOOR,
    NETWORKS,
    ORDER,
    SECTIONS,
    STEPS,
    VARIANTS,
    Account,
    Rates,
    Row,
    accounts,
    rendered,
    sums,
    tables,
    times,
    total,
    whole,
)
from hardware import ROOT
from plain_training import PlainTraining
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import robustfast
from robustfast.attacks import ThreeWayPGD, folding
from robustfast.attacks.fold_trace import trace
from robustfast.attacks.range_check import Extremes
from robustfast.data import Batch
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.ops import affine_relu, pgd_step
from robustfast.training.checkpoint import write_durably
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import _commit

RESULT = ROOT / "bench" / "results" / "account.json"
PAGE = ROOT / "docs" / "performance.md"
# The module, whose name the function of the same name hides.
FOLDING = sys.modules["robustfast.attacks.folding"]

# Name here, to preset's ending and changed fields of its objective.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AT": ("at", {"half": False}),
    "AAT": ("aat", {}),
    "AAT++": ("aatpp", {}),
}
CONVOLUTION, PRODUCT, STEP, OPTIMIZER = FLOOR
PLAIN = {"AT": "adversarial", "AAT": "aat", "AAT++": "aatpp"}
# Operation to kind; what is not here is "other".
KINDS = {
    "aten.convolution": CONVOLUTION,
    "aten.convolution_backward": CONVOLUTION,
    "aten.mm": PRODUCT,
    "aten.addmm": PRODUCT,
    "aten.native_batch_norm": "batch norm",
    "aten.native_batch_norm_backward": "batch norm",
    "aten.relu": "ReLU",
    "aten.relu_": "ReLU",
    "aten.threshold_backward": "ReLU",
    "robustfast.affine_relu": "affine_relu",
    "robustfast.affine_relu_backward": "affine_relu",
    "aten.add": "sum",
    "aten.add_": "sum",
    "aten._to_copy": "cast",
    "aten.copy_": "cast",
    "robustfast.pgd_step": STEP,
    "robustfast.random_start": STEP,
    "aten._fused_sgd_": OPTIMIZER,
}
# Of tensors without storage only, or without a kernel.
NOT_OURS = ("prim.", "profiler.", "aten.promote_types", "aten.alias")
NO_KERNEL = {
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty",
    "aten.new_empty_strided",
    "aten.as_strided_",
}


class Counter(TorchDispatchMode):
    """Context manager; adds up what is dispatched inside it, by `section` and kind.

    Args:
        rates: of the GPU that the seconds are for.
    """

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates
        self.section = SECTIONS[2]
        self.found: dict[str, Account] = defaultdict(dict)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        done = func(*args, **(kwargs or {}))
        name = str(func).rpartition(".")[0]
        if not name.startswith(NOT_OURS):
            row = cost(func, name, args, kwargs or {}, done, self.rates)
            account, kind = self.found[self.section], KINDS.get(name, "other")
            account[kind] = account.get(kind, Row()) + row
        return done


def cost(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], done: Any, rates: Rates) -> Row:
    """What one operation costs that was called with `args` and `kwargs` and has returned `done`."""
    schema = func._schema
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    made = any(isinstance(leaf, Tensor) for leaf in tree_leaves(done))
    written = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    if view or name in NO_KERNEL or not (made or written):
        return Row()
    flops = 0
    if name == "aten.convolution":
        flops = _products(done, args[1])
        moved = size(args[0]) + size(args[1]) + size(done)
    elif name == "aten.convolution_backward":
        grad, x, weight, mask = args[0], args[1], args[2], args[-1]
        flops = (mask[0] + mask[1]) * _products(grad, weight)
        # Each of the two is a kernel of its own.
        moved = mask[0] * (size(grad) + size(weight) + size(x)) + mask[1] * (
            size(grad) + size(x) + size(weight)
        )
        return _row(int(mask[0] + mask[1]), moved, flops, rates)
    elif name in ("aten.mm", "aten.addmm"):
        a, b = args[-2:]
        flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
        moved = size(a) + size(b) + size(done)
    else:
        moved = _moved(schema, args, kwargs, done)
        if name == "aten.native_batch_norm" and args[5]:
            moved += size(args[0])
        elif name == "aten.native_batch_norm_backward" and args[7]:
            moved += size(args[0]) + size(args[1])
    return _row(1, moved, flops, rates)


def _row(kernels: int, moved: int, flops: int, rates: Rates) -> Row:
    seconds = max(moved / rates.copy, flops / rates.matrix) + kernels * rates.gap
    return Row(kernels, moved, flops, seconds)


def _products(out: Tensor, weight: Tensor) -> int:
    """Floating-point operations of a convolution: two for each output and each weight that it sees."""
    return 2 * out.numel() * (weight.numel() // weight.shape[0])


def _moved(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any], done: Any) -> int:
    """Bytes of operands read and results written, each once; what is changed in place is read and written."""
    moved = 0
    for position, argument in enumerate(schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        amount = sum(size(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        written = argument.alias_info is not None and argument.alias_info.is_write
        only = written and (argument.is_out or schema.name == "aten::copy_")
        moved += amount * (1 if only or not written else 2)
    fresh = [r.alias_info is None for r in schema.returns]
    results = done if isinstance(done, tuple) else (done,) if len(fresh) == 1 else tuple(done or ())
    for new, result in zip(fresh, results, strict=False):
        moved += new * sum(size(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
    return moved


def size(tensor: Tensor) -> int:
    """Bytes that a tensor has in memory; an expanded dimension is there once."""
    there = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(there) * tensor.element_size() if tensor.numel() else 0


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors without storage, whose pixels and labels cannot be looked at; encoders made of them fold like others."""

    def traced(module: nn.Module) -> Any:
        with unset_fake_temporarily():
            return trace(module)

    with (
        FakeTensorMode(),
        patch.object(Extremes, "check", lambda *_: None),
        patch.object(FOLDING, "obstacle", lambda parts: None),
        patch.object(FOLDING, "trace", traced),
        patch.object(FOLDING, "agrees", lambda *_: True),
    ):
        yield


def channels_last(model: nn.Module) -> None:
    """As `Module.to(memory_format=...)`, which refuses tensors without storage."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 4:
                laid_out = parameter.detach().contiguous(memory_format=torch.channels_last)
                module._parameters[name] = nn.Parameter(laid_out)


def counted(
    network: str, method: str, batch: int, steps: int, rates: Rates, *, side: int = 32
) -> dict[str, Account]:
    """One training step with an attack of `steps` steps: section to account, the whole attack under one section."""
    ending, fields = METHODS[method]
    preset = PRESETS[f"cifar10-prn18-{ending}"]
    config = replace(
        preset,
        objective=replace(preset.objective, **fields),
        attack=replace(preset.attack, steps=steps),
        batch_size=batch,
        precision="bf16",
        channels_last=True,
        device="cpu",
    )
    with without_values():
        model = ThreeWay(network, num_classes=10, in_channels=3)
        channels_last(model)
        objective = OBJECTIVES[config.method](model, config.objective, config.attack, seed=0, engine="eager")
        if isinstance(objective.attack, ThreeWayPGD):
            # As on a GPU.
            objective.attack.batched = True
        engine = Engine(objective, config, torch.device("cpu"))
        objective.begin(0, 1.0)
        x = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        given = Batch(x, torch.randint(10, (batch,)), torch.arange(batch))
        # What is found or made in the first step only is no part of a step.
        engine.compute(given, 0.1)
        counter = Counter(rates)
        _label(counter, objective, "attack", SECTIONS[1])
        for updater in engine.updaters.values():
            _label(counter, updater, "step", SECTIONS[3])
        with counter:
            engine.compute(given, 0.1)
    return dict(counter.found)


def _label(counter: Counter, owner: Any, name: str, section: str) -> None:
    """What `owner.name` dispatches is counted under `section`."""
    call: Callable[..., Any] = getattr(owner, name)

    def labelled(*args: Any, **keywords: Any) -> Any:
        before, counter.section = counter.section, section
        try:
            return call(*args, **keywords)
        finally:
            counter.section = before

    setattr(owner, name, labelled)


def sections(network: str, method: str, batch: int, rates: Rates, *, side: int = 32) -> dict[str, Account]:
    """`SECTIONS` of one training step to their accounts; the first is one step of the attack."""
    one, two = (counted(network, method, batch, steps, rates, side=side) for steps in (1, 2))
    once = one.pop(SECTIONS[1])
    # Both attacks begin and end alike.
    step = sums(two[SECTIONS[1]], times(once, -1))
    return {SECTIONS[0]: step, SECTIONS[1]: sums(once, times(step, -1)), **one}


def plain(network: str, batch: int, rates: Rates) -> dict[str, Account]:
    """`SECTIONS` of AT as people write it, at the same precision and in the same layout, without its optimizer.

    The other methods pick samples by indexing, which tensors without values cannot.
    """
    found = []
    for steps in (1, 2):
        with without_values(), Counter(rates) as counter:
            model = ThreeWay(network, num_classes=10, in_channels=3)
            channels_last(model)
            x = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
            y = torch.randint(10, (batch,))
            strength = replace(PRESETS["cifar10-prn18-at"].attack, steps=steps)
            counter.found.clear()
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = PlainTraining(model, strength).adversarial(x, y)
            loss.backward()
        found.append(counter.found[SECTIONS[2]])
    step = sums(found[1], times(found[0], -1))
    return {SECTIONS[0]: step, SECTIONS[1]: {}, SECTIONS[2]: sums(found[0], times(step, -1)), SECTIONS[3]: {}}


def ops(rates: Rates) -> list[dict[str, Any]]:
    """The ops of a training step by themselves."""
    found = []

    def keep(name: str, case: str, call: Callable[[], Any]) -> None:
        with Counter(rates) as counter:
            call()
        # Sizes given as numbers become scalars of the host.
        row = total(counter.found[SECTIONS[2]], (STEP, "affine_relu"))
        found.append({"op": name, "case": case, **asdict(row)})

    with without_values():
        for shape in ((128, 3, 32, 32), (256, 3, 224, 224)):
            x, grad = torch.rand(shape), torch.rand(shape)
            for norm in ("linf", "l2"):
                call = partial(pgd_step, x, grad, x, step_size=0.01, eps=0.03, norm=norm)
                keep("`pgd_step`", f"{_shown(x)} float32, {norm}", call)
        for channels, side in ((64, 32), (128, 16), (512, 4)):
            x = torch.rand(128, channels, side, side, dtype=torch.bfloat16)
            scale, shift = torch.rand(channels), torch.rand(channels)
            for given in ({}, {"residual": torch.rand_like(x)}):
                leaf = x.detach().requires_grad_()
                out = affine_relu(leaf, scale, shift, **given)
                case = f"{_shown(x)} bf16{', with a sum' if given else ''}"
                keep("`affine_relu`, forward", case, partial(affine_relu, leaf, scale, shift, **given))
                keep(
                    "`affine_relu`, backward",
                    case,
                    partial(torch.autograd.grad, out, leaf, torch.rand_like(x)),
                )
    return found


def _shown(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def forward_flops(network: str, *, side: int = 32) -> int:
    """Floating-point operations of F: one forward pass of one encoder over one image."""
    with without_values():
        encoder = ThreeWay(network, num_classes=10, in_channels=3).encoder_r.eval()
        with torch.no_grad(), Counter(Rates(1, 1, 0, 0)) as counter:
            encoder(torch.rand(1, 3, side, side))
    return total(counter.found[SECTIONS[2]], (CONVOLUTION,)).flops


def plain_passes(method: str) -> float:
    """F that the same step takes where it is written as people write it, counted on a small network.

    A first convolution's gradient to the images counts where training spares it, as it does in the passes of ours.
    """
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    strength = replace(PRESETS["digits-at"].attack, steps=STEPS)
    convolutions = [part for part in model.encoder_r.modules() if isinstance(part, nn.Conv2d)]
    passes = Convolutions()
    with passes:
        loss, _ = getattr(PlainTraining(model, strength), PLAIN[method])(
            torch.rand(4, 1, 8, 8), torch.arange(4)
        )
        loss.backward()
    return passes.count / len(convolutions)


class Convolutions(TorchDispatchMode):
    """Context manager; counts convolutions and the gradients that their backward is asked for.

    Where weights get a gradient and the input, being images, gets none, that one is counted too.
    """

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.count += 1
        elif func is torch.ops.aten.convolution_backward.default:
            to_input, to_weight, _ = args[-1]
            self.count += 2 if to_weight else to_input
        return func(*args, **(kwargs or {}))


def case(network: str, method: str, batch: int, rates: Rates) -> dict[str, Any]:
    """One entry of the file."""
    forward = forward_flops(network)
    entry: dict[str, Any] = {"network": network, "method": method, "batch": batch, "forward_flops": forward}
    for variant in VARIANTS:
        with folding("on" if variant == "folded" else "off"):
            found = sections(network, method, batch, rates)
        flops = total(whole(found), (CONVOLUTION,)).flops
        entry |= {"passes": flops / (forward * batch), "plain_passes": plain_passes(method), "flops": flops}
        entry[variant] = {
            name: {kind: asdict(account[kind]) for kind in ORDER if kind in account}
            for name, account in found.items()
        }
    if method == "AT":
        made = plain(network, batch, rates)
        entry["plain"] = {name: {kind: asdict(row) for kind, row in a.items()} for name, a in made.items()}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copy", type=float, default=4.3e12, help="bytes per second of a copy")
    parser.add_argument(
        "--matrix", type=float, default=790e12, help="of a large bf16 matrix product, per second"
    )
    parser.add_argument("--launch", type=float, default=10e-6, help="seconds of the host for each kernel")
    parser.add_argument("--gap", type=float, default=1e-6, help="seconds between two kernels of a graph")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON")
    parser.add_argument(
        "--page", type=Path, help="page whose tables are made anew; the default file's is its own"
    )
    options = parser.parse_args()
    rates = Rates(options.copy, options.matrix, options.launch, options.gap)
    report: dict[str, Any] = {
        "what": "operations that the code dispatches, counted; seconds follow from the rates, which are not measured",
        "robustfast": robustfast.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "rates": asdict(rates),
        "attack_steps": STEPS,
        "precision": "bf16, channels-last",
        "ops": ops(rates),
        "cases": [],
    }
    for network in options.networks:
        for method in options.methods:
            entry = case(network, method, options.batch_size, rates)
            report["cases"].append(entry)
            shown = ", ".join(
                f"{column} {1e3 * total(whole(accounts(entry, column))).seconds:.1f} ms"
                for column in (*VARIANTS, "floor")
            )
            print(f"{NETWORKS[network]}, {method}: {entry['passes']:.1f}F, {shown}", flush=True)
    text = json.dumps(report, indent=1) + "\n"
    write_durably(options.out, lambda file: file.write(text.encode()))
    page = options.page or (PAGE if options.out == RESULT else None)
    if page is not None:
        text = rendered(page.read_text(), tables(report))
        write_durably(page, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
