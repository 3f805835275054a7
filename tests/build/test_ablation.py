"""The ablation, really made on the CPU: that each lever is out where it is said to be, and equality before time."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation
import pytest
import torch
from ablation import LEVERS, VARIANTS, Bench, Case, Measured, Ours, makes_no_difference
from torch.utils._python_dispatch import TorchDispatchMode
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = ["--models", "digits_cnn", "--batches", "4", "--steps", "1", "--seconds", "0"]


def case(method: str = "at", device: str = "cpu", model: str = "digits_cnn") -> Case:
    return Case(model, method, batch=4, steps=2, device=torch.device(device))


class Calls(TorchDispatchMode):
    """Counts what is computed inside: gradients of convolutions' weights, casts to bfloat16, images' layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_gradients = self.casts = 0
        self.fused: set[str] = set()
        self.dtypes: set[torch.dtype] = set()
        self.last: set[bool] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.weight_gradients += args[-1][1]
        if func is torch.ops.aten.convolution.default:
            self.dtypes.add(args[0].dtype)
            self.last.add(args[1].is_contiguous(memory_format=torch.channels_last))
        if "affine_relu" in func.name():
            self.fused.add(func.namespace)
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.casts += 1
        return func(*args, **(kwargs or {}))


def step_of(variant: str, method: str = "at") -> tuple[Ours, Calls]:
    ours = Ours(case(method), VARIANTS[variant])
    with Calls() as calls:
        ours.step()
    return ours, calls


def test_only_the_variant_with_weight_gradients_has_them_in_its_attack() -> None:
    # Two convolutions, each with a weight gradient in the training pass; two steps of the attack.
    counted = {
        name: step_of(name)[1].weight_gradients for name in ("without fold", "without input-gradients")
    }
    layers = counted["without fold"]
    assert layers > 0
    assert counted["without input-gradients"] == 3 * layers


def test_casts_are_kept_but_in_the_variant_without() -> None:
    kept, made = (step_of(name)[1].casts for name in ("without fold", "without cached-casts"))
    assert made > kept


def test_encoders_are_folded_and_their_relus_fused_but_in_the_variants_without() -> None:
    assert step_of("ours")[1].fused == {"robustfast"}
    assert step_of("without affine-relu")[1].fused == {"robustfast_reference"}
    assert step_of("without fold")[1].fused == set()


def test_precision_and_layout_are_as_said() -> None:
    _, calls = step_of("ours")
    assert calls.dtypes == {torch.bfloat16}
    assert step_of("without half-precision")[1].dtypes == {torch.float32}
    layouts = {}
    for name in ("ours", "without channels-last"):
        model = Ours(case(model="small_cnn"), VARIANTS[name]).model
        weight = next(p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1)
        layouts[name] = weight.is_contiguous(memory_format=torch.channels_last)
    assert layouts == {"ours": True, "without channels-last": False}


def test_the_optimizer_is_fused_but_in_the_variant_without() -> None:
    for name, fused in (("ours", True), ("without fused-optimizer", False)):
        ours, _ = step_of(name)
        (updater,) = ours.runner.updaters.values()
        assert bool(updater._optimizer.defaults["fused"]) is fused, name


def test_terms_stay_on_the_device_but_in_the_variant_without() -> None:
    ours, _ = step_of("ours")
    assert ours.meter.images == 4
    read, _ = step_of("without device-metrics")
    assert read.meter.images == 0
    assert read.read["loss"] > 0


def test_attacks_are_batched_unless_they_are_not() -> None:
    assert Ours(case("aatpp"), VARIANTS["ours"]).runner.objective.attack.batched == "auto"
    assert Ours(case("aatpp"), VARIANTS["without batched"]).runner.objective.attack.batched is False


class Recorded:
    """Stands where a whole step would be captured."""

    def __init__(self, engine: Any, *, late: bool, say: Callable[[str], Any]) -> None:
        self.engine, self.late = engine, late


