"""Square: random search over square windows, by the model's outputs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.draws import uniform
from robustfast.attacks.losses import Loss, loss_function
from robustfast.attacks.square_moves import as_images, grid, numbers, patterns, recolour, remodel, stripes
from robustfast.attacks.square_windows import pieces
from robustfast.ops.sizes import per_sample

__all__ = ["Square"]


class Square(Attack):
    """The Square attack: queries of the model's outputs, no gradient.

    Andriushchenko et al. 2020 (arXiv:1912.00049), algorithms 1 to 3; under l1, Croce and Hein 2021
    (arXiv:2103.01208), as their code has it. From a start at the ball's surface, `queries` times: change the image
    inside one random window, keep the change where the loss falls or the model is fooled. The windows shrink as
    queries go by.

    * linf: starts from vertical stripes of +-eps; a window moves to +eps or -eps, each channel by its own sign.
    * l2, l1: starts from a grid of 5 x 5 bumps; a window gets a new bump mixed with what it held, on the budget of a
      second window, which is emptied, and on what the ball has left. The result is scaled to length eps (l2) or
      projected onto ball and box (l1).

    Where implementations differ: AutoAttack and torchattacks draw one window for all images of a batch, so that what
    happens to an image depends on those beside it; here each image has windows, signs and starts of its own, keyed by
    (seed, epoch, restart, query) and by its `index`. The law of each is theirs: a corner lies in [0, h - side), hence
    never in the last position. They stop at a margin of zero, which is a tie between two classes; here an image is
    won where the largest output is another class. As in AutoAttack, an l2 window is scaled by the budget of its own
    channel and the side never exceeds the image's; torchattacks differs in both, and has no l1. Under l1 AutoAttack's
    float32 leaves residues of rounding, x + u - u != x, where the projection undid a change, and mixes them into the
    next bump at full strength; here such an entry is x and adds nothing.

    Images that were won leave the batch between blocks of 5 to 25 queries. Results do not depend on the batch.

    Args:
        model: images [B, ...] -> logits [B, K]. The last two dimensions of an image are its height and width, all
            others channels; [B, F] is one row of F features.
        norm: "linf", "l2" or "l1".
        eps: radius of the ball in pixel units; float, or a tensor [] or [B].
        queries: per restart, after that of the start.
        p_init: share of the image that the first windows cover.
        restarts: independent starts, each for the images that the ones before did not win.
        loss: "margin" or "ce", "dlr", or a function (logits, y) -> [B], which falls where the attack is targeted.
        resc_schedule: fit the schedule of window sizes, made for 10,000 queries, to `queries`. The default of the
            attack; AutoAttack's standard version runs it without.
        targeted, bounds, batch_norm, seed, engine: as for `Attack`.

    Returns of a call:
        The first images that fool the model, x itself where none was found or where the model is wrong from the
        start.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "square"
    kind = "black-box"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        queries: int = 5000,
        p_init: float = 0.8,
        restarts: int = 1,
        loss: str | Loss = "margin",
        resc_schedule: bool = True,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        whole_number("queries", queries, 0)
        whole_number("restarts", restarts)
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init is {p_init}, expected a share of the image, above 0 and at most 1")
        if loss == "kl":
            raise ValueError(
                "loss is 'kl', which takes probabilities: square needs labels; use 'margin' or 'ce'"
            )
        super().__init__(
            model, norm=norm, eps=eps, loss=loss, targeted=targeted, bounds=bounds, batch_norm=batch_norm,
            seed=seed, engine=engine,
        )  # fmt: skip
        self.queries = queries
        self.p_init = p_init
        self.restarts = restarts
        self.resc_schedule = resc_schedule
        self._per_sample = loss_function(loss)
        # One for each size of window: with few queries the size changes at nearly each of them.
        self._graphs: dict[tuple[int, int], GraphedLoop] = {}

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        if start is not None and self.restarts > 1:
            raise ValueError(
                f"start was given, but restarts is {self.restarts}: give it to an attack with one"
            )
        x_adv = x.clone()
        x = x if x.dim() == 4 else x.contiguous()
        fooled = self._fooled(self._gradient.logits(x), y)
        eps = per_sample(self.name, "eps", self.eps, x).to(x.device).expand(len(x)).contiguous()
        for restart in range(self.restarts):
            before = fooled.clone()
            if not remaining(fooled, static=False).count:
                break
            key = self._key(epoch, restart)
            best = torch.empty_like(x).copy_(self._start(x, eps, index, key) if start is None else start)
            logits = self._gradient.logits(best)
            fooled |= self._fooled(logits, y)
            score = self._score(logits, y)
            state = {"x": x, "y": y, "index": index, "eps": eps}
            state |= {"best": best, "score": score, "fooled": fooled}
            self._search(state, key)
            x_adv = torch.where(_rows(fooled & ~before, x), best, x_adv)
        return x_adv

    def _score(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the search lowers, [B]; infinite where the loss is no number."""
        loss = self._per_sample(logits, y)
        return torch.nan_to_num(loss if self.targeted else -loss, nan=torch.inf)

    def _search(self, state: dict[str, Tensor], key: int) -> None:
        """All queries of one start, in place on `best`, `score` and `fooled`."""
        _, channels, height, width = as_images(state["x"]).shape
        plan = pieces(self.queries, self.p_init, height, width, self.norm, rescale=self.resc_schedule)
        count = numbers(channels, self.norm)
        part, written = None, ("best", "score", "fooled")
        for piece in plan:
            graph = self._graph(piece.height, piece.width)
            if part is None:
                left = remaining(state["fooled"], static=self._uses_graph(state["x"], graph))
                if not left.count:
                    return
                part = left.take(state)
            draws = uniform(part["index"], (piece.count, count), seed=key, step=1 + piece.first)
            buffers = {name: value for name, value in part.items() if name != "index"} | {"draws": draws}
            if self.norm != "linf":
                buffers["shapes"] = patterns(piece.height, piece.width, self.norm, state["x"])
            self._run_loop(graph, buffers, height=piece.height, width=piece.width)
            if part["fooled"].any():
                left.put(state, part, written)
                part = None
        if part is not None:
            left.put(state, part, written)

    def _graph(self, height: int, width: int) -> GraphedLoop:
        if (height, width) not in self._graphs:
            self._graphs[height, width] = GraphedLoop(
                self.model, self._query, warn=self.engine == "auto", writes=("best", "score", "fooled")
            )
        return self._graphs[height, width]

    def _query(
        self,
        x: Tensor,
        best: Tensor,
        y: Tensor,
        eps: Tensor,
        fooled: Tensor,
        score: Tensor,
        draws: Tensor,
        shapes: Tensor | None = None,
        *,
        height: int,
        width: int,
    ) -> None:
        """The queries of one piece, in place on `best`, `score` and `fooled`; `draws` [B, queries, numbers]."""
        images, trial = as_images(best), torch.empty_like(best)
        window: dict[str, Any] = {"bounds": self.bounds}
        if shapes is None:
            move = recolour(as_images(x), eps, draws, height=height, width=width, **window)
        else:
            move = remodel(as_images(x), eps, draws, shapes, norm=self.norm, **window)
        for query in range(draws.shape[1]):
            move(query, images, as_images(trial))
            logits = self._gradient.logits(trial)
            found, hit = self._score(logits, y), self._fooled(logits, y)
            better = ((found < score) | hit) & ~fooled
            torch.where(_rows(better, best), trial, best, out=best)
            torch.where(better, found, score, out=score)
            fooled |= hit

    def _start(self, x: Tensor, eps: Tensor, index: Tensor, key: int) -> Tensor:
        """Images on the surface of the ball, [B, ...]."""
        if self.norm == "linf":
            images = stripes(as_images(x), eps, index, key, self.bounds)
        else:
            images = grid(as_images(x), eps, index, key, self.norm, self.bounds)
        return images.reshape(x.shape)


def _rows(chosen: Tensor, x: Tensor) -> Tensor:
    """bool [B] as it broadcasts over images [B, ...]."""
    return chosen.reshape(-1, *[1] * (x.dim() - 1))
