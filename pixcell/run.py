"""A run or released weights, opened: samples, embeddings, latents.

Letters: n images, L tokens of an image, D their width, S its side in pixels, h w cells of latents (8 pixels each).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from diffusion.components import check_tokens
from diffusion.condition import Condition
from diffusion.data.slides.reader import PlainImage
from diffusion.encoders.latents import check_pixels, from_uint8, to_uint8
from diffusion.formats import LAST_WEIGHTS, WINDOW
from diffusion.generation.colours import ColourMatch, ColourMethod
from diffusion.generation.conditions import (
    Conditions,
    IndexConditions,
    NamedCondition,
    RepeatedConditions,
    embed_square,
    load_token_conditions,
)
from diffusion.generation.controls import (
    ControlledConditions,
    NamedControl,
    check_controlled,
    list_controls,
    load_controls,
    to_control,
)
from diffusion.generation.edit_sources import extend_picture, read_change
from diffusion.generation.editing import Canvas, Editor, EditSettings, Look, choose_strength
from diffusion.generation.enlarging import enlarge as enlarge_picture
from diffusion.generation.generators import ImageMaker
from diffusion.generation.priors import PriorConditions
from diffusion.generation.regions import Region
from diffusion.generation.session import Session, open_session
from diffusion.generation.solver import Solver
from diffusion.generation.sources import ConditionSource, choose_source, open_index, open_source_prior
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import windows_per_pass
from diffusion.utils.values import check_whole
from pixcell.pictures import (
    ImageConditions,
    ImageLike,
    Images,
    Sample,
    as_list,
    label_of,
    measure,
    name_of,
    read_square,
    to_pil,
)

INDEX_COUNT = 16  # samples of an index, where it is not said how many
Controls: TypeAlias = "np.ndarray | str | Path | Sequence[np.ndarray | str | Path]"
Tokens: TypeAlias = "np.ndarray | torch.Tensor | str | Path | Sequence[str | Path]"


def open_run(
    workdir: str | Path | None = None,
    checkpoint: str | Path = LAST_WEIGHTS,
    *,
    averaged: bool = True,
    vae: str | None = None,
    encoder: str | None = None,
    root: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compile: bool = False,
    loras: Sequence[str | Path] = (),
    controlnet: str | Path | None = None,
) -> OpenRun:
    """Open a training run's work dir, or released weights: a checkpoint or a diffusers folder.

    workdir: None for $PIXCELL_WORKDIR, else the newest run in ./output. checkpoint: below it. averaged: of a file with averaged
    and raw weights the former. vae, encoder: other ones than the run's own. root: folder of patches/, features/ and
    pretrained_models/, None for the run's. device: auto, cpu, cuda, cuda:N or mps. precision: of the network, fp32, bf16 or
    fp16. loras: adapters to add, each a run or file, or `FILE:SCALE`. controlnet: a run that trained one, or its folder.
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
        loras=[str(lora) for lora in loras],
        controlnet=None if controlnet is None else Path(controlnet),
    )
    return OpenRun(session)


