import copy
import threading

import pytest
import torch
from hand_made import cross_entropy, hand_made_model, images
from PIL import Image
from safetensors.torch import load_file, save_file

from robustfast.attacks import AttackConfig
from robustfast.data import Dataset, load
from robustfast.distributed import World
from robustfast.errors import SaidElsewhereError, UserError
from robustfast.models import ThreeWay
from robustfast.objectives import PI, pi

ATTACK = AttackConfig()


@pytest.fixture
def dataset():
    pixels = torch.randint(17, (7, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    return Dataset("digits", pixels, labels, tuple("0123456789"), scale=16.0)


@pytest.fixture
def tensors():
    return {
        "robust": torch.rand(7, 1, 8, 8),
        "non_robust": torch.rand(7, 1, 8, 8),
        "labels": torch.arange(7),
    }


@pytest.fixture
def written(tensors, tmp_path):
    path = tmp_path / "pseudo.safetensors"
    save_file(tensors, path)
    return path


def prepared(model, dataset, **fields):
    objective = PI(model, PI.Config(**fields), ATTACK, seed=0)
    objective.prepare(dataset)
    return objective


@pytest.mark.parametrize("train_s", [False, True])
def test_loss_by_hand_takes_rows_by_index(train_s):
    model = hand_made_model(robust=2.0, non_robust=3.0)
    objective = PI(model, PI.Config(train_s=train_s), ATTACK, seed=0)
    robust, non_robust = ((0.1, 0.9), (0.4, 0.3), (0.8, 0.7)), ((0.2, 0.5), (0.6, 0.1), (0.3, 0.9))
    labels = (0, 1, 1)
    objective.robust, objective.non_robust = images(*robust), images(*non_robust)
    objective.labels = torch.tensor(labels)
    x = images((0.7, 0.2), (0.1, 0.4))
    (phase,) = objective.phases(x, torch.tensor([1, 1]), torch.tensor([2, 0]))
    expected = {
        "robust": (cross_entropy(2.0, robust[2], 1) + cross_entropy(2.0, robust[0], 0)) / 2,
        "non_robust": (cross_entropy(3.0, non_robust[2], 1) + cross_entropy(3.0, non_robust[0], 0)) / 2,
    }
    if train_s:
        expected["standard"] = (cross_entropy(5.0, (0.7, 0.2), 1) + cross_entropy(5.0, (0.1, 0.4), 1)) / 2
    assert {name: value.item() for name, value in phase.terms.items()} == pytest.approx(expected, rel=1e-12)
    assert phase.loss.item() == pytest.approx(sum(expected.values()), rel=1e-12)


def test_each_set_trains_its_own_encoder(digits_model, dataset, written):
    objective = prepared(digits_model, dataset, pseudo_inputs=written)
    seen = {}
    for name, encoder in (("r", digits_model.encoder_r), ("n", digits_model.encoder_n)):
        encoder.register_forward_hook(
            lambda _, args, __, name=name: seen.setdefault(name, []).append(args[0])
        )
    index = torch.tensor([5, 1])
    (phase,) = objective.phases(torch.rand(2, 1, 8, 8), torch.tensor([5, 1]), index)
    assert [torch.equal(x, objective.robust[index]) for x in seen["r"]] == [True]
    assert [torch.equal(x, objective.non_robust[index]) for x in seen["n"]] == [True]
    phase.loss.backward()
    assert all(parameter.grad is not None for parameter in digits_model.parameters())


def checkpoint(model, path):
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    return path


def test_pseudo_inputs_are_made_from_two_trained_models_and_kept(digits_model, dataset, tmp_path):
    def trained():
        return ThreeWay("digits_cnn", num_classes=10, in_channels=1).eval()

    at, st = trained(), trained()
    fields = {
        "pseudo_inputs": tmp_path / "made" / "pseudo.safetensors",
        "robust_weights": checkpoint(at, tmp_path / "at.pt"),
        "standard_weights": checkpoint(st, tmp_path / "st.pt"),
        "steps": 60,
        "step_size": 0.1,
    }
    before = copy.deepcopy(digits_model.state_dict())
    made = prepared(digits_model, dataset, **fields)
    assert all(torch.equal(value, before[name]) for name, value in digits_model.state_dict().items())
    x = dataset.images / 16
    for images_made, encoder in ((made.robust, at.encoder_r), (made.non_robust, st.encoder_n)):
        assert images_made.shape == x.shape
        with torch.no_grad():
            wanted, found = encoder(x), encoder(images_made)
        assert ((found - wanted).norm(dim=1) < 0.5 * wanted.norm(dim=1)).all()
        # Different pixels with the same features: it started from another image.
        assert ((images_made - x).flatten(1).norm(dim=1) > 1).all()
    assert torch.equal(made.labels, dataset.labels)

    stored = load_file(fields["pseudo_inputs"])
    assert torch.equal(stored["robust"], made.robust)
    assert not list(fields["pseudo_inputs"].parent.glob("*.partial"))
    # The file now stands for the weights.
    again = prepared(digits_model, dataset, pseudo_inputs=fields["pseudo_inputs"])
    assert torch.equal(again.non_robust, made.non_robust)


class Threads(World):
    """A world of threads in place of processes, which are `said` in common."""

    def __init__(self, rank, size, said, barrier):
        super().__init__(rank, size)
        self.said, self.barrier = said, barrier

    def gather(self, value):
        self.said[self.rank] = value
        self.barrier.wait(60)
        everything = list(self.said)
        self.barrier.wait(60)
        return everything

    def broadcast(self, value):
        return self.gather(value)[0]

    def sum(self, value):
        return sum(self.gather(value))

    def wait(self):
        self.gather(None)


def in_several(size, model, dataset, fields_of):
    """What each rank's objective is once it is prepared, or the mistake that it ends with."""
    said, barrier, found = [None] * size, threading.Barrier(size), [None] * size

    def prepare(rank):
        objective = PI(copy.deepcopy(model), PI.Config(**fields_of(rank)), ATTACK, seed=0)
        objective.world = Threads(rank, size, said, barrier)
        try:
            objective.prepare(dataset)
            found[rank] = objective
        except UserError as mistake:
            found[rank] = mistake

    threads = [threading.Thread(target=prepare, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.fixture
def weights(digits_model, tmp_path):
    path = checkpoint(digits_model, tmp_path / "both.pt")
    return {"robust_weights": path, "standard_weights": path, "steps": 3}


def test_several_processes_share_the_inversion_and_one_writes(
    digits_model, dataset, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(pi, "INVERSION_BATCH", 2)
    alone = prepared(digits_model, dataset, **weights)
    inverted, written = [], []

    def invert(encoder, target, *args, invert=pi.invert, **settings):
        inverted.append(target)
        return invert(encoder, target, *args, **settings)

    def write(path, tensors, write=pi._write):
        written.append(threading.current_thread())
        write(path, tensors)

    monkeypatch.setattr(pi, "invert", invert)
    monkeypatch.setattr(pi, "_write", write)
    path = tmp_path / "made" / "pseudo.safetensors"
    found = in_several(3, digits_model, dataset, lambda rank: weights | {"pseudo_inputs": path})
    # Each image once for either set: seven in batches of two.
    assert sorted(len(target) for target in inverted) == [1, 1, 2, 2, 2, 2, 2, 2]
    assert len(written) == 1
    for objective in found:
        assert torch.equal(objective.robust, alone.robust)
        assert torch.equal(objective.non_robust, alone.non_robust)
        assert torch.equal(objective.labels, dataset.labels)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert torch.equal(load_file(path)["robust"], alone.robust)


def test_a_mistake_of_one_process_ends_all_before_anything_is_inverted(
    digits_model, dataset, weights, tmp_path
):
    def fields_of(rank):
        return weights | ({"robust_weights": tmp_path / "none.pt"} if rank == 1 else {})

    found = in_several(3, digits_model, dataset, fields_of)
    assert [type(mistake) for mistake in found] == [SaidElsewhereError, UserError, SaidElsewhereError]
    assert {str(mistake) for mistake in found} == {str(found[1])}
    assert "none.pt" in str(found[1])


def test_a_file_that_cannot_be_written_ends_all(digits_model, dataset, weights, tmp_path):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "pseudo.safetensors"
    found = in_several(2, digits_model, dataset, lambda rank: weights | {"pseudo_inputs": path})
    assert [type(mistake) for mistake in found] == [UserError, SaidElsewhereError]
    assert str(found[0]).startswith(f"cannot write {path}: ")


def test_image_files_are_inverted_as_their_decoded_images_are(digits_model, tmp_path):
    for number in range(3):
        (tmp_path / "train" / str(number)).mkdir(parents=True)
        pixels = torch.randint(256, (8, 8), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "train" / str(number) / "0.png")
    weights = checkpoint(digits_model, tmp_path / "at.pt")
    fields = {"robust_weights": weights, "standard_weights": weights, "steps": 2, "step_size": 0.1}
    files = load("image_folder", "train", tmp_path)
    made, expected = (prepared(digits_model, each, **fields) for each in (files, files.decode()))
    assert made.robust.shape == (3, 1, 8, 8)
    assert torch.equal(made.robust, expected.robust)
    assert made.labels.tolist() == [0, 1, 2]


def test_without_a_file_and_weights_it_says_what_to_give(digits_model, dataset, tmp_path):
    with pytest.raises(UserError, match=r"no pseudo-inputs at .*none.*--objective.robust-weights"):
        prepared(digits_model, dataset, pseudo_inputs=tmp_path / "none")
    with pytest.raises(UserError, match=r"--objective.standard-weights"):
        prepared(digits_model, dataset, robust_weights=tmp_path / "at.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "has no tensor 'labels': expected robust, non_robust, labels"),
        (
            {"robust": torch.rand(6, 1, 8, 8)},
            r"robust is torch.float32 \(6, 1, 8, 8\), expected torch.float32 \(7, 1, 8, 8\)",
        ),
        ({"non_robust": torch.rand(7, 1, 8, 8).half()}, "non_robust is torch.float16"),
        ({"robust": torch.rand(7, 1, 8, 8) * 255}, "robust spans .* expected 0 to 1"),
        ({"robust": torch.full((7, 1, 8, 8), torch.nan)}, "robust spans nan to nan, expected 0 to 1"),
        ({"labels": torch.arange(7) + 4}, "labels spans 4 to 10, expected 0 to 9"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    change, message, digits_model, dataset, tensors, tmp_path
):
    path = tmp_path / "pseudo.safetensors"
    save_file({name: value for name, value in (tensors | change).items() if value is not None}, path)
    with pytest.raises(UserError, match=message) as caught:
        prepared(digits_model, dataset, pseudo_inputs=path)
    assert "\n" not in str(caught.value)


def plain(content, path):
    torch.save(content, path)
    return path


def test_broken_files_are_refused_in_one_line(digits_model, dataset, written, tmp_path):
    written.write_bytes(written.read_bytes()[:100])
    with pytest.raises(UserError, match="is no readable safetensors file") as caught:
        prepared(digits_model, dataset, pseudo_inputs=written)
    assert "\n" not in str(caught.value)
    other = ThreeWay("small_cnn", num_classes=10, in_channels=1)
    for path, message in (
        (tmp_path / "none.pt", "is no readable checkpoint"),
        (
            checkpoint(other, tmp_path / "other.pt"),
            r"holds no checkpoint of this model: .*same --model and --dataset \(DigitsCNN, 10 classes\)",
        ),
        (plain(["no", "weights"], tmp_path / "list.pt"), "holds no checkpoint of this model"),
        (plain({"model": None}, tmp_path / "empty.pt"), "holds no checkpoint of this model"),
        (
            plain(torch.nn.ReLU(), tmp_path / "code.pt"),
            "code.pt is no readable checkpoint: it holds more than tensors and plain values",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            prepared(digits_model, dataset, robust_weights=path, standard_weights=path)
        assert "\n" not in str(caught.value)


def test_bad_settings_are_refused():
    for settings in ({"steps": 0}, {"step_size": 0.0}):
        with pytest.raises(UserError, match=r"^--objective.steps .* expected at least 1 and above 0"):
            PI.Config(**settings)
