"""Evaluate a run or any model: a paper's protocol, or curves over eps. ``python -m robustfast.evaluate RUN``."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustfast.attacks import ATTACKS
from robustfast.command_line import main_wrapper, parse
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.evaluation.aat import evaluate_run
from robustfast.evaluation.attack_names import NORMS, NamedAttack, parse_all
from robustfast.evaluation.attacks import ATTACKS as PRESETS
from robustfast.evaluation.attacks import EvaluationAttack, attacks_for
from robustfast.evaluation.grids import checked_grid, grid, standard_eps
from robustfast.evaluation.model_digests import code_digest, weights_digest
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.protocols import PROTOCOLS
from robustfast.evaluation.subject import Subject, model_subject, named_model, run_subject
from robustfast.evaluation.sweep import sweep
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.objectives import OBJECTIVES
from robustfast.ops.backend import configured_backend
from robustfast.registry import lookup
from robustfast.together import together
from robustfast.training.run_folder import RunFolder

__all__ = ["main"]

PROG = "python -m robustfast.evaluate"

DEFAULT_ATTACKS = ("apgd-ce",)
"""What a sweep attacks with where no attack is named."""


@dataclass(frozen=True)
class AttackFlags:
    """What differs from the attack preset; any of these makes one attack called "custom"."""

    norm: Literal["linf", "l2", "l1"] | None = None
    """Norm of the ball."""
    eps: float | None = None
    """Radius of the ball, pixels in [0, 1]."""
    step_size: float | None = None
    """Length of one step."""
    steps: int | None = None
    """Gradient steps."""
    step: Literal["auto", "sign", "grad", "topq"] | None = None
    """Direction: auto is sign for linf, unit-norm gradient for l2, top-q for l1."""
    random_start: Literal["ball", "pixel", "none"] | None = None
    """Start: uniform in the ball, U(-eps, eps) per pixel, or the image itself."""
    restarts: int | None = None
    """Independent starts, of which each image keeps the strongest."""


@dataclass(frozen=True)
class Arguments:
    """What the command line can say."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder; leave it out with --model."""
    protocol: str = "auto"
    """aat: three ways, detection, the AAT paper's tables. sweep: accuracy against eps under any attacks. autoattack:
    AutoAttack's standard version at the data set's usual eps. Others: their paper's tables and figures. auto is sweep
    where --model, --eps or another attack than the presets of aat is given, else that of the run's objective."""
    parts: tuple[str, ...] = ()
    """Parts of a paper's protocol; without them all for which everything is there."""
    against: tuple[str, ...] = ()
    """Other runs that stand beside this one in a paper's figures and tables, as PATH or LABEL=PATH."""
    inception_weights: Path | None = None
    """File of the Inception-v3 of the usual FID (pt_inception-2015-12-05-6726825d.pth), for parts that compare images
    by it; without it they go by features of the run's own classifier, and say so."""
    attacks: tuple[str, ...] = ()
    """Presets of the aat protocol, the first one leads the file; or any attacks, as NAME, NAMESTEPS, NAME-NORM
    (pgd20-l2). Without them the data set's own; a sweep takes apgd-ce."""
    attack: AttackFlags = field(default_factory=AttackFlags)
    """One attack of the aat protocol by its fields."""
    eps: tuple[float, ...] = ()
    """Radii of a sweep, of every attack that is bounded by a norm; without them the usual ones of the data set and
    norm."""
    eps_l2: tuple[float, ...] = ()
    """Radii of its l2 attacks (pgd20-l2), instead of --eps."""
    eps_l1: tuple[float, ...] = ()
    """Radii of its l1 attacks (apgd-ce-l1), instead of --eps."""
    eps_own: tuple[float, ...] = ()
    """Radii of its attacks with bounds of their own (stadv, jpeg, recolor); without them the bound each has."""
    way: Literal["s", "r", "n"] | None = None
    """Way of a run that is swept; without it the robust one where it was trained."""
    model: str | None = None
    """module:function (or file.py:function) that returns a model of pixels in [0, 1], instead of a run."""
    model_args: tuple[str, ...] = ()
    """Arguments of that function, as name=value."""
    dataset: str | None = None
    """Data set of --model."""
    num_classes: int | None = None
    """Logits of --model where they are not as many as the data set has classes."""
    image_size: int | None = None
    """Side to which image files are resized for --model."""
    source: str | None = None
    """Whose adversarial images are taken: by the attack transfer, by black-box parts, and by CD-VAE's parts, for which
    it is the undefended classifier (D-hat, a run of cdvae-x); a run folder, or module:function."""
    out: Path | None = None
    """Folder for the numbers and figures of a sweep; a run has its own."""
    eot: int = 1
    """Passes over which a randomised model's gradients are averaged; above 1, AutoAttack's version is rand."""
    monotone: bool = False
    """Count an image that is fooled at one eps as fooled at all larger ones, and do not attack it again."""
    minimal: Literal["distance", "clip"] = "distance"
    """Judge attacks that look for the nearest image by how far it lies, or by pulling it into the ball (Foolbox)."""
    probes: bool = True
    """Look for masked gradients with short attacks of their own."""
    seed: int = 0
    """Seed of a sweep's draws."""
    images: int | None = None
    """Test images, spread evenly over the split; all without it."""
    checkpoint: Literal["last", "best"] = "last"
    """last is what the papers report; best was chosen by test images."""
    batch_size: int | None = None
    """Images a batch; without it the run's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to evaluate; auto takes a GPU where there is one."""
    backend: Literal["auto", "reference", "cpp", "cuda", "triton"] = "auto"
    """Which implementation of the fused ops."""
    data_dir: Path | None = None
    """Folder of the data sets; without it the run's."""


