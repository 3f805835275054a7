"""What an attack inside training is set to, as it stands in a preset, on the command line and in `config.json`."""

from dataclasses import dataclass
from typing import Any, Literal

from robustfast.attacks.counts import whole_number
from robustfast.errors import UserError
from robustfast.ops.pgd_step import check_rule as check_direction
from robustfast.ops.sizes import check_radius

__all__ = ["AttackConfig", "check_rule"]


@dataclass(frozen=True)
class AttackConfig:
    """The attack an objective trains against. Pixel units of [0, 1] throughout.

    Raises:
        UserError: a number out of range, an unknown name, or an eps that looks like 0-255.
    """

    eps: float = 8 / 255
    """Radius of the ball."""
    step_size: float = 2 / 255
    """Length of one step."""
    steps: int = 10
    """Gradient steps."""
    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the ball."""
    step: Literal["auto", "sign", "grad", "topq"] = "auto"
    """Direction: auto (sign for linf, unit-norm gradient for l2, top-q for l1) or one of them; the AAT paper's "l2" is
    norm l2 with step sign."""
    random_start: Literal["ball", "pixel", "none"] = "ball"
    """Start: uniform in the ball, U(-eps, eps) per pixel under every norm, or none: at the image."""
    ramp: float = 0.0
    """Fraction of training over which eps and step_size grow linearly from 0; 0 switches the ramp off."""

    def __post_init__(self) -> None:
        try:
            check_rule(self.eps, self.step_size, self.steps, self.norm, self.step)
        except ValueError as error:
            # Each message opens with the setting's name, which is the flag's.
            setting, reason = str(error).split(" ", 1)
            raise UserError(f"--attack.{setting.replace('_', '-')} {reason}") from None
        if not 0 <= self.ramp <= 1:
            raise UserError(f"--attack.ramp is {self.ramp}, expected a fraction of training in [0, 1]")
        if self.random_start not in ("ball", "pixel", "none"):
            raise UserError(
                f"--attack.random-start is {self.random_start!r}, expected 'ball', 'pixel' or 'none'"
            )

    def at(self, progress: float) -> tuple[float, float]:
        """eps and step_size at `progress` of training, in [0, 1]: both grow linearly from 0 over its first `ramp`."""
        factor = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return self.eps * factor, self.step_size * factor

    def keywords(self) -> dict[str, Any]:
        """The keywords of `PGD` and `ThreeWayPGD` that this configuration sets."""
        return {
            "eps": self.eps,
            "step_size": self.step_size,
            "steps": self.steps,
            "norm": self.norm,
            "step": self.step,
            "random_start": False if self.random_start == "none" else self.random_start,
        }


def check_rule(
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    step: str = "auto",
    q: float = 0.01,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Refuse settings under which no attack can run.

    Raises:
        ValueError: names the setting, what came and what is expected.
    """
    whole_number("steps", steps)
    if not 0 <= step_size < float("inf"):
        raise ValueError(
            f"step_size is {step_size}, expected a length >= 0 (a targeted attack descends by itself)"
        )
    if not eps < float("inf"):
        raise ValueError(f"eps is {eps}, expected a radius >= 0")
    # Norm, direction, q, bounds and eps are the op's to judge.
    try:
        check_direction(norm, step, q, bounds)
        check_radius("pgd_step", eps, norm, bounds)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("pgd_step: ")) from None
