"""torchattacks' scripts on our attacks: the same images, modes, files and errors."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustfast.attacks.compat import torchattacks as ours

Batch = tuple[Tensor, Tensor]

LINF = [
    ("FGSM", {}),
    ("BIM", {"alpha": 3 / 255}),
    ("BIM", {"steps": 0}),
    ("PGD", {"random_start": False, "steps": 7}),
    ("EOTPGD", {"random_start": False, "eot_iter": 3}),
    ("MIFGSM", {"decay": 0.7}),
]


@pytest.fixture
def theirs() -> Any:
    return pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")


def aim(attack: Any, mode: str) -> Any:
    if mode == "label":
        attack.set_mode_targeted_by_label(quiet=True)
    elif mode == "least":
        attack.set_mode_targeted_least_likely(2, quiet=True)
    elif mode == "function":
        attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 5, quiet=True)
    return attack


@pytest.mark.parametrize("mode", ["default", "label", "least", "function"])
@pytest.mark.parametrize(("name", "settings"), LINF)
def test_linf_attacks_are_theirs(
    net: nn.Module, batch: Batch, theirs: Any, name: str, settings: dict[str, Any], mode: str
) -> None:
    expected, found = (
        aim(getattr(library, name)(net, **settings), mode)(*batch) for library in (theirs, ours)
    )
    # BIM clips to x - eps and x + eps there, the difference here: one rounding.
    assert torch.allclose(found, expected, rtol=0, atol=1e-8 if name == "BIM" else 0)
    assert not torch.equal(found, batch[0])


@pytest.mark.parametrize("mode", ["default", "label"])
def test_l2_pgd_is_theirs(net: nn.Module, batch: Batch, theirs: Any, mode: str) -> None:
    settings = {"eps": 0.5, "alpha": 0.1, "random_start": False}
    expected, found = (aim(library.PGDL2(net, **settings), mode)(*batch) for library in (theirs, ours))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["PGD", "FFGSM", "RFGSM", "TPGD", "PGDL2", "EOTPGD"])
def test_random_starts_are_those_of_the_library(
    net: nn.Module, batch: Batch, theirs: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Steps of length 0 leave the start alone: how far it lies, on average over images, is the law's."""
    x, y = 0.4 + 0.2 * batch[0].repeat(40, 1, 1, 1), batch[1].repeat(40)
    settings = {"eps": 0.1} if name != "PGDL2" else {"eps": 0.5}
    length = 1e-3 if name == "RFGSM" else 0.0

    def far(library: Any) -> Tensor:
        attack = getattr(library, name)(net, alpha=length, **settings)
        attack.steps = 1
        return (attack(x, y) - x).flatten(1).norm(dim=1)

    torch.manual_seed(0)
    expected, found = far(theirs), far(ours)
    assert found.mean() == pytest.approx(float(expected.mean()), rel=0.05)
    assert found.std() == pytest.approx(float(expected.std()), rel=0.15, abs=1e-4)


def test_draws_follow_the_global_seed_and_differ_from_call_to_call(net: nn.Module, batch: Batch) -> None:
    attack = ours.PGD(net)
    torch.manual_seed(3)
    first, second = attack(*batch), attack(*batch)
    torch.manual_seed(3)
    assert torch.equal(attack(*batch), first)
    assert not torch.equal(first, second)


