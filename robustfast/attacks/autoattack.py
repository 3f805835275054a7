"""AutoAttack: several attacks one after the other, each on the images that all before it left standing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.autoattack_flags import looks_like_probabilities, looks_random
from robustfast.attacks.autoattack_versions import VERSIONS, for_classes, parts_of
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import loops_are_eager
from robustfast.registry import lookup

__all__ = ["AutoAttack", "PartRecord"]

# Square winning more than this share of a batch, after attacks that use gradients, hints at masked gradients; the
# package's own threshold.
_SQUARE_WINS = 0.002


@dataclass(frozen=True)
class PartRecord:
    """What one attack of a call did.

    Attributes:
        name: its name in `ATTACKS`.
        attacked: images that were left for it.
        fooled: those it won.
        spared: images of the batch it was not needed for, as the model was wrong on them or they were won before.
        seconds: wall time; on a GPU with everything queued before it, as its end waits for the device.
    """

    name: str
    attacked: int
    fooled: int
    spared: int
    seconds: float


class AutoAttack(Attack):
    """An ensemble of attacks without a parameter to tune.

    Croce and Hein 2020 (arXiv:2003.01690), section 5, with the l1 versions of Croce and Hein 2021 (arXiv:2103.01208).
    The versions are those of the authors' package, which the papers differ from here and there:

    * standard: apgd-ce, apgd-t (9 targets), fab-t (9 targets), square, one start each; under l1 apgd-ce has 5 starts
      and apgd-t 5 targets, both with the schedule of larger radii.
    * plus: apgd-ce (5 starts), apgd-dlr (5), fab (5), square, apgd-t (9 targets), fab-t (9).
    * rand: apgd-ce and apgd-dlr, each gradient the mean of 20, for models whose output is random.
    * custom: the `attacks` named, those of the package set up as it sets them up before a version is chosen: 5 starts
      for apgd-ce, apgd-dlr and fab.

    Under l1, APGD climbs through balls of larger radii in every version here. The package does so in its standard
    version alone; in plus and rand its APGD stays within eps.

    Each attack gets the images that the model still classifies rightly; an image keeps what the first attack that won
    it made. Images that stand to the end, and those the model is wrong about anyway, come back as they are.

    torchattacks' AutoAttack differs: its APGD and FAB run 10 steps, not 100, its Square fits the schedule of window
    sizes to the number of queries, which the package does not, and it has no l1. In both libraries, unlike here, the
    draws of an image depend on the batch it comes in.

    With fewer than 4 classes there is no targeted DLR loss, with 2 no DLR loss: "apgd-t" and "apgd-dlr" climb the
    margin then. There are at most K - 1 targets. Each is said in one warning.

    Args:
        model: images [B, ...] -> logits [B, K].
        norm: "linf", "l2" or "l1".
        eps: radius of the ball in pixel units.
        version: "standard", "plus", "rand" or "custom".
        attacks: names in `ATTACKS`, for version "custom".
        seed: of every draw; an attack's name and the image's `index` key its draws beside it.
        steps: of APGD and FAB.
        queries: of Square.
        eot: gradients averaged per step of APGD; None: 20 in version "rand", else 1.
        batch_size: images per call of an attack; what an attack left is packed anew for the next one. Results do not
            depend on it. 250 is the package's own.
        flags: warn, once for each reason, of what makes the result unreliable: outputs that differ from pass to pass,
            outputs that are probabilities, images without a gradient, a Square attack that wins where gradients did
            not, too few classes. The first two cost one pass over the first `batch_size` images of the first call.
        settings: per attack, keywords that come on top of the version's: {"apgd-ce": {"restarts": 5}}. Free to change
            between calls, as the attribute of that name.
        bounds, batch_norm, engine: as for `Attack`.

    Attributes:
        names: the attacks, in order.
        settings: every attack's settings, by name.
        records: a `PartRecord` per attack, of the last call; none where that had no images.
        fooled_by: for each image of the last call the attack that won it, "clean" where the model was wrong from the
            start, None where it stood.
        report: of all gradients of the last call.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "autoattack"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float = 8 / 255,
        version: str = "standard",
        attacks: Sequence[str] = (),
        steps: int = 100,
        queries: int = 5000,
        eot: int | None = None,
        batch_size: int = 250,
        flags: bool = True,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        super().__init__(
            model, norm=norm, eps=eps, bounds=bounds, batch_norm=batch_norm, seed=seed, engine=engine
        )
        if isinstance(eps, Tensor) and eps.dim():
            raise ValueError(f"eps has shape {tuple(eps.shape)}, expected one radius for all images")
        if version not in VERSIONS:
            raise ValueError(f"version is {version!r}, expected one of {', '.join(VERSIONS)}")
        if (version == "custom") != bool(attacks):
            raise ValueError(
                f"version is {version!r} and attacks is {list(attacks)}: "
                f"name the attacks with version 'custom' and with no other"
            )
        self.version = version
        self.steps = steps
        self.queries = queries
        self.eot = (20 if version == "rand" else 1) if eot is None else eot
        self.batch_size = whole_number("batch_size", batch_size)
        self.flags = flags
        self.settings = parts_of(version, norm, attacks, steps=steps, queries=queries, eot=self.eot)
        for name, more in (settings or {}).items():
            if name not in self.settings:
                raise ValueError(
                    f"settings for {name!r}, which does not run; expected {', '.join(self.settings)}"
                )
            self.settings[name] |= more
        self.records: list[PartRecord] = []
        self.fooled_by: list[str | None] = []
        self._built: dict[str, tuple[dict[str, Any], Attack]] = {}
        self._warned: set[str] = set()
        self._looked = False
        for name in self.settings:
            self.part(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.settings)

    def part(self, name: str, classes: int | None = None) -> Attack:
        """The attack of that name as its settings stand; with `classes` known, as far as so many allow.

        Raises:
            ValueError: it is no attack, has no such norm, or refuses its settings.
        """
        from robustfast.attacks.presets import ATTACKS  # which names this class itself

        preset = lookup("attack", ATTACKS, name)
        if self.norm not in preset.attack.norms or issubclass(preset.attack, AutoAttack):
            raise ValueError(f"attack {name!r} cannot be a part of AutoAttack under norm {self.norm!r}")
        settings = {
            "norm": self.norm,
            "eps": self.eps,
            "bounds": self.bounds,
            "batch_norm": self.batch_norm,
            "seed": self.seed,
            "engine": self.engine,
        } | self.settings[name]
        if classes is not None:
            settings, why = for_classes(name, settings, classes)
            if why:
                self._warn(f"classes {name}", why)
        built = self._built.get(name)
        if built is None or built[0] != settings:
            built = self._built[name] = settings, preset(self.model, **settings)
        return built[1]

    def _attack(
        self, x: Tensor, y: Tensor, index: Tensor | None, *, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        # A call without images, or one that is refused, leaves no record of the call before it.
        self.records, self.fooled_by = [], []
        return super()._attack(x, y, index, epoch=epoch, start=start, **more)

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        if start is not None:
            raise ValueError("start was given, but the attacks of autoattack each have a start of their own")
        logits = self._logits(x)
        fooled = self._fooled(logits, y)
        self._look(x, y, logits)
        state = {"x": x, "y": y, "index": index, "x_adv": x.clone(), "fooled": fooled}
        clean = fooled.clone()
        won_by = torch.full_like(y, -1)
        for number, name in enumerate(self.names):
            before, begun = fooled.clone(), time.perf_counter()
            left = self._attack_rest(name, logits.shape[1], state, epoch)
            won = fooled & ~before
            won_by[won] = number
            seconds = time.perf_counter() - begun
            self.records.append(PartRecord(name, left, int(won.sum()), len(x) - left, seconds))
        self._judge_square(len(x))
        names = (None, *self.names)
        self.fooled_by = [
            "clean" if wrong else names[by + 1]
            for wrong, by in zip(clean.tolist(), won_by.tolist(), strict=True)
        ]
        return state["x_adv"]

    def _attack_rest(self, name: str, classes: int, state: dict[str, Tensor], epoch: int) -> int:
        """Run one attack on what is left, in place on `x_adv` and `fooled`; how many images that were."""
        fooled, log = state["fooled"], self._log
        left = remaining(fooled, static=self._static(fooled))
        if not left.count:
            return 0
        part = self.part(name, classes)
        without = 0
        for first in range(0, left.count, self.batch_size):
            rows = left.rows[first : first + self.batch_size]
            kept = min(len(rows), left.count - first)
            x, y, index = (_rows(state[key], rows) for key in ("x", "y", "index"))
            x_adv = part(x, y, index, epoch=epoch)
            hit = self._fooled(self._gradient.logits(x_adv), y)
            # What an attack returns where it did not win may be its best try, which is none of ours.
            x_adv = torch.where(hit.reshape(-1, *[1] * (x.dim() - 1)), x_adv, x)
            state["x_adv"].index_copy_(0, rows[:kept], x_adv[:kept])
            fooled.index_copy_(0, rows[:kept], hit[:kept])
            if log is not None and part.gradients is not None:
                zero = part.gradients.zero[:kept]
                log.zero[rows[:kept]] = log.zero[rows[:kept]] | zero
                log.nonfinite[rows[:kept]] = log.nonfinite[rows[:kept]] | part.gradients.nonfinite[:kept]
                without += int(zero.sum())
        if without and name.startswith("apgd"):
            self._warn(
                "gradient",
                f"{without} of {left.count} images had a zero gradient in a step of {name}: "
                f"gradients may be masked, or the logits too large for the loss",
            )
        return left.count

    def _logits(self, x: Tensor) -> Tensor:
        return torch.cat([self._gradient.logits(part) for part in x.split(self.batch_size)])

    def _static(self, fooled: Tensor) -> bool:
        """Whether batches come in few sizes, as CUDA graphs want them."""
        return fooled.is_cuda and self.engine in ("auto", "graph") and not loops_are_eager(fooled.device)

    def _look(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        """What one look at a model tells: an error where it has no gradient, and the flags that its outputs raise."""
        if self._looked:
            return
        if any(self.part(name).kind != "black-box" for name in self.names):
            self._gradient.evaluate(x[:1], y[:1])
        self._looked = True
        if not self.flags:
            return
        first = logits[: self.batch_size]
        if looks_like_probabilities(first):
            self._warn(
                "probabilities",
                "the model's output looks like probabilities: pass logits, from before the softmax",
            )
        if self.version != "rand" and looks_random(
            first, self._gradient.logits(x[: self.batch_size]), y[: self.batch_size]
        ):
            self._warn(
                "random",
                "the model's output differs from pass to pass: use version 'rand' for a random model",
            )

    def _judge_square(self, batch: int) -> None:
        wins = sum(record.fooled for record in self.records if record.name == "square")
        others = [record for record in self.records if record.name != "square"]
        if others and wins > _SQUARE_WINS * batch:
            self._warn(
                "square",
                f"square won {wins} of {batch} images that attacks with gradients did not: gradients may be "
                f"masked; try more queries, or an attack adapted to the model",
            )

    def _warn(self, reason: str, text: str) -> None:
        if self.flags and reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"autoattack: {text}", RuntimeWarning, stacklevel=2)

    def __repr__(self) -> str:
        shown = ("version", "norm", "eps", "names", "batch_norm", "seed")
        return f"AutoAttack({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


def _rows(value: Tensor, rows: Tensor) -> Tensor:
    return value[rows].contiguous(
        memory_format=torch.channels_last
        if value.dim() == 4 and not value.is_contiguous()
        else torch.contiguous_format
    )
