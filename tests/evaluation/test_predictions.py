"""Who is attacked through what, and who predicts it: with stand-ins whose answers are known."""

import pytest
import torch
from torch import nn

from robustfast.attacks import AttackReport
from robustfast.distributed import World
from robustfast.evaluation.predictions import predict

CODES = {"s": 1.0, "r": 2.0, "n": 3.0}


class Reader(nn.Module):
    """A three-way "model": the standard way reads its label from pixel 0, the robust from 1, the non-robust from 2."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def ways(self, x, ways="srn"):
        assert not self.dropout.training
        columns = dict(zip("srn", range(3), strict=True))
        return {way: nn.functional.one_hot(x[:, columns[way]].long(), 10).float() for way in ways}


class Writer:
    """An "attack" on way w that writes 1, 2 or 3 into every pixel, by the way it attacks."""

    def __init__(self, ways):
        self.attacked = ways

    def __call__(self, x, y, index):
        self.report = {way: AttackReport(len(y), 1, len(y)) for way in self.attacked}
        return {way: torch.full_like(x, CODES[way]) for way in self.attacked}


def batches():
    x = torch.arange(12.0).reshape(4, 3) % 5
    y = torch.tensor([0, 1, 2, 3])
    for part in (slice(0, 3), slice(3, 4)):
        yield x[part], y[part], torch.arange(4)[part]


@pytest.fixture
def model():
    return Reader().train()


def test_each_way_sees_its_own_attack_and_all_see_the_standard_ways(model):
    done = []
    found = predict(model, batches(), {"a": Writer("srn")}, on_batch=done.append)
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert {way: labels.tolist() for way, labels in found.natural.items()} == {
        "s": [0, 3, 1, 4],
        "r": [1, 4, 2, 0],
        "n": [2, 0, 3, 1],
    }
    attacked = found.attacked["a"]
    assert {way: labels.tolist() for way, labels in attacked.own.items()} == {
        "s": [1] * 4,
        "r": [2] * 4,
        "n": [3] * 4,
    }
    assert {way: labels.tolist() for way, labels in attacked.standard.items()} == {
        way: [1] * 4 for way in "srn"
    }
    assert attacked.zero_gradient == {"s": 4, "r": 4, "n": 4}
    assert attacked.nonfinite_gradient == {"s": 2, "r": 2, "n": 2}
    assert done == [3, 1]
    assert model.dropout.training


def test_one_way_model_is_asked_for_its_way_alone(model):
    found = predict(model, batches(), {"a": Writer("r")}, ways="r")
    assert list(found.natural) == ["r"]
    assert list(found.attacked["a"].own) == ["r"]
    assert found.attacked["a"].standard == {}
    assert found.attacked["a"].zero_gradient == {"r": 4}


def test_attacks_do_not_see_each_other(model):
    done = []
    found = predict(model, batches(), {"a": Writer("srn"), "b": Writer("srn")}, on_batch=done.append)
    assert done == [3, 3, 1, 1]
    assert found.attacked["a"].own["n"].tolist() == found.attacked["b"].own["n"].tolist() == [3] * 4


def test_the_parts_of_several_processes_are_put_together_in_their_order(model):
    heard = []

    class Listening(World):
        """As if the processes before had said what `heard` holds."""

        def __init__(self):
            super().__init__()
            self.waited = False

        def wait(self):
            self.waited = True

        def gather(self, value):
            # The others may be a whole batch behind, for longer than a message is waited for.
            assert self.waited
            heard.append(value)
            return list(heard)

    whole = predict(model, batches(), {"a": Writer("srn")})
    first, last = batches()
    for part in ([first], [], [last]):
        found = predict(model, part, {"a": Writer("srn")}, world=Listening())
    assert len(heard) == 3
    assert heard[1].natural == {}
    assert torch.equal(found.labels, whole.labels)
    for mine, theirs in ((found, whole), (found.attacked["a"], whole.attacked["a"])):
        for name, by_way in vars(theirs).items():
            if name in ("natural", "own", "standard"):
                assert all(torch.equal(getattr(mine, name)[way], labels) for way, labels in by_way.items())
    assert found.attacked["a"].zero_gradient == whole.attacked["a"].zero_gradient
    assert found.attacked["a"].nonfinite_gradient == whole.attacked["a"].nonfinite_gradient
