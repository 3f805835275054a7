"""The FID's Inception-v3: names and shapes of its weights, resizing, and files that are none of it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.inception import InceptionV3, load_inception, resize_like_tensorflow


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Weights of the published names and shapes, without counters, as the published file has none."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in InceptionV3().state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        scale = (2 / shape[1:].numel()) ** 0.5 if len(shape) == 4 else 0.1
        found[name] = scale * torch.randn(shape, generator=draw)
        if name.endswith(("running_var", "bn.weight")):
            found[name] = 1 + found[name].abs()
    return found


@pytest.fixture(scope="module")
def file(weights: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the format of the published file, which is older than torch's present one."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(dict(weights), path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def network(file: Path) -> InceptionV3:
    return load_inception(file)


def test_names_and_shapes_are_the_published_ones(weights: Mapping[str, Tensor]) -> None:
    # 94 convolutions of five tensors each, and the logits: torchvision's without its auxiliary classifier, of which it
    # counts 21785568 weights, and 1008 logits instead of 1000.
    assert len(weights) == 94 * 5 + 2
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert (
        sum(value.numel() for name, value in weights.items() if "running" not in name)
        == 21_785_568 + 1008 * 2049
    )
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.bn.bias": (192,),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items():
        assert shapes[name] == shape


def test_a_file_is_loaded_and_read(file: Path, weights: Mapping[str, Tensor]) -> None:
    before = torch.get_rng_state()
    network = load_inception(file)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network.Mixed_6c.branch7x7_1.conv.weight, weights["Mixed_6c.branch7x7_1.conv.weight"])
    assert not network.training
    assert not any(value.requires_grad for value in network.parameters())
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network(grey)
        coloured = network(grey.expand(-1, 3, -1, -1)[:1])
    assert found.shape == (2, network.num_features) == (2, 2048)
    assert torch.allclose(found[:1], coloured, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_features_are_those_of_another_implementation(network: InceptionV3) -> None:
    # What torch-fidelity 0.4.0 gives of these weights and this image.
    number = torch.arange(3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        found = network((number * number * 7 + 13 * number) % 256 / 255)[0]
    expected = {17: 1.7473189, 273: 0.0, 785: 0.1791305, 1041: 0.0530037, 1553: 2.1790946, 1809: 0.0070954}
    assert {place: found[place].item() for place in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # The last block's paths, side by side.
    means = [path.mean().item() for path in found.split([320, 768, 768, 192])]
    assert means == pytest.approx([0.9557865, 0.9638969, 0.8783455, 1.4385191], rel=1e-4)


def test_the_blocks_pool_as_the_published_graph() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = InceptionV3().eval()
    maps = torch.zeros(1, 2048, 3, 3)
    maps[..., 0, 0] = 4.0
    pooled = []
    for block in (network.Mixed_7b, network.Mixed_7c):
        block.branch_pool.register_forward_pre_hook(lambda module, args: pooled.append(args[0][0, 0]))
        with torch.no_grad():
            block(maps[:, : block.branch_pool.conv.in_channels])
    # Means without the padding: of 4 places in the corner, 6 at the edge, 9 inside. The last block takes the maximum.
    assert pooled[0][:2, :2].flatten().tolist() == pytest.approx([4 / 4, 4 / 6, 4 / 6, 4 / 9])
    assert pooled[1][:2, :2].flatten().tolist() == [4.0, 4.0, 4.0, 4.0]
    assert pooled[1][2].tolist() == [0.0, 0.0, 0.0]


def test_resizing_by_hand() -> None:
    x = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    # Pixel i looks at i * 2 / 3: 0, 2/3 and, past the last pixel, 4/3, which is the last one.
    assert resize_like_tensorflow(x, 3)[0, 0].tolist() == [
        pytest.approx([0.0, 2.0, 3.0]),
        pytest.approx([4.0, 6.0, 7.0]),
        pytest.approx([6.0, 8.0, 9.0]),
    ]
    # Shrunk without antialiasing: every second pixel.
    ramp = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 2, 6, 6)
    assert resize_like_tensorflow(ramp, 3)[0, 1, 0].tolist() == [0.0, 2.0, 4.0]
    assert torch.equal(resize_like_tensorflow(ramp, 6), ramp)


def test_pixels_come_as_the_graph_has_them(network: InceptionV3) -> None:
    seen = []
    hook = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    values = torch.tensor([0.0, 128 / 255, 1.0])[:, None, None, None].expand(3, 3, 2, 2)
    with torch.no_grad():
        network(values)
    hook.remove()
    assert seen[0].shape == (3, 3, 299, 299)
    assert seen[0][:, 0, 0, 0].tolist() == pytest.approx([-1.0, 0.0, 127 / 128], abs=1e-6)


def _refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_inception(path)
    message = str(error.value)
    assert message.startswith(f"--inception-weights {path}: ")
    assert "\n" not in message
    return message


def test_other_networks_are_refused(weights: Mapping[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.pth"

    def saved(state: object) -> str:
        torch.save(state, path)
        return _refused(path)

    name = "Mixed_5b.branch1x1.conv.weight"
    small = {key: torch.zeros(0) for key in weights}
    assert "Conv2d_1a_3x3.bn.bias has shape (0,), not (32,)" in saved(small)
    lacking = {key: value for key, value in small.items() if key != name}
    assert f"it lacks {name};" in saved(lacking)
    # What torchvision's has, and this one has not.
    more = {**small, "AuxLogits.fc.weight": torch.zeros(1), "AuxLogits.fc.bias": torch.zeros(1)}
    assert "it holds AuxLogits.fc.bias and 1 more; expected the Inception-v3 of FID" in saved(more)
    assert "it holds no state dict of tensors" in saved({"state_dict": {"a": torch.zeros(1)}})
    assert "it holds no state dict of tensors" in saved([1, 2])
    broken = {**weights, "fc.bias": torch.full((1008,), torch.nan)}
    assert "fc.bias holds other values than finite floats" in saved(broken)


def test_truncated_and_unrelated_files_are_refused(
    file: Path, weights: Mapping[str, Tensor], tmp_path: Path
) -> None:
    content = file.read_bytes()
    path = tmp_path / "weights.pth"
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "truncated" in _refused(path)
    newer = tmp_path / "newer.pth"
    torch.save({"fc.bias": weights["fc.bias"]}, newer)
    path.write_bytes(newer.read_bytes()[:-30])
    assert "no readable checkpoint" in _refused(path)
    torch.save({"a": Path("x")}, path)
    assert "it holds more than tensors" in _refused(path)
    path.write_text("<html>404</html>")
    assert "no file of weights" in _refused(path)
    assert "cannot be read (No such file or directory)" in _refused(tmp_path / "absent.pth")
    assert "cannot be read (Is a directory)" in _refused(tmp_path)


def test_a_file_is_what_its_name_says(file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    wrong.write_bytes(file.read_bytes())
    assert "its name says 6726825d; it is truncated or another file: fetch it again" in _refused(wrong)
    right = tmp_path / f"inception-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    right.write_bytes(file.read_bytes())
    assert load_inception(right).num_features == 2048
