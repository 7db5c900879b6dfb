"""Virtual staining: H&E -> embeddings -> a flow to another stain's -> samples, of regions of images and slides.

Letters: n regions, R x K windows of 256 pixels of a region, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch

from diffusion.condition import Condition
from diffusion.formats import WINDOW
from diffusion.generation.controls import encode_picture
from diffusion.generation.generators import TOKEN_CELLS, LargeImageMaker
from diffusion.generation.regions import Region, embed_region, read_pixels
from diffusion.generation.session import Session
from diffusion.model.flow import EmbeddingFlow, Method
from diffusion.sampling import OnStep, image_generator
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed

Structure = Literal["none", "sdedit", "control"]


@dataclass(frozen=True)
class StainSettings:
    """How pictures are stained.

    structure: what keeps the tissue's structure: none, embeddings alone; sdedit, the source's latents with noise on them by the
    solver's `start_strength`; control, a ControlNet that reads them. flow_steps, flow_method: of the flow. region, overlap: pixels a side
    that are sampled together, and that neighbouring regions share; both multiples of 256. stride: latent cells between windows of the
    network; None: half of them. Raises InputError.
    """

    structure: Structure = "none"
    flow_steps: int = 100
    flow_method: Method = "euler"
    region: int = 2048
    overlap: int = 256
    stride: int | None = None
    batch_size: int = 1
    decode_tile: int = 64

    def __post_init__(self):
        for name in ("region", "overlap"):
            value = getattr(self, name)
            if value < WINDOW or value % WINDOW:
                raise InputError(f"--{name} {value}: expected a multiple of {WINDOW}")
        if self.overlap > self.region // 2:
            raise InputError(f"--overlap {self.overlap}: expected at most half of --region {self.region}")


class StainPlace(NamedTuple):
    """A region to stain. corner: its row and column, in windows, in its picture, whose noise has a seed."""

    region: Region
    corner: tuple[int, int]
    seed: int


class Stainer:
    """Stains pictures with a session's network, and a flow between the embeddings of the stains; None: embeddings as they are.

    on_step: called after each step of each region, as `sampling.denoise` does.
    """

    def __init__(
        self, session: Session, flow: EmbeddingFlow | None, settings: StainSettings, on_step: OnStep | None = None
    ):
        run = session.run
        if flow is not None:
            if flow.config.from_noise:
                raise InputError(
                    "--flow: a prior, which begins at noise: expected a flow between the embeddings of two stains"
                )
            if flow.config.width != run.config.caption_channels:
                raise InputError(
                    f"--flow: of embeddings of {flow.config.width} values, and the network takes {run.config.caption_channels}"
                )
        if settings.structure == "control" and (run.controlnet is None or run.controlnet.config.maps):
            raise InputError(
                "--structure control: expected a ControlNet of the other stain's latents (data.control_dataset); name it with --controlnet"
            )
        if settings.structure != "control" and run.controlnet is not None:
            raise InputError(
                f"--structure {settings.structure}: a ControlNet is given, which reads the picture with control"
            )
        self.session, self.flow, self.settings, self.on_step = session, flow, settings, on_step
        stride = settings.stride or run.config.input_size // 2
        self.make = LargeImageMaker(
            run, session.codec, session.seed, session.solver, stride, settings.batch_size, settings.decode_tile
        )
        self.make.windows(1, 1)  # a stride that leaves gaps is refused before anything is written

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return what identifies how pictures are stained."""
        settings = self.settings
        return {
            **self.session.settings,
            "encoder": [self.session.embedder.name, self.session.embedder.fingerprint],
            "flow": None if self.flow is None else fingerprint_tensors(self.flow.state_dict()),
            "flow_steps": settings.flow_steps,
            "flow_method": settings.flow_method,
            "structure": settings.structure,
            **({"strength": self.session.solver.start_strength} if settings.structure == "sdedit" else {}),
            "region": settings.region,
            "overlap": settings.overlap,
            "stride": self.make.stride,
            "decode_tile": settings.decode_tile,
        }

    def embed(self, places: Sequence[StainPlace], rows: int, columns: int) -> torch.Tensor:
        """Return the embeddings (n, R, K, D) of the other stain that those of regions are translated to."""
        embedder = self.session.embedder
        tokens = torch.stack([embed_region(place.region, rows, columns, embedder) for place in places])
        if self.flow is None:
            return tokens
        flat = tokens.flatten(0, 2).to(self.flow.device)
        translated = self.flow.translate(flat, self.settings.flow_steps, self.settings.flow_method)
        return translated.cpu().view_as(tokens)

    def stain(self, places: Sequence[StainPlace], rows: int, columns: int) -> list[torch.Tensor]:
        """Return the stained pixels, uint8 (3, 256 R, 256 K), of regions of this size, which are sampled together."""
        structure, session = self.settings.structure, self.session
        tokens = self.embed(places, rows, columns)
        latents = None
        if structure != "none":
            own_size = session.run.config.image_size
            pictures = (read_pixels(place.region, rows, columns) for place in places)
            latents = torch.cat([encode_picture(each, session.codec, session.device, own_size) for each in pictures])
        condition = Condition(tokens, latents if structure == "control" else None)
        channels = session.run.model.config.in_channels
        noise = torch.cat([region_noise(place.seed, place.corner, (rows, columns), channels) for place in places])
        start = latents if structure == "sdedit" else None
        numbers = [mix_seed(place.seed, *place.corner) for place in places]
        sampled = self.make.latents(numbers, condition, on_step=self.on_step, noise=noise, start=start)
        return [self.decode(each) for each in sampled]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the pixels, uint8 (3, 256 R, 256 K), of a region's latents (C, 32 R, 32 K)."""
        return torch.cat(list(self.make.bands(latents[None])), dim=1)


def region_noise(seed: int, corner: tuple[int, int], size: tuple[int, int], channels: int) -> torch.Tensor:
    """Return noise (1, C, 32 R, 32 K) of a region of windows: that of each window follows from its place on the slide alone.

    Regions that overlap so have the same noise where they do. corner, size: rows and columns of windows.
    """
    rows = []
    for row in range(corner[0], corner[0] + size[0]):
        blocks = [
            torch.randn(channels, TOKEN_CELLS, TOKEN_CELLS, generator=image_generator(mix_seed(seed, row), column))
            for column in range(corner[1], corner[1] + size[1])
        ]
        rows.append(torch.cat(blocks, dim=2))
    return torch.cat(rows, dim=1)[None]
