"""Philox against the known answers that its authors publish (Random123, kat_vectors, philox4x32 with 10 rounds)."""

from __future__ import annotations

import pytest
import torch

from robustfast.reference.philox import philox4x32

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == answer


def test_each_counter_is_drawn_on_its_own():
    index = torch.arange(1000)
    zero = torch.zeros((), dtype=torch.int64)
    together = philox4x32((index, zero, zero, zero), (3, 5))
    for position in (0, 17, 999):
        alone = philox4x32((index[position], zero, zero, zero), (3, 5))
        assert [int(word[position]) for word in together] == [int(word) for word in alone]
