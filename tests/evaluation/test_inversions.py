"""Inversions go on where the last look at the progress stopped, from the same noise for each encoder."""

import torch

from robustfast.evaluation.inversions import CHUNK, STEP_SIZE, invert_representations
from robustfast.models import ThreeWay
from robustfast.objectives import invert
from robustfast.seeds import derive


def invert_digits(steps, **keywords):
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    target = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return model, target, invert_representations(model, "rn", target, steps=steps, seed=3, **keywords)


def test_looking_at_the_progress_changes_nothing():
    steps, told = CHUNK + 3, []
    model, target, found = invert_digits(steps, on_steps=told.append)
    assert told == [CHUNK, 3, CHUNK, 3]
    noise = torch.rand(target.shape, generator=torch.Generator().manual_seed(derive(3, "inversion")))
    for inversion, encoder in zip(found, (model.encoder_r, model.encoder_n), strict=True):
        images, distances = invert(encoder, target, noise, steps=steps, step_size=STEP_SIZE)
        # Each part's ball lies about its own start: the same numbers up to the last bits, 7e-7 after these steps.
        torch.testing.assert_close(inversion.images, images, rtol=0, atol=1e-4)
        torch.testing.assert_close(inversion.distances, distances, rtol=0, atol=1e-4)


def test_more_steps_come_nearer():
    _, _, few = invert_digits(1)
    _, _, many = invert_digits(40)
    assert [inversion.encoder for inversion in many] == ["r", "n"]
    for first, last in zip(few, many, strict=True):
        assert last.distances.mean() < first.distances.mean()
        assert last.images.min() >= 0
        assert last.images.max() <= 1
