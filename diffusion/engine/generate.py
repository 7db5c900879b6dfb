"""Many samples for conditions from an index: which image is which, and what lies in the folder already."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion.data.batch import PatchItem
from diffusion.data.crops import LATENT_FACTOR
from diffusion.data.datasets.pan_cancer import LARGE_PATCH, PanCancerData, PanCancerDataLowRes
from diffusion.data.index import split_key
from diffusion.data.sampler import Draw, Permutation
from diffusion.encoders.latents import LatentCodec
from diffusion.errors import InputError
from diffusion.files import written_aside
from diffusion.sampling import image_generator, initial_noise, make_scheduler, sample_latents
from diffusion.seeds import mix_seed
from diffusion.workdir import Run, check_tokens

SETTINGS_FILE = "samples.json"
FORMATS = {"png": {"compress_level": 3}, "jpeg": {"quality": 95, "subsampling": 0}}


def open_conditions(arguments: dict[str, Any], keys: list[str] | None) -> PanCancerData:
    """The patches that conditions come from, with their pixels.

    arguments: of the data set in a run's config. keys replace its index keys; they may hold patches of the image's own
    size or, cropped, of 1024 pixels. Raises InputError for keys of both kinds or another size.
    """
    arguments = {**arguments, "return_img": True}
    low_resolution = arguments.pop("type") == "PanCancerDataLowRes"
    if keys is not None:
        size = arguments["resolution"]
        sizes = {split_key(key)[1] for key in keys}
        if sizes not in ({size}, {LARGE_PATCH}):
            raise InputError(f"--subset_keys {' '.join(keys)}: expected keys of {size} or all of {LARGE_PATCH} pixels")
        low_resolution = sizes != {size}
        arguments["train_subset_keys"] = keys
    return (PanCancerDataLowRes if low_resolution else PanCancerData)(**arguments)


@dataclass(frozen=True)
class Folder:
    """An output folder: `real/` and `syn/` with the same file names, and the settings they were made with."""

    path: Path
    extension: str

    def claim(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare with those that are there, so that one folder never mixes two.

        Raises InputError naming the first setting that differs.
        """
        file = self.path / SETTINGS_FILE
        if file.is_file():
            try:
                before = json.loads(file.read_text())
            except ValueError:
                raise InputError(
                    f"{file} is damaged; name another --out_dir, or delete it with the samples beside it"
                ) from None
            for name, value in settings.items():
                if before.get(name) != value:
                    raise InputError(
                        f"{self.path} holds samples with {name} {before.get(name)}, not {value}; name another --out_dir"
                    )
            return
        with written_aside(file) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")

    def missing(self, count: int) -> list[int]:
        """Which of `count` images are not there yet, in `real` and `syn`; a file is there whole or not at all.

        Raises InputError when there are more than `count`, or files that are no samples.
        """
        folder = self.path / "syn"
        names = [name for name in os.listdir(folder) if name[0] != "."] if folder.is_dir() else []
        strangers = [name for name in names if not re.match(r"\d{6,}_", name)]
        if strangers:
            raise InputError(f"{folder} holds {strangers[0]}, which is no sample; name another --out_dir")
        present = {int(name.split("_")[0]): (self.path / "real" / name).is_file() for name in names}
        if any(i >= count for i in present):
            raise InputError(
                f"{self.path} holds {len(present)} samples, not {count}; name another --out_dir, or ask for as many"
            )
        return [i for i in range(count) if not present.get(i)]

    def write(self, i: int, item: PatchItem, synthetic: torch.Tensor) -> None:
        """Image i: the patch's own pixels and the sample, uint8 (3, S, S) both."""
        stem = Path(item.name)
        name = f"{i:06d}_{stem.parent.name}_{stem.stem}_{item.crop}.{self.extension}"
        for part, pixels in (("real", item.image), ("syn", synthetic)):
            with written_aside(self.path / part / name) as temporary:
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(
                    temporary, self.extension, **FORMATS[self.extension]
                )


class ImageMaker:
    """Image i of a run: condition, noise and everything random about it follow from (seed, i) alone."""

    def __init__(
        self,
        run: Run,
        codec: LatentCodec,
        conditions: PanCancerData,
        seed: int,
        steps: int,
        guidance: float,
        algorithm: str,
    ):
        """Raises InputError for conditions that are not the network's, or steps that the solver cannot take."""
        check_tokens(run.config, conditions)
        make_scheduler(algorithm, steps)
        self.run, self.codec, self.conditions, self.seed = run, codec, conditions, seed
        self.steps, self.guidance, self.algorithm = steps, guidance, algorithm

    def item(self, i: int) -> PatchItem:
        """The patch whose tokens condition image i: a random order without repeats, begun anew when it is through."""
        round_, place = divmod(i, len(self.conditions))
        index = Permutation(len(self.conditions), mix_seed(self.seed, round_))(place)
        return self.conditions[Draw(index, mix_seed(self.seed, i))]

    def images(self, indices: list[int]) -> Iterator[tuple[int, PatchItem, torch.Tensor]]:
        """One batch: number, patch, and sampled pixels, uint8 (3, S, S)."""
        items = [self.item(i) for i in indices]
        generators = [image_generator(self.seed, i) for i in indices]
        side = self.run.config.image_size // LATENT_FACTOR
        null_tokens = self.run.null_tokens
        noise = initial_noise(generators, (self.run.model.in_channels, side, side)).to(null_tokens.device)
        tokens = torch.stack([item.tokens for item in items]).to(null_tokens.device)
        latents = sample_latents(
            self.run.model,
            noise,
            tokens,
            null_tokens,
            steps=self.steps,
            guidance=self.guidance,
            algorithm=self.algorithm,
            generators=generators,
            prediction_type=self.run.config.prediction_type,
        )
        for i, item, latent in zip(indices, items, latents, strict=True):
            if not torch.isfinite(latent).all():
                raise InputError(
                    f"image {i} is not finite: {self.run.checkpoint} is spoilt, or guidance {self.guidance} too strong"
                )
            yield i, item, to_uint8(self.codec.decode(latent[None])[0])


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> 0..255, rounded, on the CPU."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
