"""An auto-encoder whose code is one of a few vectors at each place: CD-VAE's G for larger images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.models.autoencoder import Autoencoder, Coded

__all__ = ["VQVAE", "Codebook"]

# Distances that the search holds at once: 64 MB in float32.
_DISTANCES = 2**24


class Codebook(nn.Module):
    """Vectors [B, D, h, w] to the nearest of K codes at each place (van den Oord et al. 2017, arXiv:1711.00937).

    Args:
        codes: K.
        width: D.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codes, width).normal_(0.0, 0.02))

    def nearest(self, z: Tensor) -> Tensor:
        """Number of the nearest code, by the euclidean distance, of each row of z [N, D]: int64 [N].

        In float32 whatever the precision around it, and a part of the rows at a time: all distances of a batch of 256
        images of 224 pixels to 512 codes would take 1.6 GB.
        """
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            codes = self.weight.to(torch.promote_types(z.dtype, torch.float32))
            lengths = codes.square().sum(1)
            # |z - e|^2 without |z|^2, which is the same for all codes.
            return torch.cat(
                [
                    torch.addmm(lengths, part.to(codes.dtype), codes.T, alpha=-2).argmin(1)
                    for part in z.split(max(1, _DISTANCES // len(codes)))
                ]
            )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest codes, and the two losses of each sample, [B]; in the memory format of z.

        - the codes [B, D, h, w]; their gradient goes straight through to z, none to the codebook;
        - ``|sg(z) - e|^2``, squared over D and averaged over the places, whose gradient moves a code by the **mean**
          over the places that it serves (CD-VAE's code), not by their sum;
        - ``|z - sg(e)|^2`` likewise, which moves z alone.
        """
        vectors = z.permute(0, 2, 3, 1)
        chosen = self.nearest(vectors.reshape(-1, z.shape[1]))
        served = torch.zeros_like(self.weight[:, 0]).index_add_(
            0, chosen, torch.ones_like(chosen, dtype=self.weight.dtype)
        )
        picked = F.embedding(chosen, self.weight)
        fixed = picked.detach()
        # The value of `picked`, with each place's gradient divided by the number of places of its code.
        averaged = fixed + (picked - fixed) / served[chosen, None]
        fixed, averaged = fixed.view(vectors.shape), averaged.view(vectors.shape)
        codebook = (vectors.detach() - averaged).square().sum(3).mean((1, 2))
        commitment = (vectors - fixed).square().sum(3).mean((1, 2))
        # z - sg(z) is zero: to the bit the codes, with the gradient and the memory format of z.
        return (z - z.detach()) + fixed.permute(0, 3, 1, 2), codebook, commitment


class VQVAE(Autoencoder):
    """CD-VAE's G for restricted ImageNet (Yang et al. 2021, from their code): G(x) = decoder(nearest codes of E(x)).

    Two strided convolutions to `width` maps of a quarter of the side, two residual blocks, the codebook; the decoder
    mirrors that and ends in tanh and a batch norm with a learned scale, as `robustfast.models.residual_vae` does.
    Weights start as N(0, 0.02) with zero biases, codes too; the last batch norm of the encoder scales by 1/40, so that
    what is to be coded starts as large as the codes.

    The regulariser is ``|sg(E(x)) - e|^2 + commitment * |E(x) - sg(e)|^2``, squared over the entries of a vector and
    averaged over the places (see `Codebook`). There is no divergence and nothing is drawn: `seed`, `index` and
    `sample_at_test` change nothing. The latent is the codes of all places, [B, width * H/4 * W/4].

    Images may have any size, such as 224x224 and 256x256. Sides that are no multiple of 4 are padded right and below
    with zeros, the mean colour, as the convolutions pad: 299x299, which the paper names and which its code cannot take,
    passes as 300x300 and is cropped back.

    Args:
        in_channels: channels of the images.
        width: D, maps inside and entries of a code. The paper names none.
        codes: K. The default of their code is 10, which is too few for images of many classes.
        commitment: weight of the second loss.
    """

    def __init__(
        self, *, in_channels: int, width: int = 128, codes: int = 512, commitment: float = 0.25
    ) -> None:
        super().__init__()
        self.commitment = commitment
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(inplace=True),
            PlainBlock(width),
            nn.BatchNorm2d(width),
            PlainBlock(width),
            nn.BatchNorm2d(width),
        )
        self.codebook = Codebook(codes, width)
        self.decoder = nn.Sequential(
            PlainBlock(width),
            nn.BatchNorm2d(width),
            PlainBlock(width),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(inplace=True),
            nn.ConvTranspose2d(width, in_channels, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(in_channels),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.encoder[-1].weight, 1 / 40)

    def encode(self, x: Tensor) -> Tensor:
        """E(x) [B, width, H/4, W/4] of normalised images, sides rounded up."""
        return self.encoder(F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4)))

    def forward(self, x: Tensor, *, seed: int | None = None, index: Tensor | None = None) -> Coded:
        self.drawn(seed, index)
        codes, codebook, commitment = self.codebook(self.encode(x))
        image = self.decoder(codes)[..., : x.shape[-2], : x.shape[-1]]
        return Coded(image, codes.flatten(1), codebook + self.commitment * commitment)


class PlainBlock(nn.Module):
    """``x + conv1x1(lrelu(conv3x3(lrelu(x))))`` on maps [B, C, H, W], without batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LeakyReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
