"""``AutoAttack`` of the AutoAttack package: evaluation of a whole data set in one call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.autoattack_flags import looks_like_probabilities, looks_random
from robustfast.attacks.autoattack_versions import for_classes
from robustfast.attacks.compat.autoattack.parts import (
    APGDAttack,
    APGDAttack_targeted,
    FABAttack_PT,
    SquareAttack,
)
from robustfast.attacks.compat.autoattack.settings import check_attacks, check_version, part_of, settings_of
from robustfast.attacks.compat.autoattack.state import EvaluationState, digest
from robustfast.attacks.compat.model import as_it_is, check_device, fresh_key
from robustfast.attacks.modes import module_of

__all__ = ["AutoAttack", "Logger"]

_NORM_OF = {"Linf": torch.inf, "L2": 2, "L1": 1}

# Images whose logits stand for a model without weights in a state file.
_SHOWN = 8


class Logger:
    """Prints lines, and adds them to a file where one is named."""

    def __init__(self, log_path: str | Path | None) -> None:
        self.log_path = log_path

    def log(self, str_to_log: str) -> None:
        print(str_to_log)
        if self.log_path is not None:
            with open(self.log_path, "a") as file:
                file.write(str_to_log + "\n")


class AutoAttack:
    """``AutoAttack(model, norm='Linf', eps=.3, seed=None, verbose=True, attacks_to_run=[], version='standard', ...)``.

    As in the package: the versions, and `attacks_to_run` with version "custom"; attributes `apgd`, `apgd_targeted`,
    `fab` and `square`, whose settings (n_restarts, n_iter, n_target_classes, n_queries, ...) may be set; x_adv for all
    samples, unchanged where no attack won; the log file; the flags. The model is any callable and its mode is left as
    it is.

    On purpose different: a sample's draws are keyed by seed and by its place in the data set, not by its place in a
    batch of those that are left, so that `bs` does not matter; the global generators are not seeded; a state file can
    be resumed from, by the same evaluation alone; where there are fewer classes than targets, as many as there are are
    taken, and where there are too few for a DLR loss, the margin; samples leave a run once they are won, so that of the
    same samples other iterates come back; a version changed through `attacks_to_run` in
    `run_standard_evaluation_individual` is put back, and so is `fab.n_restarts`, which fab-t sets to one; images
    outside [0, 1] are an error, and so are unknown versions and attacks.

    Args:
        model: images [B, ...] in [0, 1] -> logits.
        norm: "Linf", "L2" or "L1".
        eps: radius.
        seed: of every attack; None draws one for each.
        verbose: print lines, and write them to `log_path`.
        attacks_to_run: names, for version "custom".
        version: "standard", "plus", "rand" or "custom".
        is_tf_model: refused.
        device: where batches are attacked.
        log_path: file that gets the lines too.

    Raises:
        ValueError: a version, an attack or a device that there is not.
    """

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: list[str] | tuple[str, ...] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: Any = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        assert norm in _NORM_OF, f"norm is {norm!r}, expected one of {', '.join(_NORM_OF)}"
        if is_tf_model:
            raise ValueError("models of TensorFlow are not supported: pass one of PyTorch")
        check_version(version)
        if version != "custom" and list(attacks_to_run):
            raise ValueError("attacks_to_run will be overridden unless you use version='custom'")
        check_attacks(attacks_to_run)
        check_device(device)
        self.model = model
        self.norm = norm
        self.epsilon = eps
        self.seed = seed
        self.verbose = verbose
        self.attacks_to_run = list(attacks_to_run)
        self.version = version
        self.is_tf_model = is_tf_model
        self.device = device
        self.logger = Logger(log_path)
        shared = {"eps": eps, "norm": norm, "seed": seed, "device": device}
        self.apgd = APGDAttack(model, n_restarts=5, logger=self.logger, **shared)
        self.fab = FABAttack_PT(model, n_restarts=5, **shared)
        self.square = SquareAttack(model, resc_schedule=False, **shared)
        self.apgd_targeted = APGDAttack_targeted(model, logger=self.logger, **shared)
        if version != "custom":
            self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Set the attacks to run and their settings to those of a version."""
        check_version(version)
        if self.verbose:
            print(f"setting parameters for {version} version")
        if version == "standard":
            l1 = self.norm == "L1"
            self.attacks_to_run = ["apgd-ce", "apgd-t", "fab-t", "square"]
            self.apgd.use_largereps = self.apgd_targeted.use_largereps = l1
            self.apgd.n_restarts = 5 if l1 else 1
            self.fab.n_restarts = 1
            self._set_targets(5 if l1 else 9)
        elif version == "plus":
            self.attacks_to_run = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
            self.apgd.n_restarts = 5
            self.fab.n_restarts = 5
            self._set_targets(9)
            if self.norm not in ("Linf", "L2"):
                print(f'"{version}" version is used with {self.norm} norm: please check')
        elif version == "rand":
            self.attacks_to_run = ["apgd-ce", "apgd-dlr"]
            self.apgd.n_restarts = 1
            self.apgd.eot_iter = 20

    def _set_targets(self, targets: int) -> None:
        self.apgd_targeted.n_restarts = 1
        self.apgd_targeted.n_target_classes = targets
        self.fab.n_target_classes = 9
        self.square.n_queries = 5000

    def get_logits(self, x: Tensor) -> Tensor:
        return self.model(x)

    def get_seed(self) -> int:
        return fresh_key() if self.seed is None else self.seed

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """Every attack in turn on the samples that stand.

        APGD and FAB let go of a sample within five or ten steps of its fall, unless `eot_iter` is above one.
        Runs to the end, as ``perturb`` of the parts does them, win the same samples.

        Args:
            x_orig: images [N, ...] in [0, 1].
            y_orig: labels int64 [N].
            bs: samples per batch.
            return_labels: also return what the model says of each result, int64 [N].
            state_path: file that is written after each batch, and resumed from where it exists: samples that were won
                before come back as they are then. Of another norm, eps, version, seed, data or model, or of other
                settings of an attack to run, it is an error.

        Returns:
            x_adv like x_orig, or (x_adv, y_adv).
        """
        with torch.no_grad(), as_it_is(self.model):
            return self._evaluate(x_orig, y_orig, bs, return_labels, state_path)

    def _evaluate(self, x_orig: Tensor, y_orig: Tensor, bs: int, return_labels: bool, state_path: Any) -> Any:
        # The list may have been set since: without any attack the clean accuracy would pass for the robust one.
        check_attacks(self.attacks_to_run)
        if not self.attacks_to_run:
            raise ValueError("attacks_to_run is empty: no attack would be run")
        state, left = self._begin(x_orig, y_orig, state_path)
        self._log(f"using {self.version} version including {', '.join(left)}.")
        if state.run_attacks:
            self._log(f"{', '.join(state.run_attacks)} was/were already run.")
        self._look(x_orig[:bs].to(self.device), y_orig[:bs].to(self.device))
        x_adv, y_adv = x_orig.detach().clone(), self._predicted(x_orig, bs).to(y_orig.device)
        if state.robust_flags is None:
            state.robust_flags = (y_adv == y_orig).cpu()
            state.clean_accuracy = state.robust_accuracy
            state.to_disk()
            self._log(f"initial accuracy: {state.clean_accuracy:.2%}")
        else:
            self._log(f"initial clean accuracy: {state.clean_accuracy:.2%}")
            self._log(f"robust accuracy at the time of restoring the state: {state.robust_accuracy:.2%}")
        accuracies, begun = {"clean": state.clean_accuracy}, time.time()
        for attack in left:
            if not bool(state.robust_flags.any()):
                break
            seed = self.get_seed()
            standing = state.robust_flags.nonzero().squeeze(1)
            parts = standing.split(bs)
            for number, index in enumerate(parts):
                rows = index.to(x_orig.device)
                x, y = x_orig[rows].to(self.device), y_orig[index.to(y_orig.device)].to(self.device)
                adv = self._attack(attack, x, y, index.to(x.device), seed)
                output = self.get_logits(adv).argmax(1)
                won = output != y
                x_adv[rows[won.to(rows.device)]] = adv[won].to(x_adv)
                y_adv[index.to(y_adv.device)[won.to(y_adv.device)]] = output[won].to(y_adv)
                state.robust_flags[index[won.cpu()]] = False
                state.to_disk()
                self._log(
                    f"{attack} - {number + 1}/{len(parts)} - {int(won.sum())} out of {len(x)} successfully perturbed"
                )
            accuracies[attack] = state.robust_accuracy
            state.run_attacks.append(attack)
            state.to_disk()
            self._log(
                f"robust accuracy after {attack.upper()}: {state.robust_accuracy:.2%} "
                f"(total time {time.time() - begun:.1f} s)"
            )
        self._judge_square(accuracies)
        self._finish(x_orig, x_adv, state)
        return (x_adv, y_adv) if return_labels else x_adv

    def _begin(self, x: Tensor, y: Tensor, state_path: Any) -> tuple[EvaluationState, list[str]]:
        """The state, and the attacks still to run."""
        if state_path is None:
            return EvaluationState(list(self.attacks_to_run)), list(self.attacks_to_run)
        path, subject = Path(state_path), self._subject(x, y)
        if not path.exists():
            state = EvaluationState(list(self.attacks_to_run), path, subject=subject)
            state.to_disk()
            self._log(f"Created state in {path}")
            return state, list(self.attacks_to_run)
        state = EvaluationState.from_disk(path)
        if set(self.attacks_to_run) != set(state.attacks_to_run):
            raise ValueError(
                "The state was created with a different set of attacks to run. You are probably using the wrong state "
                "file."
            )
        if state.robust_flags is not None and len(state.robust_flags) != len(x):
            raise ValueError(
                f"{path} is the state of {len(state.robust_flags)} samples, {len(x)} were given: "
                f"you are probably using the wrong state file"
            )
        state.check(subject)
        self._log(f"Restored state from {path}")
        self._log(
            "Since the state has been restored, **only** the adversarial examples from the current run are going to "
            "be returned."
        )
        return state, [attack for attack in self.attacks_to_run if attack not in state.run_attacks]

    def _subject(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """What a state is of. A model whose weights cannot be found is known by its logits, unless they are random."""
        module = module_of(self.model)
        subject = {
            "norm": self.norm,
            "eps": float(self.epsilon),
            "version": self.version,
            "seed": self.seed,
            "images": digest(x),
            "labels": digest(y),
            **settings_of(self),
        }
        if module is not None:
            kept = sorted(module.state_dict().items())
            return subject | {"weights": digest(*(value for _, value in kept if isinstance(value, Tensor)))}
        first, second = (self.get_logits(x[:_SHOWN].to(self.device)) for _ in range(2))
        return subject | {"logits": first.tolist() if torch.equal(first, second) else None}

    def _attack(self, attack: str, x: Tensor, y: Tensor, index: Tensor, seed: int) -> Tensor:
        part, restarts = getattr(self, part_of(attack)), self.fab.n_restarts
        if attack in ("apgd-ce", "apgd-dlr"):
            self.apgd.loss = attack.removeprefix("apgd-")
        elif attack in ("fab", "fab-t"):
            self.fab.targeted = attack == "fab-t"
            self.fab.n_restarts = 1 if attack == "fab-t" else restarts
        part.seed = seed
        # A random model's answer may turn, so there each run goes on to its end.
        part.stops_early = getattr(part, "eot_iter", self.apgd.eot_iter) == 1
        try:
            return part.perturb(x, y, index=index)
        finally:
            part.stops_early = False
            # Else a second evaluation, or one that resumes, would run FAB by other settings than the first.
            self.fab.n_restarts = restarts

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of samples that the model is right about."""
        with torch.no_grad(), as_it_is(self.model):
            right = self._predicted(x_orig, bs).to(y_orig.device) == y_orig
        accuracy = right.sum().item() / len(x_orig)
        if self.verbose:
            print(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Each attack by itself on all samples: name -> x_adv, or (x_adv, y_adv)."""
        check_attacks(self.attacks_to_run)
        names, verbose = list(self.attacks_to_run), self.verbose
        if verbose:
            print(f"using {self.version} version including {', '.join(names)}")
        found = {}
        try:
            self.verbose = False
            for name in names:
                begun = time.time()
                self.attacks_to_run = [name]
                x_adv, y_adv = self.run_standard_evaluation(x_orig, y_orig, bs=bs, return_labels=True)
                found[name] = (x_adv, y_adv) if return_labels else x_adv
                if verbose:
                    robust = self.clean_accuracy(x_adv, y_orig, bs=bs)
                    space = "\t \t" if name == "fab" else "\t"
                    self.logger.log(
                        f"robust accuracy by {name.upper()} {space} {robust:.2%} \t "
                        f"(time attack: {time.time() - begun:.1f} s)"
                    )
        finally:
            self.attacks_to_run, self.verbose = names, verbose
        return found

    def _predicted(self, x: Tensor, bs: int) -> Tensor:
        parts = [self.get_logits(x[i : i + bs].to(self.device)).argmax(1) for i in range(0, len(x), bs)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)

    def _log(self, text: str) -> None:
        if self.verbose:
            self.logger.log(text)

    def _look(self, x: Tensor, y: Tensor) -> None:
        """Say in the log what makes the result unreliable."""
        first, second = self.get_logits(x), self.get_logits(x)
        classes = first.shape[-1]
        said = []
        if self.version != "rand" and looks_random(first, second, y):
            said.append('it seems to be a randomized defense! Please use version="rand".')
        if looks_like_probabilities(first):
            said.append(
                "it seems that the output is a probability distribution, please be sure that the logits are used!"
            )
        for name, part in (("apgd-dlr", self.apgd), ("apgd-t", self.apgd_targeted)):
            part.classes_are(classes)
            said += (
                [why] if name in self.attacks_to_run and (why := for_classes(name, {}, classes)[1]) else []
            )
        for name, targets in (("apgd-t", self.apgd_targeted), ("fab-t", self.fab)):
            if name in self.attacks_to_run and targets.n_target_classes > classes - 1:
                said.append(
                    f"it seems that more target classes ({targets.n_target_classes}) are used for {name}"
                )
                said[-1] += f" than there are other classes ({classes - 1})!"
        for text in said:
            self.logger.log(f"Warning: {text}")

    def _judge_square(self, accuracies: dict[str, float]) -> None:
        if "square" in accuracies and len(accuracies) > 2:
            before = min(value for name, value in accuracies.items() if name != "square")
            if accuracies["square"] < before - 0.002:
                self.logger.log(
                    f"Warning: Square Attack has decreased the robust accuracy of "
                    f"{before - accuracies['square']:.2%}. This might indicate that the robustness evaluation using "
                    f"AutoAttack is unreliable."
                )

    def _finish(self, x_orig: Tensor, x_adv: Tensor, state: EvaluationState) -> None:
        if not self.verbose or not len(x_orig):
            return
        lengths = torch.linalg.vector_norm((x_adv - x_orig).flatten(1), _NORM_OF[self.norm], dim=1)
        self.logger.log(
            f"max {self.norm} perturbation: {lengths.max():.5f}, nan in tensor: {int((x_adv != x_adv).sum())}, "
            f"max: {x_adv.max():.5f}, min: {x_adv.min():.5f}"
        )
        self.logger.log(f"robust accuracy: {state.robust_accuracy:.2%}")