@dataclass(frozen=True)
class OpenRun:
    """A network on its device, with the codec of its latents and the embedder of its conditions, as `open_run` returns it.

    Examples:
        >>> run = open_run("output/256")
        >>> run.size, run.tokens_per_image, run.token_width
        (256, 1, 1280)
        >>> again = run.decode(run.encode("tissue.png"))[0]
        >>> again.size
        (320, 288)
    """

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
        tokens: Tokens | None = None,
        count: int | None = None,
        *,
        dataset: str | Sequence[str] | None = None,
        index: str | Path | None = None,
        features: str | Path | None = None,
        data_root: str | Path | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        solver: str | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        control: Controls | None = None,
        control_scale: float = 1.0,
        prior: str | Path | None = None,
        classes: Sequence[str] = (),
    ) -> Iterator[Sample]:
        """Sample images, one after the other as they are finished; image i depends on the seed, i and its condition alone.

        images: what conditions: arrays uint8 (H, W, 3), PIL images, files, samples, or a `SlideRegion`, of larger ones the
        middle. They are checked now, and read and embedded batch by batch. tokens: embeddings instead, (L, D) or (n, L, D), or
        .npy files of them. With neither, patches of the run's index condition, or embeddings that published weights have beside
        them; dataset, index, features, data_root: others, as the options of `pixcell sample`. count: how many; None: one for
        each image or token, 16 of an index. steps, solver: None for 20 of dpm-solver, or those of a student. guidance: 1 is none,
        None that of the run's sample grids. batch_size: in one pass, None for as many as keep the device busy. control: masks (H, W)
        or maps (K, H, W) for a ControlNet, or files and folders of them, one an image; None: those of the index, if the run has
        any. control_scale: how much they count. prior: a run of `pixcell prior` that draws embeddings, so that nothing else
        conditions; classes: those that it draws from, () for all.
        Raises MissingError, InputError.

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
        chosen = Solver(steps, guidance, solver, guidance_interval, self.session.solver.precision, control_scale)
        chosen = chosen.for_run(self.session.run)
        seed = check_whole(seed, "seed", least=0)
        count = None if count is None else check_whole(count, "count")
        size = windows_per_pass(self.session.device, self.session.run.config.input_size)
        size = size if batch_size is None else check_whole(batch_size, "batch_size")
        of_index = {"dataset": dataset, "index": index, "features": features, "data_root": data_root}
        conditions: Conditions
        if prior is None:
            if classes:
                raise InputError("classes are those of a prior; give it, too")
            conditions = self._conditions(images, tokens, of_index, seed, control is None)
        else:
            self._refuse_beside_prior({"images": images, "tokens": tokens, **of_index})
            source = open_source_prior(self.session, Path(prior), classes)
            conditions = PriorConditions(source, seed)
        if control is not None:
            conditions = ControlledConditions(conditions, self._controls(control))
        if self.session.run.controlnet is not None:  # else nothing is read before it is sampled for
            chosen.check_control(self.session.run, conditions[0].condition.control is not None)
        if count is None:
            count = INDEX_COUNT if isinstance(conditions, (IndexConditions, PriorConditions)) else len(conditions)
        make = ImageMaker(self.session.run, self.session.codec, conditions, seed, chosen)
        return self._samples(make, count, size)

    def edit(
        self,
        image: ImageLike,
        mask: np.ndarray | str | Path | None = None,
        *,
        strength: float | None = None,
        extend: tuple[int, int, int, int] | None = None,
        enlarge: int = 1,
        look: ImageLike | np.ndarray | None = None,
        look_amount: float = 1.0,
        added: np.ndarray | None = None,
        control: np.ndarray | None = None,
        control_scale: float = 1.0,
        match_colours: ImageLike | None = None,
        colour_method: ColourMethod = "reinhard",
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        solver: str | None = None,
        seed: int = 0,
        number: int = 0,
        batch_size: int | None = None,
    ) -> Sample:
        """Edit an image of any size, as `pixcell edit` does; return it as a sample with the image as its tissue.

        image: as in `sample`; of a slide `SlideRegion(...).read(size)`. mask: where it changes, (H, W), not 0 or True; None: all of it.
        strength: share of the steps taken from the image on, None: 1 with a mask, else 0.5, and 0.3 to enlarge. extend: pixels added to
        left, top, right, bottom, and sampled. enlarge: 2 or 4, of super-resolution. look: an image, of which the middle 256 pixels are
        embedded, or an embedding (D,), that conditions what changes; look_amount: how far on the way to it. added: an embedding (D,)
        that is added to those of what changes, such as the difference of two of `embed`. control: what a ControlNet reads, of the
        result's size. match_colours: an image whose colours the varied image is given. number: of the image, from which its noise follows.
        Others: as in `sample`. Raises MissingError, InputError.

        Examples:
            >>> run = open_run("output/256")
            >>> mask = np.zeros((288, 320), dtype=bool)
            >>> mask[100:150, 60:200] = True
            >>> repaired = run.edit("tissue.png", mask, steps=2)
            >>> bool((repaired.pixels == repaired.tissue)[~mask].all())
            True
        """
        if (mask is not None and (extend is not None or enlarge != 1)) or (extend is not None and enlarge != 1):
            raise InputError("mask, extend and enlarge: one of them says what changes; give one")
        pixels = np.array(to_pil(image, label_of(image, number)))
        change = coarse = None
        if mask is not None:
            change = read_change(Path(mask)) if isinstance(mask, (str, Path)) else np.asarray(mask) != 0
        elif extend is not None:
            pixels, change = extend_picture(pixels, extend)
        elif enlarge != 1:
            pixels, coarse = enlarge_picture(pixels, enlarge), pixels
        strength = choose_strength(strength, change is not None, enlarge, extend is not None)
        own = self.session
        chosen = Solver(steps, guidance, solver, guidance_interval, own.solver.precision, control_scale)
        session = own.with_solver(chosen, check_whole(seed, "seed", least=0))
        size = windows_per_pass(own.device, own.run.config.input_size)
        size = size if batch_size is None else check_whole(batch_size, "batch_size")
        colours = None
        if match_colours is not None:
            colours = ColourMatch(np.array(to_pil(match_colours, "match_colours")), colour_method, "match_colours")
        looks = [] if look is None else [Look(self._embedding(look, "look"), look_amount)]
        total = None if added is None else self._embedding(np.asarray(added), "added")
        editor = Editor(session, EditSettings(strength, batch_size=size), colours, total)
        edited = editor.edit(Canvas(pixels, change, control, coarse), check_whole(number, "number", least=0), looks)
        return Sample(number, name_of(image, number), edited, pixels if coarse is None else coarse)

    def _embedding(self, given: ImageLike | np.ndarray, name: str) -> torch.Tensor:
        """Return an embedding (D,): as it is given, or of the middle 256 pixels of an image. Raises InputError."""
        if isinstance(given, (np.ndarray, torch.Tensor)) and torch.as_tensor(given).numel() == self.token_width:
            return torch.as_tensor(given).float().flatten()
        square = PlainImage.from_image(read_square(given, WINDOW, name))
        return embed_square(Region(square, 0, 0), self.session.embedder, WINDOW, name).condition.tokens[0, 0]

    def _samples(self, make: ImageMaker, count: int, batch_size: int) -> Iterator[Sample]:
        for first in range(0, count, batch_size):
            for i, condition, pixels in make.images(list(range(first, min(first + batch_size, count)))):
                tissue = None if condition.pixels is None else _to_array(condition.pixels)
                yield Sample(i, condition.name, _to_array(pixels), tissue)

    def _refuse_beside_prior(self, given: dict[str, Any]) -> None:
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise InputError(f"prior and {named[0]}: one of them conditions; give one")

    def _conditions(
        self, images: Images | None, tokens: Tokens | None, of_index: dict[str, Any], seed: int, with_control: bool
    ) -> Conditions:
        if images is not None and tokens is not None:
            raise InputError("images and tokens: one of them conditions; give one")
        kind = "images" if images is not None else "tokens"
        if images is None and tokens is None:
            source = choose_source(self.session, _index_source(**of_index))
            if not source.tokens:
                return IndexConditions(
                    open_index(self.session, source, with_control),
                    seed,
                    pixels=True,
                    scale=self.session.codec.scale,
                )
            tokens = source.tokens
        given = [name for name, value in of_index.items() if value is not None]
        if given:
            raise InputError(f"{kind} and {given[0]}: {kind} condition, and no patches of an index; give one")
        if images is not None:
            return ImageConditions(as_list(images), self.session.embedder, self.size)
        conditions = _token_conditions(tokens, self.tokens_per_image)
        for named in conditions:
            check_tokens(named.condition.tokens[0], self.tokens_per_image, self.token_width, named.name)
        return RepeatedConditions(conditions)

    def _controls(self, control: Controls) -> list[NamedControl]:
        run, codec = self.session.run, self.session.codec
        check_controlled(run)
        given = [control] if isinstance(control, (str, Path, np.ndarray)) else list(control)
        if not given:
            raise InputError("no masks: control is empty")
        found: list[NamedControl] = []
        for number, each in enumerate(given):
            if isinstance(each, (str, Path)):
                found += load_controls(list_controls([Path(each)]), run, codec)
            else:
                name = f"mask_{number}"
                found.append(NamedControl(name, to_control(np.asarray(each), run, codec, (self.size, self.size), name)))
        return found

    def embed(self, images: Images) -> np.ndarray:
        """Embed images as conditions of this network: float32 (n, L, D). Raises MissingError, InputError.

        images: as in `sample`; of larger ones than the network's the middle.

        Examples:
            >>> run = open_run("output/256")
            >>> run.embed("tissue.png").shape == (1, run.tokens_per_image, run.token_width)
            True
        """
        conditions = ImageConditions(as_list(images), self.session.embedder, self.size)
        return torch.cat([conditions[i].condition.tokens for i in range(len(conditions))]).numpy()

    def encode(self, images: Images) -> np.ndarray:
        """Encode images of one size to network latents, the posterior's mean: float32 (n, 16, h, w). Raises InputError.

        Examples:
            >>> run = open_run("output/256")
            >>> run.encode("tissue.png").shape  # of 320 x 288 pixels
            (1, 16, 36, 40)
        """
        pictures, codec, encoded = as_list(images), self.session.codec, []
        sizes = {measure(image, label_of(image, number)) for number, image in enumerate(pictures)}
        if len({tuple(sorted(size)) for size in sizes}) == 1:  # as headers say, whose pictures may yet be turned
            for number, image in enumerate(pictures):
                pixels = np.array(to_pil(image, label_of(image, number)))
                latents = codec.encode(from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
                encoded.append(latents.float().cpu())
            sizes = {latents.shape for latents in encoded}
        if len(sizes) != 1:
            raise InputError(f"images of {len(sizes)} sizes: encode those of one size together")
        return torch.cat(encoded).numpy()

    def decode(self, latents: np.ndarray | torch.Tensor) -> list[Image.Image]:
        """Decode network latents (n, 16, h, w) to images of 8 h x 8 w pixels. Raises InputError.

        Examples:
            >>> run = open_run("output/256")
            >>> run.decode(run.encode("tissue.png"))[0].size
            (320, 288)
        """
        values, codec = torch.as_tensor(latents), self.session.codec
        if values.ndim != 4:
            raise InputError(f"latents have shape {tuple(values.shape)}, expected (n, {codec.channels}, h, w)")
        decoded = (codec.decode(value[None])[0] for value in values)
        return [Image.fromarray(_to_array(to_uint8(check_pixels(pixels, codec)))) for pixels in decoded]


def _index_source(
    dataset: str | Sequence[str] | None,
    index: str | Path | None,
    features: str | Path | None,
    data_root: str | Path | None,
) -> ConditionSource:
    return ConditionSource(
        data_root=None if data_root is None else Path(data_root),
        index=None if index is None else str(index),
        features=None if features is None else str(features),
        dataset=dataset,
    )


def _token_conditions(tokens: Any, length: int) -> list[NamedCondition]:
    """Return conditions of embeddings (L, D) or (n, L, D), or of .npy files of `length` tokens an image. Raises InputError."""
    paths = [tokens] if isinstance(tokens, (str, Path)) else tokens
    if isinstance(paths, (list, tuple)) and paths and all(isinstance(path, (str, Path)) for path in paths):
        return load_token_conditions([Path(path) for path in paths], length)
    try:
        values = torch.as_tensor(tokens).detach().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"tokens are no numbers (L, D) or (n, L, D), and no .npy files ({error})") from None
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or not len(values):
        raise InputError(f"tokens have shape {tuple(values.shape)}, expected (L, D) or (n, L, D)")
    if not values.isfinite().all():
        raise InputError("tokens hold numbers that are not finite")
    return [NamedCondition(f"tokens_{i}", Condition(value[None])) for i, value in enumerate(values)]


def _to_array(pixels: torch.Tensor) -> np.ndarray:
    """Return uint8 (H, W, 3) of uint8 (3, H, W)."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