def test_graphs_hold_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "has_graphs", lambda device: True)
    monkeypatch.setattr(ablation, "WholeStep", Recorded)

    def runner(variant: str) -> Any:
        return Ours(case(), VARIANTS[variant]).runner

    assert runner("ours").late is True
    assert runner("ours").engine.config.whole_step == "graph"
    assert runner("without device-metrics").late is False
    for variant in ("attack-graph alone", "without fused-optimizer"):
        assert not isinstance(runner(variant), Recorded)
        assert runner(variant).objective.engine == "graph"
    alone = runner("without whole-step")
    assert not isinstance(alone, Recorded)
    assert alone.objective.engine == "eager"


def test_two_variants_tell_a_lever_apart_and_nothing_else() -> None:
    assert {lever for off in VARIANTS.values() for lever in off} == set(LEVERS)
    for lever, (with_, without) in LEVERS.items():
        apart = VARIANTS[without] - VARIANTS[with_]
        # A whole step as a graph is held against the same kernels without any graph.
        assert apart == {lever} | ({"attack-graph"} if lever == "whole-step" else set()), lever
        assert VARIANTS[with_] <= VARIANTS[without], lever


@pytest.mark.parametrize(
    ("method", "device", "expected"),
    [
        ("aatpp", "cuda", set()),
        ("aat", "cuda", {"without batched"}),
        ("at", "cuda", {"without batched", "without two-streams"}),
        (
            "aatpp",
            "cpu",
            {"without batched", "without two-streams", "without whole-step", "attack-graph alone"},
        ),
    ],
)
def test_what_makes_no_difference_is_said(method: str, device: str, expected: set[str]) -> None:
    reasons = {name: makes_no_difference(case(method, device, "preact_resnet18"), name) for name in VARIANTS}
    assert {name for name, reason in reasons.items() if reason} == expected


def test_flops_are_passes_times_those_of_an_encoder() -> None:
    by_method = {m: Case("preact_resnet18", m, 128, 10, CPU).flops for m in ("at", "aat", "aatpp")}
    passes = {"at": 23, "aat": 54, "aatpp": 101}
    for method, flops in by_method.items():
        assert flops / (passes[method] * 128 * 1.11e9) == pytest.approx(1, rel=0.01)


def test_a_gain_is_the_time_without_by_the_time_with() -> None:
    measured = Measured(case(), flops=6)
    measured.ratio = {"ours": 1.0, "without fold": 1.5, "without input-gradients": 2.25}
    measured.seconds = {"ours": {"median": 2.0}}
    found = measured.as_dict(peak=12.0)
    assert found["gain"] == {"fold": 1.5, "input-gradients": 1.5}
    assert found["share_of_matrix_peak"] == 6 / 2 / 12


def options(**given: Any) -> Namespace:
    return Namespace(**({"seconds": 0.0, "traces": False, "device": CPU} | given))


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(case(), flops=1)
    bench = Bench(measured, options())
    bench.attempt("ours")
    # Stale weights, as a graph would read them that was captured before they were replaced.
    gradient_of = ablation.first_gradient

    def stale(variant: Any) -> list[torch.Tensor]:
        found = gradient_of(variant)
        return [value.roll(1) for value in found] if "fold" in getattr(variant, "off", ()) else found

    monkeypatch.setattr(ablation, "first_gradient", stale)
    bench.attempt("without fold")
    bench.attempt("without channels-last")
    assert set(measured.seconds) == {"ours", "without channels-last"}
    assert "gradient is wrong" in measured.not_run["without fold"]
    assert measured.equal["without fold"] > measured.allowed["without fold"]


def test_a_fold_that_does_not_happen_is_not_timed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    build = ablation.initial_model

    def hooked(*given: Any) -> torch.nn.Module:
        model = build(*given)
        for part in model.encoder_r.modules():
            part.register_forward_hook(lambda *_: None)
        return model

    monkeypatch.setattr(ablation, "initial_model", hooked)
    measured = Measured(case(), flops=1)
    bench = Bench(measured, options())
    bench.attempt("ours")
    assert not measured.seconds
    assert "encoder r is not folded: it has hooks" in measured.not_run["ours"]