def main(argv: Sequence[str]) -> None:
    """Evaluate what the arguments name.

    Raises:
        UserError: a mistake in the arguments, the run, the model or the data.
    """
    arguments = parse(
        Arguments,
        argv,
        prog=PROG,
        description="Evaluate a run, or any model with --model: a paper's tables, or accuracy curves over eps. "
        f"Presets of the aat protocol: {', '.join(PRESETS)}. Attacks: {', '.join(ATTACKS)}. "
        + " ".join(
            f"Parts of {name}: {'; '.join(f'{part.name} ({part.shows})' for part in parts)}."
            for name, parts in PROTOCOLS.items()
        ),
    )
    with World.joined(arguments.device) as world, ExitStack() as stack:
        together(world, lambda: _none_empty(arguments, argv))
        protocol = together(world, lambda: _protocol(arguments))
        together(world, lambda: stack.enter_context(configured_backend(arguments.backend)))
        if protocol == "aat":
            _aat(arguments, world)
        elif protocol in PROTOCOLS:
            together(world, lambda: _one_process(protocol, world))
            _parts(arguments, protocol)
        else:
            _sweep(arguments, protocol, world)


def _none_empty(arguments: Arguments, argv: Sequence[str]) -> None:
    """Refuse a list that is given and empty: the usual one would be taken without a word."""
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    for name, what in {
        "attacks": "at least one name",
        **dict.fromkeys(("eps", "eps_l2", "eps_l1", "eps_own"), "at least one radius"),
    }.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in given and not getattr(arguments, name):
            raise UserError(f"{flag} is empty: expected {what}, or leave {flag} out for the usual ones")


