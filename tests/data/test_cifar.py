from __future__ import annotations

import numpy as np
import pytest
import torch

from robustfast.data import load

CLASSES = [f"class_{i:02}" for i in range(100)]
KINDS = {  # name: classes, python folder, meta, label key, names key, files, binary folder, names file, label bytes
    "cifar10": (10, "cifar-10-batches-py", "batches.meta", b"labels", b"label_names"),
    "cifar100": (100, "cifar-100-python", "meta", b"fine_labels", b"fine_label_names"),
}
FILES = {
    ("cifar10", "train"): [f"data_batch_{i}" for i in range(1, 6)],
    ("cifar10", "test"): ["test_batch"],
    ("cifar100", "train"): ["train"],
    ("cifar100", "test"): ["test"],
}
ROWS = 4


def images_and_labels(name: str, file: str) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng([len(file), ord(file[-1])])
    return generator.integers(0, 256, (ROWS, 3072), np.uint8), generator.integers(
        0, KINDS[name][0], ROWS
    ).tolist()


@pytest.fixture
def write_python(tmp_path, python2_pickle):
    def write(name, split, folder=None, **changed):
        """Write a small set as published; `changed` replaces entries of the last batch."""
        count, usual, meta, labels_key, names_key = KINDS[name]
        target = tmp_path / (usual if folder is None else folder)
        target.mkdir(parents=True, exist_ok=True)
        for file in FILES[name, split]:
            pixels, labels = images_and_labels(name, file)
            batch = {b"data": pixels, labels_key: labels, b"filenames": [b"x.png"] * ROWS}
            if name == "cifar100":
                batch[b"coarse_labels"] = [19] * ROWS
            if file == FILES[name, split][-1]:
                batch |= {key.encode(): value for key, value in changed.items()}
            (target / file).write_bytes(python2_pickle(batch))
        names = {names_key: [entry.encode() for entry in CLASSES[:count]]}
        if name == "cifar10":
            names |= {b"num_cases_per_batch": ROWS, b"num_vis": 3072}
        (target / meta).write_bytes(python2_pickle(names))
        return target / FILES[name, split][-1]

    return write


@pytest.fixture
def write_binary(tmp_path):
    def write(name, split, records=None):
        """Write a set of the published size, all zeros (sparse files) after the first records."""
        count = KINDS[name][0]
        target = tmp_path / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
        target.mkdir(exist_ok=True)
        for file in FILES[name, split]:
            pixels, labels = images_and_labels(name, file)
            columns = [np.array(labels, np.uint8)[:, None], pixels]
            if name == "cifar100":
                columns.insert(0, np.full((ROWS, 1), 19, np.uint8))
            head = np.concatenate(columns, axis=1)
            images = records or (50_000 if file == "train" else 10_000)
            with (target / f"{file}.bin").open("wb") as stream:
                stream.write(head.tobytes())
                stream.truncate(images * head.shape[1])
        names = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
        (target / names).write_text("\n".join(CLASSES[:count]) + "\n\n")
        return target / f"{FILES[name, split][-1]}.bin"

    return write


def test_real_cifar10(real_cifar10):
    train, test = load("cifar10", "train", real_cifar10), load("cifar10", "test", real_cifar10)
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.classes[0] == "airplane"
    assert train.classes[9] == "truck"
    # The channel means of the published training pixels; JPEG moves them by less than 1e-3, swapped planes by 1e-2.
    means = train.images.float().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("version", ["python", "binary"])
def test_both_versions_as_published(tmp_path, write_python, write_binary, name, split, version):
    (write_python if version == "python" else write_binary)(name, split)
    loaded = load(name, split, tmp_path)
    per_file = len(loaded) // len(FILES[name, split])
    assert per_file == ROWS if version == "python" else per_file in (10_000, 50_000)
    assert loaded.classes == tuple(CLASSES[: KINDS[name][0]])
    for number, file in enumerate(FILES[name, split]):
        pixels, labels = images_and_labels(name, file)
        part = slice(number * per_file, number * per_file + ROWS)
        assert torch.equal(loaded.images[part], torch.from_numpy(pixels.reshape(-1, 3, 32, 32)))
        assert loaded.labels[part].tolist() == labels


