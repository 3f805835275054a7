"""What rebuilds the shared features from the three encoders' maps."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Reconstruction"]


class Reconstruction(nn.Module):
    """Maps of three encoders, [B, 3 * map_channels, h, w], to f [B, base_channels, h', w'] that they come from.

    "The reconstruction module is composed of transposed convolutional layers" (RFD, section IV-A), which leaves the
    rest open. It takes maps, since pooled features do not say where something was: a 1x1 convolution to `map_channels`,
    batch norm, ReLU; a transposed convolution to `base_channels`, batch norm, ReLU; a 3x3 convolution.

    Args:
        map_channels: of one encoder.
        base_channels: of f.
        upsampling: kernel, stride and padding of the transposed convolution.
    """

    def __init__(
        self, map_channels: int, base_channels: int, upsampling: tuple[int, int, int] = (4, 2, 1)
    ) -> None:
        super().__init__()
        kernel, stride, padding = upsampling
        self.mix = nn.Sequential(
            nn.Conv2d(3 * map_channels, map_channels, 1, bias=False),
            nn.BatchNorm2d(map_channels),
            nn.ReLU(inplace=True),
        )
        self.up = nn.ConvTranspose2d(map_channels, base_channels, kernel, stride, padding, bias=False)
        self.out = nn.Sequential(
            nn.BatchNorm2d(base_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(base_channels, base_channels, 3, padding=1),
        )

    def forward(self, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Rebuild f.

        Args:
            maps: of the three encoders, side by side along the channels.
            size: h' and w', where the stride leaves a choice between several; None takes the least.
        """
        return self.out(self.up(self.mix(maps), output_size=None if size is None else list(size)))