def test_a_gradient_that_lacks_a_tensor_or_is_not_finite_is_wrong() -> None:
    with pytest.raises(ablation.DiffersError, match="of 1 tensors, not 2"):
        ablation.relative_error([torch.ones(2)], [torch.ones(2), torch.ones(2)])
    assert ablation.relative_error([torch.full((2,), 2.0)], [torch.ones(2)]) == 1.0
    assert not ablation.relative_error([torch.full((2,), float("nan"))], [torch.ones(2)]) <= 1.0


def test_the_gradient_that_is_checked_is_of_the_weights_all_start_from() -> None:
    ours = Ours(case(), VARIANTS["ours"])
    start = {name: value.clone() for name, value in ours.model.state_dict().items()}
    places = [p.data_ptr() for p in ours.model.parameters()]
    seen: list[bool] = []
    step: Callable[..., None] = ours.step

    def watched(*rate: float) -> None:
        seen.append(all(torch.equal(v, start[name]) for name, v in ours.model.state_dict().items()))
        step(*rate)

    ours.step = watched  # type: ignore[method-assign]
    ablation.first_gradient(ours)
    assert seen[0]
    assert not any(seen[1:-1])
    assert seen[-1]
    # In place: graphs read the weights where they lie.
    assert places == [p.data_ptr() for p in ours.model.parameters()]


def test_the_report_as_a_whole(warm: Warm, tmp_path: Path) -> None:
    out = tmp_path / "ablation.json"
    done = warm.run("bench/ablation.py", "--device", "cpu", "--out", out, *TINY, "--methods", "at", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["matrix_peak"] > 0
    assert report["copy_bandwidth"] > 0
    assert {"device", "torch", "commit"} <= set(report["hardware"])
    assert set(report["levers"]) == set(LEVERS)
    (found,) = report["cases"]
    assert (found["model"], found["method"], found["batch"], found["steps"]) == ("digits_cnn", "at", 4, 1)
    everything = {"people", "reference", *VARIANTS}
    assert set(found["seconds"]) | set(found["not_run"]) == everything
    assert not set(found["seconds"]) & set(found["not_run"])
    assert all("gpu" in r.lower() or "no difference" in r for r in found["not_run"].values()), found[
        "not_run"
    ]
    ours = found["seconds"]["ours"]["median"]
    assert found["share_of_matrix_peak"] == pytest.approx(found["flops"] / ours / report["matrix_peak"])
    for variant, error in found["equal"].items():
        assert error <= found["allowed"].get(variant, 0.5), variant
    assert found["equal"]["people"] < 1e-4
    assert {"fold", "input-gradients"} <= set(found["gain"])
    assert "whole-step" not in found["gain"]
    assert str(ROOT) not in out.read_text()
    assert "without input-gradients" in done.stdout


def test_past_its_minutes_it_measures_no_more(warm: Warm, tmp_path: Path) -> None:
    out = tmp_path / "late.json"
    done = warm.run("bench/ablation.py", "--device", "cpu", "--out", out, *TINY, "--minutes", "0", cwd=ROOT)
    assert done.returncode == 1
    cases = json.loads(out.read_text())["cases"]
    assert {found["method"] for found in cases} == {"at", "aat", "aatpp"}
    assert all(set(found["not_run"].values()) == {"past --minutes 0"} for found in cases)
    assert all("share_of_matrix_peak" not in found for found in cases)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["at", "aatpp"])
def test_on_a_gpu_every_lever_is_measured(tmp_path: Path, warm: Warm, method: str) -> None:
    out = tmp_path / "ablation.json"
    done = warm.run(
        "bench/ablation.py", "--device", "cuda", "--out", out, *TINY, "--methods", method, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(out.read_text())["cases"]
    assert set(found["not_run"]) == ({"without batched", "without two-streams"} if method == "at" else set())
    assert "whole-step" in found["gain"]