def test_normalised_inputs_are_attacked_in_pixels(make_net: Any, batch: Batch, theirs: Any) -> None:
    net, (x, y) = make_net().eval(), batch
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    normal = (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    results = []
    for library in (theirs, ours):
        attack = library.PGD(net, random_start=False)
        attack.set_normalization_used(mean=mean, std=std)
        results.append(attack(normal, y))
        aim(attack, "least")
        results.append(attack(normal, y))
    for expected, found in zip(results[:2], results[2:], strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    moved = (results[2] - normal) * torch.tensor(std).reshape(3, 1, 1)
    assert moved.abs().max() == pytest.approx(8 / 255, abs=1e-6)


def test_train_mode_is_used_where_asked_and_leaves_no_trace(make_net: Any, batch: Batch, theirs: Any) -> None:
    net = make_net().train()
    net[0].eval()  # frozen by its owner; torchattacks wakes it
    before = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    attack = ours.PGD(net, random_start=False)
    in_eval = attack(*batch)
    attack.set_model_training_mode(model_training=True, batchnorm_training=True, dropout_training=False)
    in_train = attack(*batch)
    probing = ours.TPGD(net)
    probing.set_model_training_mode(True, True, True)
    probing(batch[0])
    assert [part.training for part in net.modules()] == modes
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    other = theirs.PGD(copy.deepcopy(net), random_start=False)
    other.set_model_training_mode(model_training=True, batchnorm_training=True, dropout_training=False)
    assert torch.equal(in_train, other(*batch))
    assert not torch.equal(in_train, in_eval)


def test_modes_come_back_when_the_model_fails(batch: Batch) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 5)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    net = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        ours.FGSM(net)(*batch)
    assert net.training
    assert net.layer.training


@pytest.mark.parametrize("save_type", ["float", "int"])
def test_files_are_read_by_either_library(
    net: nn.Module,
    batch: Batch,
    theirs: Any,
    tmp_path: Path,
    save_type: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loader = DataLoader(TensorDataset(*batch), batch_size=3)
    more = {"save_predictions": True, "save_clean_inputs": True, "save_type": save_type}
    found = {}
    for writer in (ours, theirs):
        path = tmp_path / f"{writer.__name__}.pt"
        attack = writer.PGD(net, random_start=False)
        accuracy, l2, _ = attack.save(loader, path, verbose=True, return_verbose=True, **more)
        for reader in (ours, theirs):
            kept = reader.PGD.load(path, load_predictions=True, load_clean_inputs=True, batch_size=8)
            found[writer, reader] = (accuracy, l2, *next(iter(kept)))
    expected = found[theirs, theirs]
    for accuracy, l2, *tensors in found.values():
        assert accuracy == expected[0]
        assert l2 == pytest.approx(expected[1])
        for ours_, theirs_ in zip(tensors, expected[2:], strict=True):
            assert torch.equal(ours_, theirs_)
            assert ours_.dtype == theirs_.dtype
    assert "Robust accuracy" in capsys.readouterr().out


def test_load_normalises(net: nn.Module, batch: Batch, tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(*batch), batch_size=8)
    assert ours.VANILA(net).save(loader, tmp_path / "a.pt", verbose=False) is None
    kept = ours.VANILA.load(tmp_path / "a.pt", normalize={"mean": [0.5] * 3, "std": [0.25] * 3}, batch_size=8)
    assert torch.allclose(next(iter(kept))[0], (batch[0] - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *LINF,
        ("PGDL2", {}),
        ("FFGSM", {}),
        ("RFGSM", {}),
        ("TPGD", {}),
        ("GN", {}),
        ("VANILA", {}),
        ("APGD", {}),
        ("APGDT", {}),
        ("FAB", {}),
        ("Square", {}),
        ("CW", {}),
        ("DeepFool", {}),
        ("SPSA", {}),
        ("AutoAttack", {"seed": 0}),
    ],
)
def test_attributes_are_theirs(net: nn.Module, theirs: Any, name: str, settings: dict[str, Any]) -> None:
    one, other = (getattr(library, name)(net, **settings) for library in (ours, theirs))
    # SPSA shows a loss there that cannot be chosen.
    assert repr(one) == repr(other).replace(", loss_fn=MarginalLoss()", "")
    assert one.attack == other.attack
    assert one.supported_mode == other.supported_mode
    assert isinstance(one, ours.attack.Attack)
    assert isinstance(one, ours.Attack)
    hidden = {name for name in vars(other) if name.startswith("_")} | {"loss_fn", "loss"}
    for attribute in vars(other).keys() - hidden:
        assert hasattr(one, attribute), attribute
    if "targeted" not in other.supported_mode:
        with pytest.raises(ValueError, match="Targeted mode is not supported"):
            one.set_mode_targeted_by_label()


@pytest.mark.parametrize("name", [name for name in ours.__all__ if name != "attack"])
def test_arguments_are_theirs(theirs: Any, name: str) -> None:
    library = theirs.attack if name == "Attack" else theirs
    one, other = getattr(ours, name), getattr(library, name)
    shared = ["__init__", "save", "load"] if name == "MultiAttack" else ["__init__"]
    if name == "Attack":
        hidden = ("__init__", "__repr__", "__setattr__", "get_mode")
        shared = [
            key for key in vars(other) if callable(vars(other)[key]) and key not in hidden and key[0] != "_"
        ]
        shared += ["__init__", "load", "to_type"]
    for method in shared:
        mine, yours = (inspect.signature(getattr(kind, method)).parameters for kind in (one, other))
        if method == "save" and name == "MultiAttack":
            continue  # theirs says save_clean_images for save_clean_inputs
        if list(yours) == ["self", "args", "kwargs"]:
            continue  # wrapped there
        assert list(mine) == list(yours), method
        assert [p.default for p in mine.values()] == [p.default for p in yours.values()], method


def test_several_attacks_keep_the_first_success(
    net: nn.Module, batch: Batch, capsys: pytest.CaptureFixture
) -> None:
    x, y = batch
    weak, strong = ours.VANILA(net), ours.PGD(net, eps=0.1, alpha=0.02, random_start=False)
    found = ours.MultiAttack([weak, strong], verbose=True)(x, y)
    net.eval()
    wrong = net(x).argmax(1) != y
    assert torch.equal(found[wrong], x[wrong]), "what the first attack won is not attacked again"
    fooled = net(strong(x, y)).argmax(1) != y
    assert torch.equal(found[fooled & ~wrong], strong(x, y)[fooled & ~wrong])
    assert torch.equal(found[~fooled & ~wrong], x[~fooled & ~wrong])
    assert "Attack success rate" in capsys.readouterr().out
    with pytest.raises(ValueError, match="More than two"):
        ours.MultiAttack([weak])
    with pytest.raises(ValueError, match="different model"):
        ours.MultiAttack([weak, ours.VANILA(copy.deepcopy(net))])


def test_settings_reach_the_attacks_inside(net: nn.Module, batch: Batch) -> None:
    inner = [ours.PGD(net), ours.FGSM(net)]
    several = ours.MultiAttack(inner)
    several.set_normalization_used([0.0] * 3, [0.5] * 3)
    several.set_model_training_mode(True, False, True)
    several.set_device("cpu")
    assert all(attack.normalization_used is not None and attack._model_training for attack in inner)
    assert (several(batch[0] * 2, batch[1]) / 2 - batch[0]).abs().max() < 0.04


def test_an_attack_of_ones_own_runs_in_the_frame(net: nn.Module, batch: Batch) -> None:
    class Brighter(ours.attack.Attack):
        def __init__(self, model: nn.Module) -> None:
            super().__init__("Brighter", model)
            self.supported_mode = ["default", "targeted"]
            self.seen: list[Tensor] = []

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            target = self.get_target_label(images, labels) if self.targeted else labels
            self.seen.append(self.get_logits(images).argmax(1) == target)
            return (images + 0.1).clamp(0, 1)

    attack = Brighter(net.train())
    attack.set_mode_targeted_random(quiet=True)
    attack.set_normalization_used([0.5] * 3, [0.5] * 3)
    found = attack(batch[0] * 2 - 1, batch[1])
    assert torch.allclose(found, (batch[0] + 0.1).clamp(0, 1) * 2 - 1, atol=1e-6)
    assert net.training


def test_targets_are_other_classes(net: nn.Module, batch: Batch) -> None:
    attack = ours.PGD(net)
    x, y = batch
    drawn = torch.stack([attack.get_random_target_label(x, y) for _ in range(50)])
    assert not (drawn == y).any()
    assert drawn.unique().tolist() == [0, 1, 2, 3, 4]
    assert not (attack.get_least_likely_label(x, y) == y).any()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("FAB", {"steps": 6, "eps": 0.1}),
        ("FAB", {"steps": 6, "eps": 0.1, "multi_targeted": True, "n_classes": 5}),
        ("DeepFool", {}),
    ],
)
def test_attacks_without_draws_find_what_theirs_find(
    net: nn.Module, batch: Batch, theirs: Any, name: str, settings: dict[str, Any]
) -> None:
    net.eval()
    x, y = batch[0], net(batch[0]).argmax(1)
    expected, found = (getattr(library, name)(net, **settings)(x, y).detach() for library in (theirs, ours))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert (net(found).argmax(1) != y).sum() >= 3


