"""Adversarial asymmetric training: an attacked image has one label for the robust way, another for the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks import AttackConfig, ThreeWayPGD, eval_mode
from robustfast.errors import UserError
from robustfast.models import ThreeWay
from robustfast.objectives.objective import Objective, Phase, accuracies
from robustfast.ops import asymmetric_cross_entropy

__all__ = ["AAT", "AATPP", "TERMS"]

TERMS = ("st", "as", "ar", "an")
# The way each term attacks; "st" sees natural images only.
_ATTACKED = {"as": "s", "ar": "r", "an": "n"}


class AAT(Objective):
    """The losses of AAT, any subset of four (`terms`), summed with weight 1.

    With x_w the images attacked through way w, yhat_w the label way w gives them, and l the cross entropy:

    - ``st`` (equation 6):  l(h_s(x), y) + l(h_r(x), y) + l(h_n(x), y)
    - ``as`` (equation 7):  l(h_r(x_s), y) + l(h_n(x_s), yhat_s), on the samples with yhat_s != y
    - ``ar`` (equation 9):  l(h_r(x_r), y)
    - ``an`` (equation 10): l(h_n(x_n), yhat_n), on the samples with yhat_n != y

    AAT is st + as (equation 8), AAT++ all four (equation 11). Every mean divides by the full batch, also where
    samples are left out (algorithm 1 is per sample), so a batch in which no attack succeeds gives exactly 0.
    Attacks run in eval mode, and yhat comes from the network as the attack saw it. The four batches pass the
    encoders separately, in the order x, x_s, x_r, x_n, so that the batch norms never mix them; every encoder
    runs once on a batch, and x_r and x_n pass only their own.

    Passes with ten attack steps: AAT 54F, AAT++ 101F.

    Raises:
        UserError: unknown, doubled or no terms.
    """

    @dataclass(frozen=True)
    class Config:
        terms: tuple[str, ...] = ("st", "as")
        """Among st, as, ar, an; also as one word with commas."""

        def __post_init__(self) -> None:
            terms = tuple(term for word in self.terms for term in word.split(","))
            if not terms or len(set(terms)) != len(terms) or not set(terms) <= set(TERMS):
                raise UserError(
                    f"--objective.terms {','.join(terms)}: expected one or more of {', '.join(TERMS)}, each once"
                )
            object.__setattr__(self, "terms", terms)

    trains = ThreeWay
    main_ways = "srn"

    def __init__(
        self, model: ThreeWay, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        attacked = "".join(way for term, way in _ATTACKED.items() if term in config.terms)
        if attacked:
            self.attack = ThreeWayPGD(model, attacked, seed=seed, engine=engine, **attack.keywords())

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        steps = strength.steps
        # The standard way's attack runs both encoders, and its label takes one more look at what it found.
        costs = {"st": 6, "as": 4 * steps + 2 + 6, "ar": 2 * steps + 3, "an": 2 * steps + 1 + 3}
        return sum(costs[term] for term in settings.terms)

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        x_adv = self.attack(x, y, index, **self.now()) if self.attack else {}
        yhat = self.labels(x_adv)
        logits: dict[str, Tensor] = {}
        if "st" in self.config.terms:
            logits |= {f"st_{way}": out for way, out in self.model.ways(x, "srn").items()}
        if "as" in self.config.terms:
            logits |= {f"as_{way}": out for way, out in self.model.ways(x_adv["s"], "rn").items()}
        if "ar" in self.config.terms:
            logits["ar"] = self.model.way("r")(x_adv["r"])
        if "an" in self.config.terms:
            logits["an"] = self.model.way("n")(x_adv["n"])
        values = asymmetric_cross_entropy(
            list(logits.values()), y, terms=list(logits), yhat_s=yhat.get("s"), yhat_n=yhat.get("n")
        )
        terms = dict(zip(logits, values.detach().unbind(), strict=True))
        yield Phase("model", values.sum(), terms, accuracies(logits, y))

    def labels(self, x_adv: dict[str, Tensor]) -> dict[str, Tensor]:
        """Way -> int64 [B], the label that way gives its own attacked images in eval mode; "r" needs none."""
        with eval_mode(self.model), torch.no_grad():
            return {way: self.model.way(way)(x_adv[way]).argmax(1) for way in "sn" if way in x_adv}


class AATPP(AAT):
    """AAT++ (equation 11): AAT with all four terms by default."""

    @dataclass(frozen=True)
    class Config(AAT.Config):
        terms: tuple[str, ...] = TERMS
        """Among st, as, ar, an; also as one word with commas."""
