from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfast.data.restricted_unpickler import load_batch
from robustfast.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
BATCH = {
    b"data": PIXELS,
    b"labels": [3, 8, 0, 6],
    b"batch_label": b"training batch 1 of 5",
    b"filenames": [b"a.png"],
}


class Runs:
    """Pickles into a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_published_batch(tmp_path, python2_pickle, module):
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_pickle(BATCH, module))
    batch = load_batch(path)
    assert batch.keys() == BATCH.keys()
    assert batch[b"data"].dtype == np.uint8
    assert np.array_equal(batch.pop(b"data"), PIXELS)
    assert all(batch[key] == BATCH[key] for key in batch)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_written_anew_by_python_3(tmp_path, protocol, order):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": np.asarray(PIXELS, order=order)}, protocol))
    assert np.array_equal(load_batch(path)[b"data"], PIXELS)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "shown"),
    [(os.system, "system"), (eval, "eval"), (os.mkdir, "mkdir"), (np.save, "save"), (getattr, "getattr")],
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, one_line_error, protocol, function, shown):
    made = tmp_path / "made"
    argument = {os.system: f"touch {made}", eval: f"open({str(made)!r}, 'w')"}.get(function, str(made))
    path = tmp_path / "data_batch_1"
    arguments = (argument, 0) if function in (np.save, getattr) else (argument,)
    path.write_bytes(pickle.dumps([Runs(function, *arguments)], protocol))
    with one_line_error(path, "refused", f"{shown}'"):
        load_batch(path)
    assert not made.exists()


def test_the_same_pickle_does_run_under_the_standard_unpickler(tmp_path):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(made))))
    assert made.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",  # a dotted name walks attributes
        b"\x80\x04\x8c\x08builtins\x8c\x05exec\n\x93.",  # a name with a line break
        b"(S'true'\nios\nsystem\n.",  # INST
        b"c__main__\nload_batch\n.",
        b"ccopyreg\n_reconstructor\n.",
    ],
)
def test_other_ways_to_a_name_are_refused(tmp_path, one_line_error, program):
    path = tmp_path / "data_batch_1"
    path.write_bytes(program)
    with one_line_error(path, "refused"):
        load_batch(path)


@pytest.mark.parametrize("program", [b"\x80\x02\x82\x01.", b"Pname\n.", b"\x80\x02\x97."])
def test_registered_persistent_and_outside_objects_are_refused(tmp_path, one_line_error, program):
    path = tmp_path / "data_batch_1"
    path.write_bytes(program)
    with one_line_error(path, "corrupt"):
        load_batch(path)


def test_an_array_that_is_not_of_bytes(tmp_path, python2_pickle, one_line_error):
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_pickle({b"data": PIXELS.astype(np.float64)}))
    with one_line_error(path, "corrupt", "f8", "u1"):
        load_batch(path)


def test_an_array_whose_shape_claims_more_than_its_bytes(tmp_path, python2_pickle, one_line_error):
    path = tmp_path / "data_batch_1"
    content = python2_pickle({b"data": PIXELS})
    path.write_bytes(content.replace((3072).to_bytes(4, "little"), (3073).to_bytes(4, "little"), 1))
    with one_line_error(path, "corrupt", "(4, 3073)", PIXELS.size):
        load_batch(path)


def test_a_pickle_that_is_no_dictionary(tmp_path, python2_pickle, one_line_error):
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_pickle([1, 2]))
    with one_line_error(path, "list", "dictionary"):
        load_batch(path)


def test_bytes_after_the_end(tmp_path, python2_pickle, one_line_error):
    path = tmp_path / "data_batch_1"
    content = python2_pickle(BATCH)
    path.write_bytes(content + b"more")
    with one_line_error(path, "too long", f"found {len(content) + 4} bytes, expected {len(content)}"):
        load_batch(path)


def test_a_cut_in_the_pixels_tells_where_they_end(tmp_path, python2_pickle, one_line_error):
    path = tmp_path / "data_batch_1"
    content = python2_pickle(BATCH)
    end = content.index(PIXELS.tobytes()) + PIXELS.size
    path.write_bytes(content[:5000])
    with one_line_error(path, f"found 5000 bytes, expected at least {end}"):
        load_batch(path)


@settings(max_examples=200, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_called_truncated(tmp_path_factory, python2_pickle, one_line_error, share):
    content = python2_pickle(BATCH | {b"data": PIXELS[:1, :40]})
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(content[: int(share * len(content))])
    with one_line_error(path, "truncated", f"found {path.stat().st_size} bytes"):
        load_batch(path)


@settings(max_examples=400, deadline=None)
@given(position=st.integers(0, 300), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_never_a_trace(
    tmp_path_factory, python2_pickle, position, value
):
    content = bytearray(python2_pickle(BATCH | {b"data": PIXELS[:1, :40]}))
    content[position % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(content)
    message = str(path)
    try:
        assert isinstance(load_batch(path), dict)
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert message.isprintable()


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60))
def test_arbitrary_bytes_are_never_a_trace(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(b"\x80\x02" + content)
    message = str(path)
    try:
        assert isinstance(load_batch(path), dict)
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert message.isprintable()