@pytest.mark.parametrize("folder", [".", "cifar10", "cifar10/cifar-10-batches-py"])
def test_folders_that_users_have(tmp_path, write_python, folder):
    write_python("cifar10", "test", folder=folder)
    assert len(load("cifar10", "test", tmp_path)) == ROWS


def test_a_missing_batch_is_named(tmp_path, write_python, one_line_error):
    path = write_python("cifar10", "train")
    path.unlink()
    with one_line_error(f"{path.parent} lacks data_batch_5;"):
        load("cifar10", "train", tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_batch(tmp_path, write_python, one_line_error, name):
    path = write_python(name, "train")
    path.write_bytes(path.read_bytes()[:6000])
    with one_line_error(
        path, "truncated", "found 6000 bytes", "expected at least 12"
    ):  # 4 * 3072 and the header
        load(name, "train", tmp_path)


@pytest.mark.parametrize(("name", "published"), [("cifar10", 30_730_000), ("cifar100", 30_740_000)])
@pytest.mark.parametrize("records", [9_999, 10_001])
def test_a_binary_file_cut_between_two_records(
    tmp_path, write_binary, one_line_error, name, published, records
):
    path = write_binary(name, "test", records=records)
    with one_line_error(path, f"found {published // 10_000 * records} bytes, expected {published}"):
        load(name, "test", tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_label_out_of_range_in_a_pickle(tmp_path, write_python, one_line_error, name):
    count, _, _, key, _ = KINDS[name]
    path = write_python(name, "train", **{key.decode(): [0, count - 1, 2**31 - 1, -1]})
    with one_line_error(path, f"label {2**31 - 1} at position 2", f"0..{count - 1}"):
        load(name, "train", tmp_path)


def test_a_label_out_of_range_in_a_binary_file(tmp_path, write_binary, one_line_error):
    path = write_binary("cifar10", "test")
    with path.open("r+b") as stream:
        stream.seek(7_000 * 3073)
        stream.write(b"\x0a")
    with one_line_error(path, "label 10 at position 7000", "0..9"):
        load("cifar10", "test", tmp_path)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"labels": [1, 2, 3]}, ["found 4 images", "3 labels"]),
        ({"labels": [b"1"] * 4}, ["b'labels'", "integers"]),
        ({"data": np.zeros((4, 3071), np.uint8)}, ["[4, 3071]", "3072"]),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, ["[0, 3072]"]),
        ({"data": b"pixels"}, ["bytes", "3072"]),
        # All as it should be, but fewer images than batches.meta states.
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2, 3]}, ["found 3 images", "expected 4"]),
    ],
)
def test_a_batch_that_is_not_as_published(tmp_path, write_python, one_line_error, changed, parts):
    path = write_python("cifar10", "test", **changed)
    with one_line_error(path, *parts):
        load("cifar10", "test", tmp_path)


def test_a_batch_of_the_other_set(tmp_path, write_python, one_line_error, python2_pickle):
    path = write_python("cifar10", "test")
    path.write_bytes(python2_pickle({b"data": np.zeros((4, 3072), np.uint8), b"fine_labels": [0] * 4}))
    with one_line_error(path, "b'data', b'fine_labels'", "expected b'labels'"):
        load("cifar10", "test", tmp_path)


@pytest.mark.parametrize(
    ("meta", "part"),
    [
        ({b"label_names": [b"only"], b"num_cases_per_batch": ROWS}, "found 1 class names, expected 10"),
        ({b"label_names": b"one"}, "b'label_names'"),
        ({}, "b'label_names'"),
        ({b"label_names": [b"a"], b"num_cases_per_batch": b"4"}, "num_cases_per_batch"),
    ],
)
def test_a_meta_file_that_is_not_as_published(
    tmp_path, write_python, one_line_error, python2_pickle, meta, part
):
    path = write_python("cifar10", "test").parent / "batches.meta"
    path.write_bytes(python2_pickle(meta))
    with one_line_error(path, part):
        load("cifar10", "test", tmp_path)


def test_a_pickle_that_would_run_code(tmp_path, write_python, one_line_error):
    path = write_python("cifar10", "train")
    made = tmp_path / "made"
    path.write_bytes(
        b"\x80\x02cposix\nsystem\nU" + bytes([len(f"touch {made}")]) + f"touch {made}".encode() + b"\x85R."
    )
    with one_line_error(path, "'posix.system'"):
        load("cifar10", "train", tmp_path)
    assert not made.exists()
