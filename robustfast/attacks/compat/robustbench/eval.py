"""``robustbench.eval``: clean and robust accuracy in one call, on data sets of this machine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.attacks.compat.autoattack import AutoAttack, EvaluationState
from robustfast.attacks.compat.model import check_device
from robustfast.attacks.compat.robustbench.data import first_images
from robustfast.attacks.compat.robustbench.utils import clean_accuracy

__all__ = ["benchmark"]

_THREATS = ("Linf", "L2", "L1")


def benchmark(
    model: nn.Module,
    n_examples: int = 10000,
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path = "./data",
    corruptions_data_dir: str | Path | None = None,
    device: Any = None,
    batch_size: int = 32,
    eps: float | None = None,
    log_path: str | Path | None = None,
    preprocessing: Callable[[Tensor], Tensor] | None = None,
    aa_state_path: str | Path | None = None,
) -> tuple[float, float]:
    """Clean and robust accuracy, as fractions, under AutoAttack's standard version.

    As in RobustBench: the first `n_examples` test images, a warning for a model in train mode, two printed lines. On
    purpose different: nothing is downloaded (`data_dir` holds the published files), any data set of
    `robustfast.data.load` will do, "L1" is a threat model too, `aa_state_path` can be resumed from, by the same
    evaluation alone, and no longer ends in an error. Corruptions are not ours.

    Args:
        model: a module, images in [0, 1] -> logits.
        n_examples: test images.
        dataset: a name, or an enumeration's member that has one as its value.
        threat_model: "Linf", "L2" or "L1", or a member as above.
        to_disk: write ``model_info/DATASET/THREAT_MODEL/MODEL_NAME.json``.
        model_name: needed by `to_disk`.
        data_dir: folder with the data set's files.
        device: None: the CPU.
        batch_size: images per batch.
        eps: radius.
        log_path: file that gets AutoAttack's lines.
        preprocessing: a function of the images [N, C, H, W] in [0, 1].
        aa_state_path: AutoAttack's state file.

    Raises:
        NotImplementedError: several models, or corruptions.
        ValueError: another threat model, no eps, no name where one is needed, a preprocessing by name, or a CUDA device
            without CUDA.
        UserError: a data set that is not found, or cannot be read.
    """
    if isinstance(model, (list, tuple)) or isinstance(device, (list, tuple)):
        raise NotImplementedError("one model and one device at a time")
    threat, dataset = getattr(threat_model, "value", threat_model), getattr(dataset, "value", dataset)
    if str(threat).startswith("corruptions"):
        raise NotImplementedError(f"threat model {threat!r} has no counterpart here: keep robustbench for it")
    if threat not in _THREATS:
        raise ValueError(f"threat_model is {threat!r}, expected one of {', '.join(_THREATS)}")
    if eps is None:
        raise ValueError("If the threat model is L2 or Linf, `eps` must be specified.")
    if to_disk and model_name is None:
        raise ValueError("If `to_disk` is True, `model_name` should be specified.")
    if getattr(model, "training", False):
        warnings.warn("The given model is *not* in eval mode.", stacklevel=2)
    device = device or torch.device("cpu")
    check_device(device)
    model = model.to(device)
    x, y = first_images(dataset, n_examples, data_dir, preprocessing)
    clean = clean_accuracy(model, x, y, batch_size=batch_size, device=device)
    print(f"Clean accuracy: {clean:.2%}")
    adversary = AutoAttack(model, norm=threat, eps=eps, version="standard", device=device, log_path=log_path)
    x_adv = adversary.run_standard_evaluation(x, y, bs=batch_size, state_path=aa_state_path)
    if aa_state_path is None:
        robust = clean_accuracy(model, x_adv, y, batch_size=batch_size, device=device)
    else:
        robust = EvaluationState.from_disk(aa_state_path).robust_accuracy
    print(f"Adversarial accuracy: {robust:.2%}")
    if to_disk:
        path = Path("model_info") / dataset / threat / f"{model_name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"clean_acc": f"{clean:.2%}"[:-1], "autoattack_acc": f"{robust:.2%}"[:-1], "eps": eps}
        path.write_text(json.dumps(facts, indent=2))
    return clean, robust