def test_spsa_descends_as_theirs(net: nn.Module, batch: Batch, theirs: Any) -> None:
    """Draws differ; how far the margin falls does not."""
    net.eval()
    x, y = batch[0].repeat(4, 1, 1, 1), net(batch[0]).argmax(1).repeat(4)
    settings = {"eps": 0.1, "lr": 0.05, "nb_iter": 3, "nb_sample": 64}
    torch.manual_seed(0)
    margins = []
    for library in (theirs, ours):
        logits = net(library.SPSA(net, **settings)(x, y)).detach()
        margins.append(float((logits.gather(1, y[:, None]).squeeze(1) - logits.mean(1)).mean()))
    before = net(x).detach()
    clean = float((before.gather(1, y[:, None]).squeeze(1) - before.mean(1)).mean())
    assert margins[1] < clean
    assert margins[1] - clean == pytest.approx(margins[0] - clean, rel=0.2)


def test_few_classes_climb_the_margin(theirs: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    x = torch.rand(6, 3, 8, 8)
    y = net(x).argmax(1)
    with pytest.raises(IndexError):
        theirs.APGDT(net, eps=0.1, n_classes=3)(x, y)
    attack = ours.APGDT(net, eps=0.1)
    with pytest.warns(RuntimeWarning, match="apgd-t with 3 classes: .* margin") as caught:
        found = [attack(x, y) for _ in range(2)]
    assert len(caught) == 1
    assert (net(found[1]).argmax(1) != y).all()
    assert (found[1] - x).abs().max() <= 0.1 + 1e-6


def test_autoattack_leaves_what_stands(
    net: nn.Module, batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    net.eval()
    x, y = batch[0], net(batch[0]).argmax(1)
    attack = ours.AutoAttack(net, norm="L2", eps=1.0, version="standard", n_classes=5, seed=0, verbose=True)
    attack.run = functools.partial(attack.run, queries=20)
    found = attack(x, y)
    fooled = net(found).argmax(1) != y
    assert fooled.any()
    assert torch.equal(found[~fooled], x[~fooled])
    assert (found - x).flatten(1).norm(dim=1).max() <= 1 + 1e-5
    assert "apgd-ce: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="Not valid version"):
        ours.AutoAttack(net, version="custom")
    with pytest.raises(AssertionError, match="norm"):
        ours.APGD(net, norm="L1")(x, y)


def test_what_is_not_served_says_so() -> None:
    with pytest.raises(AttributeError, match="torchattacks's JSMA has no counterpart"):
        _ = ours.JSMA


# A script as torchattacks' readme has them, in other words: only the import differs.


def script(torchattacks: Any, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    out: dict[str, Any] = {}
    atk = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=4)
    out["default"] = atk(images, labels)
    atk.set_mode_targeted_by_function(target_map_function=lambda images, labels: (labels + 1) % 5)
    out["targeted"] = atk(images, labels)
    atk.set_mode_targeted_random(quiet=True)
    out["random"] = atk(images, labels)
    atk.set_mode_default()
    out["mode"] = atk.get_mode()
    out["normalised"] = torchattacks.FGSM(model, 4 / 255)
    out["normalised"].set_normalization_used(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    out["normalised"] = out["normalised"](images * 2 - 1, labels)
    strong = torchattacks.MultiAttack([atk, torchattacks.PGDL2(model, eps=0.5), torchattacks.TPGD(model)])
    out["several"] = strong(images, labels)
    for name in ("FGSM", "FFGSM", "BIM", "RFGSM", "MIFGSM", "EOTPGD", "GN", "VANILA"):
        out[name] = getattr(torchattacks, name)(model)(images, labels)
    out["cw"] = torchattacks.CW(model, c=1, kappa=0, steps=5, lr=0.01)(images, labels)
    out["deepfool"] = torchattacks.DeepFool(model, steps=3)(images, labels)
    out["apgd"] = torchattacks.APGD(model, norm="L2", eps=0.5, steps=5, n_restarts=2)(images, labels)
    out["apgdt"] = torchattacks.APGDT(model, steps=5, n_classes=5)(images, labels)
    out["square"] = torchattacks.Square(model, n_queries=20)(images, labels)
    out["spsa"] = torchattacks.SPSA(model, eps=0.1, nb_sample=8)(images, labels)
    out["autoattack"] = torchattacks.AutoAttack(model, eps=8 / 255, version="rand", n_classes=5)(
        images, labels
    )
    out["fab"] = torchattacks.FAB(model, steps=3, n_classes=5)(images, labels)
    return out


def test_an_unmodified_script_runs(
    net: nn.Module, batch: Batch, theirs: Any, same_kind: Callable[..., None]
) -> None:
    same_kind(script(ours, net, *batch), script(theirs, net, *batch))