def _protocol(arguments: Arguments) -> str:
    """The protocol that is meant, once the flags are known to go together."""
    if arguments.run is not None and arguments.model is not None:
        raise UserError(f"a run ({arguments.run}) and --model {arguments.model}: give one of them, not both")
    if arguments.run is None and arguments.model is None:
        raise UserError(f"expected a run folder or --model module:function: {PROG} RUN")
    named = parse_all(arguments.attacks)
    other = [attack.name for attack in named if attack.name not in PRESETS]
    changed = [name for name, value in asdict(arguments.attack).items() if value is not None]
    for_sweeps = [name for name in SWEEP_FLAGS if getattr(arguments, name) != getattr(Arguments, name, None)]
    own = _own_protocol(arguments)
    chosen = arguments.protocol
    if chosen == "auto":
        rest = [name for name in for_sweeps if own not in PROTOCOLS or name not in PART_FLAGS]
        chosen = "sweep" if rest or other else own
    lookup("protocol", dict.fromkeys((*OWN_PROTOCOLS, *PROTOCOLS)), chosen)
    for name in ("parts", "against", "inception_weights"):
        if chosen not in PROTOCOLS and getattr(arguments, name):
            raise UserError(
                f"--{name.replace('_', '-')}: for a protocol of parts ({', '.join(PROTOCOLS)}), not {chosen}"
            )
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in for_sweeps)
    if chosen == "aat":
        if flags:
            raise UserError(f"{flags}: for --protocol sweep, not aat")
        if other:
            raise UserError(
                f"--protocol aat attacks with its presets ({', '.join(PRESETS)}), not with {', '.join(other)}; "
                f"leave --protocol out for a sweep"
            )
    elif chosen in PROTOCOLS:
        named_flags = [*(["attacks"] if arguments.attacks else []), *(["attack"] if changed else [])]
        wrong = [*(name for name in for_sweeps if name not in PART_FLAGS), *named_flags]
        if wrong or arguments.run is None:
            flag = f"--{(wrong or ['model'])[0].replace('_', '-')}"
            raise UserError(
                f"{flag}: not with --protocol {chosen}, whose attacks are its paper's; take --protocol sweep"
            )
    elif changed:
        spelled = ", ".join(f"--attack.{name.replace('_', '-')}" for name in changed)
        raise UserError(f"{spelled}: changes a preset of --protocol aat; in a sweep write pgd20-l2 and --eps")
    else:
        _all_used(arguments, parse_all(_names(arguments, chosen)))
    if arguments.model is None:
        alone = [name for name in MODEL_FLAGS if getattr(arguments, name) not in (None, ())]
        if alone:
            raise UserError(f"--{alone[0].replace('_', '-')} goes with --model; a run knows its own")
    elif arguments.way is not None or arguments.checkpoint != "last":
        raise UserError(f"--{'way' if arguments.way else 'checkpoint'} goes with a run, not with --model")
    return chosen


def _names(arguments: Arguments, protocol: str) -> tuple[str, ...]:
    """The attacks of a sweep, as they are spelled."""
    return arguments.attacks or (("autoattack",) if protocol == "autoattack" else DEFAULT_ATTACKS)


def _all_used(arguments: Arguments, named: Sequence[NamedAttack]) -> None:
    """Refuse what is given for attacks of a kind of which none is named: it would go unused without a word."""
    names = ", ".join(attack.name for attack in named)
    norms = {attack.norm if attack.norm in NORMS else "own" for attack in named}
    # What has no flag of its own takes --eps.
    by_eps = {
        norm for norm in norms if norm == "linf" or (norm in NORMS and not getattr(arguments, f"eps_{norm}"))
    }
    for flag, used, kind, mend in (
        ("eps", by_eps, "goes by it", "give --eps-own for bounds that are no norm, name one such as pgd20"),
        ("eps_l2", "l2" in norms, "is bounded by l2", "name one such as pgd20-l2"),
        ("eps_l1", "l1" in norms, "is bounded by l1", "name one such as apgd-ce-l1"),
        ("eps_own", "own" in norms, "has a bound of its own", "name stadv, jpeg or recolor"),
        (
            "source",
            any(attack.attack == "transfer" for attack in named),
            "takes images of another model",
            "name transfer",
        ),
        (
            "minimal",
            any(attack.minimal for attack in named),
            "looks for the nearest image",
            "name one such as fab-t or ddn",
        ),
    ):
        given = getattr(arguments, flag)
        if given != getattr(Arguments, flag) and not used:
            value = given if isinstance(given, str) else ",".join(f"{radius:g}" for radius in given)
            spelled = f"--{flag.replace('_', '-')}"
            raise UserError(
                f"{spelled} {value}: none of the attacks ({names}) {kind}; {mend}, or leave {spelled} out"
            )


def _own_protocol(arguments: Arguments) -> str:
    """That of the run's objective."""
    if arguments.run is None:
        return "sweep"
    return lookup("objective", OBJECTIVES, RunFolder.open(arguments.run).config.method).protocol


OWN_PROTOCOLS = ("aat", "sweep", "autoattack")
"""The protocols that are not made of parts."""

PART_FLAGS = ("source", "seed")
"""Flags of a sweep that a protocol of parts takes too."""

