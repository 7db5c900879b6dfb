"""A run or released weights, opened: samples, embeddings, latents.

Letters: n images, L tokens of an image, D their width, S its side in pixels, h w cells of latents (8 pixels each).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion.components import check_tokens
from diffusion.condition import Condition
from diffusion.encoders.latents import check_pixels, from_uint8, to_uint8
from diffusion.formats import DEFAULT_SOLVER, LAST_WEIGHTS
from diffusion.generation.conditions import Conditions, IndexConditions, NamedCondition, RepeatedConditions
from diffusion.generation.generators import ImageMaker
from diffusion.generation.session import Session, open_session
from diffusion.generation.solver import Solver
from diffusion.generation.sources import ConditionSource, open_index
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import windows_per_pass
from pixcell.pictures import Images, as_list, embed_images, to_pil


@dataclass(frozen=True)
class Sample:
    """A sampled image. number, name: of the condition that it was sampled for.

    pixels: uint8 (S, S, 3). tissue: the pixels that the condition describes, where they are known.
    """

    number: int
    name: str
    pixels: np.ndarray
    tissue: np.ndarray | None = None

    @property
    def image(self) -> Image.Image:
        """The pixels as a PIL image."""
        return Image.fromarray(self.pixels)


def open_run(
    workdir: str | Path | None = None,
    checkpoint: str | Path = LAST_WEIGHTS,
    *,
    averaged: bool = True,
    vae: str | None = None,
    encoder: str | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
) -> OpenRun:
    """Open a training run's work dir, or released weights: a checkpoint or a diffusers folder.

    workdir: None for $PIXCELL_WORKDIR, else the newest run in ./output. checkpoint: below it. averaged: of a file with averaged
    and raw weights the former. vae, encoder: other ones than the run's own. root: folder of patches/, features/ and
    pretrained_models/, None for the run's. device: auto, cpu, cuda or mps. precision: of the network, fp32, bf16 or fp16.
    Raises MissingError, InputError.

    Examples:
        >>> run = open_run("output/256")
        >>> run.size, run.tokens_per_image
        (256, 1)
    """
    session = open_session(
        None if workdir is None else Path(workdir),
        Path(checkpoint),
        Solver(precision=precision),
        averaged=averaged,
        compiled=compile,
        root=None if root is None else Path(root),
        vae=vae,
        encoder=encoder,
        device=device,
    )
    return OpenRun(session)


@dataclass(frozen=True)
class OpenRun:
    """A network on its device, with the codec of its latents and the embedder of its conditions, as `open_run` returns it."""

    session: Session

    @property
    def size(self) -> int:
        """Pixels a side of the images that the network samples."""
        return self.session.run.config.image_size

    @property
    def tokens_per_image(self) -> int:
        """Tokens that condition an image: one for each 256 pixels a side, row by row."""
        return self.session.run.config.model_max_length

    @property
    def token_width(self) -> int:
        """Width of a token."""
        return self.session.run.config.caption_channels

    def sample(
        self,
        images: Images | None = None,
        tokens: np.ndarray | torch.Tensor | None = None,
        count: int | None = None,
        *,
        dataset: Sequence[str] | None = None,
        index: str | None = None,
        steps: int = 20,
        guidance: float = 2.0,
        guidance_interval: tuple[float, float] | None = None,
        solver: str = DEFAULT_SOLVER,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Iterator[Sample]:
        """Sample images, one after the other as they are finished; image i depends on the seed, i and its condition alone.

        images: what conditions: arrays uint8 (H, W, 3), PIL images, files, or a `SlideRegion`, of larger ones the middle.
        tokens: embeddings instead, (L, D) or (n, L, D). With neither, patches of the run's index condition (dataset, index:
        others). count: how many; None: one for each image or token, 16 of an index. guidance: 1 is none. batch_size: in
        one pass, None for as many as keep the device busy. Raises MissingError, InputError.

        Examples:
            >>> run = open_run("output/256")
            >>> from PIL import Image
            >>> tissue = Image.open("tissue.png")
            >>> [sample.pixels.shape for sample in run.sample(images=[tissue, "tissue.png"], steps=2)]
            [(256, 256, 3), (256, 256, 3)]
            >>> tokens = run.embed(tissue)
            >>> first = next(run.sample(tokens=tokens, steps=2, guidance=1.5, seed=7))
            >>> first.image.size
            (256, 256)
        """
        conditions = self._conditions(images, tokens, ConditionSource(index=index, dataset=dataset), seed)
        chosen = Solver(steps, guidance, solver, guidance_interval, self.session.solver.precision)
        count = count or (16 if isinstance(conditions, IndexConditions) else len(conditions))
        size = batch_size or windows_per_pass(self.session.device, self.session.run.config.input_size)
        make = ImageMaker(self.session.run, self.session.codec, conditions, seed, chosen)
        return self._samples(make, count, size)

    def _samples(self, make: ImageMaker, count: int, batch_size: int) -> Iterator[Sample]:
        for first in range(0, count, batch_size):
            for i, condition, pixels in make.images(list(range(first, min(first + batch_size, count)))):
                tissue = None if condition.pixels is None else _to_array(condition.pixels)
                yield Sample(i, condition.name, _to_array(pixels), tissue)

    def _conditions(
        self, images: Images | None, tokens: np.ndarray | torch.Tensor | None, source: ConditionSource, seed: int
    ) -> Conditions:
        if images is not None and tokens is not None:
            raise InputError("images and tokens: one of them conditions; give one")
        if images is not None:
            return RepeatedConditions(embed_images(images, self.session.embedder, self.size))
        if tokens is None:
            return IndexConditions(open_index(self.session, source), seed, pixels=True)
        values = torch.as_tensor(tokens).float()
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3:
            raise InputError(f"tokens have shape {tuple(values.shape)}, expected (L, D) or (n, L, D)")
        named = [NamedCondition(f"tokens_{i}", Condition(value[None])) for i, value in enumerate(values)]
        for condition in named:
            check_tokens(condition.condition.tokens[0], self.tokens_per_image, self.token_width, condition.name)
        return RepeatedConditions(named)

    def embed(self, images: Images) -> np.ndarray:
        """Embed images as conditions of this network: float32 (n, L, D). Raises MissingError, InputError.

        images: as in `sample`; of larger ones than the network's the middle.

        Examples:
            >>> run = open_run("output/256")
            >>> run.embed("tissue.png").shape == (1, run.tokens_per_image, run.token_width)
            True
        """
        conditions = embed_images(images, self.session.embedder, self.size)
        return torch.cat([condition.condition.tokens for condition in conditions]).numpy()

    def encode(self, images: Images) -> np.ndarray:
        """Encode images of one size to network latents, the posterior's mean: float32 (n, 16, h, w). Raises InputError.

        Examples:
            >>> run = open_run("output/256")
            >>> Image.open("tissue.png").size
            (320, 288)
            >>> run.encode("tissue.png").shape
            (1, 16, 36, 40)
        """
        pictures = [np.asarray(to_pil(image)) for image in as_list(images)]
        sizes = {picture.shape for picture in pictures}
        if len(sizes) != 1:
            raise InputError(f"images of {len(sizes)} sizes: encode those of one size together")
        codec = self.session.codec
        encoded = [codec.encode(from_uint8(torch.from_numpy(each.copy()).permute(2, 0, 1)[None])) for each in pictures]
        return torch.cat(encoded).float().cpu().numpy()

    def decode(self, latents: np.ndarray | torch.Tensor) -> list[Image.Image]:
        """Decode network latents (n, 16, h, w) to images of 8 h x 8 w pixels. Raises InputError.

        Examples:
            >>> run = open_run("output/256")
            >>> run.decode(run.encode("tissue.png"))[0].size
            (320, 288)
        """
        values, codec = torch.as_tensor(latents), self.session.codec
        decoded = (codec.decode(value[None])[0] for value in values)
        return [Image.fromarray(_to_array(to_uint8(check_pixels(pixels, codec)))) for pixels in decoded]


def _to_array(pixels: torch.Tensor) -> np.ndarray:
    """Return uint8 (H, W, 3) of uint8 (3, H, W)."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
