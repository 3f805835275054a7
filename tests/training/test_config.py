"""The configuration: checked when made, stored and read back without loss, compared field by field."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from robustfast.errors import UserError
from robustfast.models import NETWORKS
from robustfast.training.config import TrainConfig, differences, from_json, to_json
from robustfast.training.presets import PRESETS

CONFIG = PRESETS["digits-aatpp"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_stored_configuration_comes_back(name: str) -> None:
    config = replace(PRESETS[name], data_dir=Path("some/where"))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_out_is_not_stored() -> None:
    assert from_json(to_json(replace(CONFIG, out=Path("runs/a")))).out is None


def test_differences_name_the_flags() -> None:
    changed = replace(CONFIG, lr=0.3, attack=replace(CONFIG.attack, steps=7), batch_size=7)
    assert differences(changed, CONFIG) == [
        f"--attack.steps 7 (was {CONFIG.attack.steps})",
        f"--batch-size 7 (was {CONFIG.batch_size})",
        f"--lr 0.3 (was {CONFIG.lr})",
    ]


def test_where_it_runs_may_differ() -> None:
    moved = replace(CONFIG, device="cpu", data_dir=Path("/elsewhere"), checkpoint_steps=5, out=Path("x"))
    assert differences(moved, CONFIG) == []


def test_configuration_of_another_version() -> None:
    stored = to_json(CONFIG)
    with pytest.raises(UserError, match="unknown fields: shiny"):
        from_json(stored | {"shiny": 1})
    del stored["lr"]
    with pytest.raises(UserError, match="lacks the fields: lr"):
        from_json(stored)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, r"--epochs 0: expected at least 1"),
        ({"batch_size": -3}, r"--batch-size -3: expected at least 1"),
        ({"lr": float("nan")}, r"--lr nan: expected a finite number"),
        ({"momentum": -0.1}, r"--momentum -0.1"),
        ({"weight_decay": float("inf")}, r"--weight-decay inf"),
        ({"milestones": (90, 75)}, r"--milestones 90,75: expected growing epochs"),
        ({"accumulate": 0}, r"--accumulate 0: expected at least 1"),
        ({"early_stop": -1}, r"--early-stop -1: expected at least 0"),
        ({"hold_out": -1}, r"--hold-out -1: expected at least 0"),
        ({"warmup": -0.5}, r"--warmup -0.5: expected a finite number of at least 0"),
        ({"clip_norm": float("nan")}, r"--clip-norm nan: expected a finite number"),
        ({"clip_value": -1.0}, r"--clip-value -1.0: expected a finite number"),
        ({"betas": (0.9, 1.0)}, r"--betas 0.9 1.0: expected two numbers in \[0, 1\)"),
        ({"ema_decay": 1.0}, r"--ema-decay 1.0: expected a number between 0 and 1"),
        ({"ema_decay": float("nan")}, r"--ema-decay nan"),
        ({"swa_start": 1.0}, r"--swa-start 1.0: expected a share of the training in \[0, 1\)"),
        ({"optimizer": "adam"}, r"--optimizer 'adam': expected one of sgd, adamw"),
        ({"schedule": "step"}, r"--schedule 'step': expected one of multistep, onecycle, cosine, constant"),
        ({"average": "mean"}, r"--average 'mean': expected one of none, ema, swa"),
        ({"precision": "fp8"}, r"--precision 'fp8': expected one of fp32, bf16, fp16"),
        ({"batch_norm": "global"}, r"--batch-norm 'global': expected one of local, sync"),
    ],
)
def test_fields_out_of_range(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as failure:
        replace(CONFIG, **fields)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 8, "accumulate": 9}, r"--accumulate 9: expected at most --batch-size, 8"),
        (
            {"clip_norm": 1.0, "clip_value": 0.1},
            r"--clip-norm 1.0 and --clip-value 0.1: expected one of them",
        ),
        ({"warmup": 40.0, "schedule": "cosine"}, r"--warmup 40.0: expected fewer than the 40 of --epochs"),
        ({"warmup": 1.0}, r"--warmup 1.0 with --schedule onecycle, which warms up by itself"),
        ({"nesterov": True, "optimizer": "adamw"}, r"--nesterov is a momentum of SGD"),
        ({"nesterov": True, "momentum": 0.0}, r"--nesterov .* --momentum above 0"),
        ({"early_stop": 5}, r"--early-stop 5 without --hold-out: .* as --hold-out 1000"),
        ({"hold_out": 100, "validate_every": 0}, r"--hold-out 100 with --validate-every 0"),
        ({"optimizer_impl": "apex", "device": "cpu"}, r"--optimizer-impl apex with --device cpu"),
        ({"whole_step": "graph", "device": "cpu"}, r"--whole-step graph with --device cpu"),
        ({"whole_step": "graph", "optimizer_impl": "apex"}, r"--whole-step graph with --optimizer-impl apex"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as failure:
        replace(CONFIG, **fields)
    assert "\n" not in str(failure.value)


def test_every_new_field_together() -> None:
    config = replace(
        CONFIG,
        optimizer="sgd",
        nesterov=True,
        schedule="cosine",
        warmup=0.5,
        clip_norm=1.0,
        accumulate=120,
        average="ema",
        early_stop=3,
        hold_out=100,
        precision="bf16",
        channels_last=True,
    )
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


# As robustfast 0.1.0 stored it.
OLD = """{
    "preset": "digits-aatpp", "method": "aatpp", "dataset": "digits", "model": "digits_cnn",
    "objective": {"terms": ["st", "as", "ar", "an"]},
    "attack": {"eps": 0.1, "step_size": 0.03, "steps": 5, "norm": "linf", "step": "auto", "random_start": "ball",
        "ramp": 0.4},
    "epochs": 40, "batch_size": 120, "lr": 0.05, "weight_decay": 0.0005, "momentum": 0.9, "schedule": "onecycle",
    "milestones": [], "augment": false, "precision": "fp32", "channels_last": false, "backend": "auto",
    "engine": "auto", "device": "auto", "threads": 1, "seed": 3, "data_dir": null, "image_size": null,
    "checkpoint_steps": 0, "validate_every": 5, "validate_images": 128, "tensorboard": true
}"""


def test_configuration_of_the_version_before_is_read() -> None:
    config = from_json(json.loads(OLD))
    assert config == replace(CONFIG, seed=3)
    assert (config.optimizer, config.optimizer_impl, config.nesterov, config.accumulate) == (
        "sgd",
        "auto",
        False,
        1,
    )
    assert (config.clip_norm, config.clip_value, config.warmup, config.average) == (0, 0, 0, "none")
    assert (config.early_stop, config.hold_out, config.loader, config.whole_step) == (0, 0, "auto", "eager")


def test_the_help_names_a_network_of_each_family() -> None:
    """Of CD-VAE's those of one data set and one way stand for the others."""
    told = inspect.getsource(TrainConfig)
    for name in NETWORKS:
        family = re.sub(
            r"_vae_(s|r|rn)$", "_vae_n", re.sub(r"^(mnist|cifar|imagenet)_(unet|ape)", r"digits_\2", name)
        )
        assert re.search(rf"\b{family}\b", told), family