SWEEP_FLAGS = (
    "eps",
    "eps_l2",
    "eps_l1",
    "eps_own",
    "way",
    "model",
    "source",
    "out",
    "eot",
    "monotone",
    "minimal",
    "probes",
    "seed",
)
MODEL_FLAGS = ("model_args", "dataset", "num_classes", "image_size")


def _one_process(protocol: str, world: World) -> None:
    if world.size > 1:
        raise UserError(
            f"--protocol {protocol} runs in one process, got {world.size}: start it without torchrun"
        )


def _parts(arguments: Arguments, protocol: str) -> None:
    assert arguments.run is not None
    # What only trials are given has no flag.
    names = [field.name for field in fields(Request) if hasattr(arguments, field.name)]
    evaluate_parts(
        arguments.run,
        protocol,
        PROTOCOLS[protocol],
        Request(**{name: getattr(arguments, name) for name in names}),
    )


def _aat(arguments: Arguments, world: World) -> None:
    run = arguments.run
    assert run is not None

    def chosen() -> tuple[EvaluationAttack, ...]:
        return attacks_for(RunFolder.open(run).config.dataset, arguments.attacks, **asdict(arguments.attack))

    evaluate_run(
        run,
        together(world, chosen),
        images=arguments.images,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        batch_size=arguments.batch_size,
        data_dir=arguments.data_dir,
        world=world,
    )


def _sweep(arguments: Arguments, protocol: str, world: World) -> None:
    where = {
        "images": arguments.images,
        "device": arguments.device,
        "batch_size": arguments.batch_size,
        "data_dir": arguments.data_dir,
    }

    def subject() -> Subject:
        if arguments.run is not None:
            return run_subject(arguments.run, way=arguments.way, checkpoint=arguments.checkpoint, **where)
        if arguments.out is None:
            raise UserError(f"--model {arguments.model}: say where its numbers go with --out FOLDER")
        return model_subject(
            arguments.model or "",
            arguments.model_args,
            dataset=arguments.dataset,
            num_classes=arguments.num_classes,
            image_size=arguments.image_size,
            **where,
        )

    # What another process trained is on the disk.
    world.barrier()
    found = together(world, subject)
    settings = together(
        world,
        lambda: SweepSettings(
            arguments.seed, arguments.eot, arguments.monotone, arguments.minimal, arguments.probes
        ),
    )
    attacks = together(world, lambda: _attacks(arguments, protocol, found))
    sweep(found, attacks, settings, protocol=protocol, out=arguments.out, world=world)


def _attacks(arguments: Arguments, protocol: str, subject: Subject) -> list[SweepAttack]:
    """The attacks of a sweep with their radii."""
    dataset = subject.dataset
    named = parse_all(_names(arguments, protocol))
    given = {
        "linf": arguments.eps,
        "l2": arguments.eps_l2 or arguments.eps,
        "l1": arguments.eps_l1 or arguments.eps,
    }
    found = []
    for attack in named:
        if protocol == "autoattack" and attack.attack != "autoattack":
            raise UserError(
                f"--protocol autoattack runs autoattack, not {attack.name}; take --protocol sweep"
            )
        radii = given.get(attack.norm, arguments.eps_own)
        named_flag = f"--eps-{attack.norm if attack.norm in NORMS else 'own'}"
        flag = "--eps" if radii is arguments.eps else named_flag
        if radii:
            eps = checked_grid(flag, radii, [attack.norm])
        elif attack.norm not in NORMS:
            eps = (0.0, attack.own_eps or 0.0)
        elif protocol == "autoattack":
            eps = (0.0, standard_eps(dataset, attack.norm))
        else:
            eps = grid(dataset, attack.norm)
        settings: dict[str, Any] = {}
        described = {}
        if arguments.eot > 1 and attack.attack == "autoattack":
            settings["version"] = "rand"
        if attack.attack == "transfer":
            if arguments.source is None:
                raise UserError(
                    "attack transfer takes its images from another model: name a run or module:function with --source"
                )
            settings["source"] = named_model(arguments.source, subject.source.device)
            described = {
                "source": arguments.source,
                "source_weights": weights_digest(settings["source"]),
                "source_code": code_digest(settings["source"]),
            }
        found.append(SweepAttack(attack, eps, settings, described))
    return found


if __name__ == "__main__":
    sys.exit(main_wrapper(main))
