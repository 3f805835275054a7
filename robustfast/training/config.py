"""What a training run is made of: one typed, immutable record, stored with the run and read back from it."""

import dataclasses
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustfast.attacks.config import AttackConfig
from robustfast.errors import UserError
from robustfast.models import NETWORKS
from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup

__all__ = ["MAY_CHANGE", "TrainConfig", "differences", "from_json", "to_json"]

# What a resumed run may do otherwise than before: where it runs and how often it saves, never what it computes.
MAY_CHANGE = frozenset({"checkpoint_steps", "data_dir", "device", "loader", "tensorboard"})


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        UserError: a field out of its range; the message names its flag.
    """

    preset: tyro.conf.Suppress[str]
    """Name of the preset this started from."""
    method: tyro.conf.Suppress[str]
    """Name of the objective in `OBJECTIVES`; `objective` holds its fields."""
    dataset: str
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, svhn, image_folder, tiny_imagenet, imagenette or
    restricted_imagenet."""
    model: str
    """Backbone of the encoders: digits_cnn, small_cnn, narrow_resnet (MNIST), resnet18, resnet50, preact_resnet18,
    wide_resnetDEPTH_WIDTH, wide_resnetDEPTH_WIDTH_dropout; with timm installed inception_v4, inception_resnet_v2,
    resnetv2_152."""
    objective: Any
    """What the objective itself can be told."""
    attack: AttackConfig
    """The attack that training uses."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images a step, those of all processes together."""
    lr: float
    """Learning rate: the first of `multistep`, the highest of `onecycle`."""
    weight_decay: float
    """L2 penalty of the weights; `optimizer` says how it acts."""
    network: str = "three_way"
    """What is built around the backbone: three_way (two encoders and a shared head), one_way (a linear classifier),
    unit_norm (the same behind features of unit length), disentangled (RFD's three encoders over one extractor),
    CD-VAE's auto-encoder with the ways that are read (digits_vae_n, mnist_vae_n, cifar_vae_n, vq_vae_n for ImageNet's
    images, and _r, _s, _rn), or a denoiser before a classifier: digits_unet (HGD's) and digits_ape (APE-GAN's), and so
    mnist_, cifar_ and imagenet_."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: weight decay joins the gradient. adamw: weight decay apart from it."""
    optimizer_impl: Literal["auto", "torch", "apex"] = "auto"
    """Whose fused kernels: torch's own or, where they are built, NVIDIA apex's; auto is torch."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decays of AdamW's two running means."""
    schedule: Literal["multistep", "onecycle", "cosine", "constant"] = "multistep"
    """multistep: a tenth after each milestone. onecycle: up and down along cosines. cosine: down to `final_lr` along
    one."""
    final_lr: float = 0.0
    """Where `cosine` ends, as a share of `lr`."""
    milestones: tuple[int, ...] = ()
    """Epochs after which `multistep` divides the learning rate by ten."""
    warmup: float = 0.0
    """Epochs, also parts of one, over which the learning rate grows linearly from near 0 to where the schedule is."""
    clip_norm: float = 0.0
    """Scale the gradient of each step down to this l2 norm where it is longer; 0: never."""
    clip_value: float = 0.0
    """Clip each entry of the gradient to this magnitude; 0: never."""
    accumulate: int = 1
    """Parts in which each batch is computed one after the other, to save memory; the gradients add up."""
    average: Literal["none", "ema", "swa"] = "none"
    """Average of the weights over the steps, which is then what is checked and evaluated: exponential (ema) or, from
    `swa_start` on, plain (swa)."""
    ema_decay: float = 0.999
    """Weight of the past in each step of the exponential average; less in its first steps."""
    swa_start: float = 0.75
    """Share of the training after which the plain average begins."""
    early_stop: int = 0
    """Stop after so many checks without a better robust accuracy on held-out training images; 0: never."""
    hold_out: int = 0
    """Training images never trained on, which the checks use instead of test images; 0: none."""
    augment: bool = False
    """Crop at random, and mirror half of the images left to right."""
    crop: Literal["pad", "resized"] = "pad"
    """pad: shifted by up to 4 pixels over a black frame. resized: part of an image file, 8 to 100 % of its area."""
    rand_augment: bool = False
    """RandAugment with two operations, then a grey square of 16 pixels (FixMatch's pool)."""
    loader: Literal["auto", "resident", "dali", "torch"] = "auto"
    """What serves the images: all of them on the device, NVIDIA DALI, or PyTorch's DataLoader."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of convolutions and matrix products; images, batch-norm statistics, losses, weights stay float32."""
    channels_last: bool = False
    """Memory layout NHWC: faster for most convolutions, other rounding."""
    backend: Literal["auto", "reference", "cpp", "cuda", "triton"] = "auto"
    """Which implementation of the fused ops; auto takes the fastest for the device."""
    engine: Literal["auto", "eager", "compile", "graph"] = "auto"
    """How the attack loop runs: eagerly, compiled, or as one CUDA graph."""
    fold: Literal["auto", "on", "off"] = "auto"
    """Whether attacks run frozen encoders with batch norms folded, ReLUs fused, weights cast once; auto: on a GPU."""
    whole_step: Literal["eager", "graph"] = "eager"
    """graph: attack, training passes and optimizer as one CUDA graph."""
    batch_norm: Literal["local", "sync"] = "local"
    """With several processes: statistics of each one's part of the batch, or of the whole batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    threads: int = 0
    """CPU threads; 0: as many as torch takes. The same number gives the same bits."""
    start_from: tuple[str, ...] = ()
    """Runs to start from: RUN gives all parts of its model that have the same names here, PART=RUN that one part, by
    whatever name it has there; PART=FILE takes a file of weights."""
    seed: int = 0
    """From which weights, data order, crops, dropout and attacks derive."""
    data_dir: Path | None = None
    """Folder of the data sets; without it $ROBUSTFAST_DATA, else ./data."""
    image_size: int | None = None
    """Side in pixels to which image files are brought; without it those of image_folder must have one size."""
    out: Path | None = None
    """Run folder, which must be new or empty; without it the next free runs/PRESET-seedN."""
    checkpoint_steps: int = 0
    """Also checkpoint every so many steps inside an epoch; 0: after each epoch only."""
    validate_every: int = 1
    """Check on held-out images after every so many epochs, and after the last one; 0: never."""
    validate_images: int = 512
    """Held-out images (spread over the test split) that this check takes; 0: no check."""
    tensorboard: bool = True
    """Write TensorBoard events (where the tensorboard package is installed)."""

    @property
    def attack_engine(self) -> str:
        """The engine that attacks are given: a loop that cannot become a graph runs eagerly, and a warning says why."""
        return "auto" if self.engine == "graph" else self.engine

    @property
    def ways(self) -> str:
        """The ways that are trained."""
        return lookup("objective", OBJECTIVES, self.method).trained_ways(self.objective)

    @property
    def main_way(self) -> str:
        """The way that is attacked: the robust one where it is trained, else the first, as best.pt goes by."""
        return "r" if "r" in self.ways else self.ways[0]

    def __post_init__(self) -> None:
        _check_names(self)
        _check_numbers(self)
        _check_combinations(self)


def to_json(config: TrainConfig) -> dict[str, Any]:
    """JSON-ready values: nested dictionaries, paths as text, without `out` (the file lies there)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, tuple | list):
            return [plain(entry) for entry in value]
        return str(value) if isinstance(value, Path) else value

    values = plain(dataclasses.asdict(config))
    del values["out"]
    return values


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_json`, with `out` None.

    Raises:
        UserError: a field is missing or unknown (the run is of another version), or out of its range.
    """
    objective = lookup("objective", OBJECTIVES, values.get("method", "")).Config
    return _build(TrainConfig, values, {"objective": objective})


def differences(new: TrainConfig, old: TrainConfig) -> list[str]:
    """``--flag NEW (was OLD)`` of each field in which they differ, save `out` and those in `MAY_CHANGE`."""
    return [
        f"--{_flag(name)} {value} (was {old_value})"
        for name, value, old_value in _changed(to_json(new), to_json(old))
        if name not in MAY_CHANGE
    ]


def _changed(new: dict[str, Any], old: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for name in new:
        if isinstance(new[name], dict) and isinstance(old[name], dict):
            found += _changed(new[name], old[name], f"{prefix}{name}.")
        elif new[name] != old[name]:
            found.append((f"{prefix}{name}", new[name], old[name]))
    return found


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _check_names(config: TrainConfig) -> None:
    """Every field that takes one of a few names has one: configurations are also made in Python and read from files."""
    lookup("network", NETWORKS, config.network)
    for field, names in _names().items():
        if (value := getattr(config, field)) not in names:
            raise UserError(f"--{_flag(field)} {value!r}: expected one of {', '.join(names)}")


@cache
def _names() -> dict[str, tuple[str, ...]]:
    hints = typing.get_type_hints(TrainConfig).items()
    return {field: typing.get_args(hint) for field, hint in hints if typing.get_origin(hint) is Literal}


def _check_numbers(config: TrainConfig) -> None:
    at_least = {
        "epochs": 1,
        "batch_size": 1,
        "accumulate": 1,
        "early_stop": 0,
        "hold_out": 0,
        "checkpoint_steps": 0,
        "threads": 0,
        "validate_every": 0,
        "validate_images": 0,
    }
    for field, least in at_least.items():
        if (value := getattr(config, field)) < least:
            raise UserError(f"--{_flag(field)} {value}: expected at least {least}")
    # Comparisons from here on are written so that nan fails them.
    for field in ("lr", "weight_decay", "momentum", "warmup", "clip_norm", "clip_value"):
        if not 0 <= (value := getattr(config, field)) < float("inf"):
            raise UserError(f"--{_flag(field)} {value}: expected a finite number of at least 0")
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError(f"--betas {' '.join(map(str, config.betas))}: expected two numbers in [0, 1)")
    if not 0 < config.ema_decay < 1:
        raise UserError(f"--ema-decay {config.ema_decay}: expected a number between 0 and 1, as 0.999")
    if not 0 <= config.swa_start < 1:
        raise UserError(
            f"--swa-start {config.swa_start}: expected a share of the training in [0, 1), as 0.75"
        )
    if not 0 <= config.final_lr <= 1:
        raise UserError(f"--final-lr {config.final_lr}: expected a share of --lr in [0, 1]")
    if config.milestones != tuple(sorted(set(config.milestones))):
        raise UserError(
            f"--milestones {','.join(map(str, config.milestones))}: expected growing epochs, as in 75,90,100"
        )


def _check_combinations(config: TrainConfig) -> None:
    """Refuse fields that contradict each other; what data or machine decide is refused where these are known."""
    if config.accumulate > config.batch_size:
        raise UserError(
            f"--accumulate {config.accumulate}: expected at most --batch-size, {config.batch_size}, an image a part"
        )
    if config.clip_norm and config.clip_value:
        raise UserError(
            f"--clip-norm {config.clip_norm} and --clip-value {config.clip_value}: expected one of them, the other 0"
        )
    if config.warmup >= config.epochs:
        raise UserError(f"--warmup {config.warmup}: expected fewer than the {config.epochs} of --epochs")
    if config.final_lr and config.schedule != "cosine":
        raise UserError(
            f"--final-lr {config.final_lr} with --schedule {config.schedule}: only cosine ends there, leave it out"
        )
    if config.warmup and config.schedule == "onecycle":
        raise UserError(
            f"--warmup {config.warmup} with --schedule onecycle, which warms up by itself: leave it out, or take "
            f"another schedule"
        )
    if config.nesterov and not (config.optimizer == "sgd" and config.momentum):
        raise UserError("--nesterov is a momentum of SGD: expected --optimizer sgd and a --momentum above 0")
    if config.early_stop and not config.hold_out:
        raise UserError(
            f"--early-stop {config.early_stop} without --hold-out: expected a number of training images to set aside "
            f"and go by, as --hold-out 1000; to go by test images is to train on them"
        )
    if config.hold_out and not config.validate_every:
        raise UserError(
            f"--hold-out {config.hold_out} with --validate-every 0 sets images aside for checks that never are: "
            f"expected --validate-every of at least 1, or --hold-out 0"
        )
    if config.optimizer_impl == "apex" and config.device == "cpu":
        raise UserError(
            "--optimizer-impl apex with --device cpu: apex runs on a GPU only, take --optimizer-impl torch"
        )
    if config.whole_step == "graph" and config.device == "cpu":
        raise UserError(
            "--whole-step graph with --device cpu: a CUDA graph needs a GPU, take --whole-step eager"
        )
    if config.whole_step == "graph" and config.optimizer_impl == "apex":
        raise UserError(
            "--whole-step graph with --optimizer-impl apex: the host decides on each step of apex's, which no graph "
            "holds; take --optimizer-impl torch"
        )


def _build(kind: type, values: dict[str, Any], kinds: dict[str, type]) -> Any:
    """An instance of the dataclass `kind`; `kinds` names the types of fields whose annotation does not."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise UserError(
            f"stored configuration has unknown fields: {', '.join(unknown)}; it is of another version"
        )
    required = {
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise UserError(
            f"stored configuration lacks the fields: {', '.join(missing)}; it is of another version"
        )
    hints = typing.get_type_hints(kind) | kinds
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, {})
    if isinstance(value, list):
        return tuple(value)
    is_path = Path in (hint, *typing.get_args(hint))
    return Path(value) if is_path and value is not None else value
