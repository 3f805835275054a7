"""Images stand in rows, each where it belongs, and white is everywhere else."""

import pytest
import torch

from robustfast.visualization.image_grid import image_grid


@pytest.mark.parametrize(("count", "columns", "gap"), [(5, 3, 2), (3, 3, 1), (2, 4, 0), (1, 1, 5)])
def test_every_image_is_where_it_belongs_and_the_rest_is_white(count, columns, gap):
    images = torch.rand(count, 3, 4, 6) * 0.5
    grid = image_grid(images, columns, gap=gap)
    rows = -(-count // columns)
    assert grid.shape == (3, rows * (4 + gap) - gap, columns * (6 + gap) - gap)
    white = torch.ones_like(grid, dtype=torch.bool)
    for number, image in enumerate(images):
        top, left = (number // columns) * (4 + gap), (number % columns) * (6 + gap)
        assert torch.equal(grid[:, top : top + 4, left : left + 6], image)
        white[:, top : top + 4, left : left + 6] = False
    assert torch.all(grid[white] == 1)


def test_layout_and_type_do_not_matter():
    images = torch.rand(4, 3, 8, 8)
    expected = image_grid(images, 2)
    assert torch.equal(image_grid(images.to(memory_format=torch.channels_last), 2), expected)
    assert image_grid(images.double(), 2).dtype == torch.float32


@pytest.mark.parametrize(("shape", "columns"), [((0, 1, 2, 2), 2), ((1, 2, 2), 2), ((2, 1, 2, 2), 0)])
def test_what_cannot_be_laid_out_is_refused(shape, columns):
    with pytest.raises(ValueError, match="columns from 1"):
        image_grid(torch.zeros(shape), columns)
