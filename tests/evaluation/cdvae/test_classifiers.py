"""Classifiers of parts: whose they are, what they see, and which runs have none."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from robustfast.data import load
from robustfast.errors import UserError
from robustfast.evaluation.cdvae.classifiers import (
    classifiers,
    no_generator,
    promised,
    split_network,
)
from robustfast.evaluation.detectors.parts import part_model
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.parts import Request


def _copy(path: Path, to: Path, **changes: object) -> Path:
    """A run folder whose configuration or images are told otherwise."""
    shutil.copytree(path, to)
    record = json.loads((to / "config.json").read_text())
    for key, value in changes.items():
        (record if key in record else record["config"])[key] = value
    (to / "config.json").write_text(json.dumps(record))
    return to


def test_each_run_gives_the_part_that_it_was_trained_on(context_of, runs) -> None:
    context = context_of("cdvae", source=str(runs("x")), against=(f"d-g={runs('g')}",), images=40)
    found = classifiers(context)
    assert set(found) == {"x", "g", "r"}
    network = split_network(context.run)
    assert found["r"] is network.classifier("r")
    ((x, _, _),) = context.batches()
    d_g = context.others()["d-g"].model.way("r")
    with torch.no_grad():
        # Through this run's G as through the copy that D_G was trained behind.
        assert torch.equal(part_model(network, "g", found["g"])(x), d_g(x))
        assert torch.equal(part_model(network, "x", found["x"])(x), context.source()(x))
        assert torch.equal(part_model(network, "r")(x), network.way("n")(x))
    assert not any(module.training for classifier in found.values() for module in classifier.modules())


def test_runs_that_give_no_classifier_are_said(context_of, runs, train) -> None:
    """Not those of cdvae, which the sweep over gamma stands beside this one."""
    plain, beside = train("digits-at", "plain", epochs=1), train("digits-cdvae", "beside", epochs=1)
    against = (f"plain={plain}", f"d-g={runs('g')}", f"beside={beside}")
    file = io.StringIO()
    context = replace(context_of("cdvae", against=against), console=Console(file=file))
    assert set(classifiers(context)) == {"g", "r"}
    assert file.getvalue() == (
        f"--against {plain}: no classifier of a part of this run's images, and not used as one\n"
    )


def test_gradients_run_through_g(context_of) -> None:
    context = context_of("cdvae", images=4)
    network = split_network(context.run)
    ((x, _, _),) = context.batches()
    x.requires_grad_()
    part_model(network, "r")(x).sum().backward()
    # What D alone would give for x - G(x) without -G.
    seen = network.part(x.detach(), "r").detach().requires_grad_()
    network.classifier("r")(seen).sum().backward()
    direct = seen.grad / network.normalisation.std
    assert not torch.allclose(x.grad, direct, rtol=1e-2)


def test_parts_tell_models_apart(context_of) -> None:
    network = split_network(context_of("cdvae").run)
    one = network.classifier("r")
    digests = {weights_digest(part_model(network, part, one)) for part in "xgr"}
    assert len(digests) == 3


def test_without_other_runs_there_are_the_runs_own(context_of, runs) -> None:
    assert set(classifiers(context_of("cdvae"))) == {"r"}
    # The run itself, named once more, and one run under both flags, are no second ones.
    again = context_of("cdvae", source=str(runs("x")), against=(str(runs("cdvae")), str(runs("x"))))
    assert set(classifiers(again)) == {"r", "x"}
    assert set(classifiers(context_of("g", source=str(runs("x"))))) == {"g", "x"}


def test_what_a_request_promises(runs) -> None:
    assert promised(Request(source=str(runs("x")), against=(f"a={runs('g')}",))) == {"x", "g"}
    assert promised(Request(source="module:function", against=(str(runs("cdvae")),))) == set()


def test_one_part_from_two_runs_is_refused(context_of, runs, tmp_path: Path) -> None:
    other = _copy(runs("g"), tmp_path / "other")
    with pytest.raises(
        UserError, match=r"a classifier of G\(x\), and so has .*; name one run for a part"
    ) as error:
        classifiers(context_of("cdvae", against=(str(runs("g")), f"twice={other}")))
    assert str(other) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mnist"}, "trained on mnist, .* on digits; name runs of one data set"),
        ({"size": [9, 9]}, "1-channel images of 9x9, .* of 8x8; name runs of the same images"),
    ],
)
def test_runs_of_other_images_are_refused(
    context_of, runs, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    other = _copy(runs("x"), tmp_path / "other", **changes)
    for flag, request in (("--source", {"source": str(other)}), ("--against", {"against": (str(other),)})):
        with pytest.raises(UserError, match=f"{flag} .*{message}"):
            classifiers(context_of("cdvae", **request))


def test_another_g_has_other_parts(context_of, runs, train, tmp_path: Path) -> None:
    # A run that trained a G of its own is no classifier of this one's parts, and may stand beside it.
    own = train("digits-cdvae", "another", epochs=1, seed=1)
    assert set(classifiers(context_of("cdvae", against=(str(own),)))) == {"r"}
    # One that was trained behind it is a mistake.
    behind = train("digits-cdvae-g", "behind", epochs=1, start_from=(str(own),))
    with pytest.raises(UserError, match=r"parts by another G than that of .*; train one with --start-from"):
        classifiers(context_of("cdvae", against=(str(behind),)))


def test_runs_without_g_cannot_be_split(context_of) -> None:
    run = context_of("x").run
    assert "cdvae_classifier" in no_generator(run)
    with pytest.raises(UserError, match="has no auto-encoder that splits images"):
        split_network(run)
    assert no_generator(context_of("cdvae").run) is None


def test_a_model_that_is_only_attacked_gives_none(context_of) -> None:
    assert set(classifiers(context_of("cdvae", source=f"{__file__}:nothing"))) == {"r"}


def nothing() -> None:
    load("digits", "test")
