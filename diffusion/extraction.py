"""Extraction of features: workers decode images, windows of several images are one batch, threads write files.

Letters: P patches of one group, S pixels a side, k windows a side, W pixels a window.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffusion.data.crops import tokens_per_image
from diffusion.data.datasets.pan_cancer import LARGE_PATCH
from diffusion.data.features.loose import check_or_write_record, feature_path, features_folder, imported_width
from diffusion.data.features.masks import mask_maps, read_mask
from diffusion.data.features.npy import is_valid, read_array, write_feature
from diffusion.data.features.parts import LATENTS
from diffusion.data.index.patch_index import PatchIndex, find_keys, index_keys, split_key
from diffusion.data.slides.patches import read_patch
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec, from_uint8
from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder
from diffusion.formats import PATCHES_DIR, SSL_PREFIX, VAE_PREFIX, WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.windows import cut_windows, join_windows

WRITERS = 4  # threads; on a network drive, one thread would wait for every file


def choose_index_key(index: Path, dataset: str, size: int) -> tuple[str, int]:
    """Return the index key to extract and the size of its patches: `size` if such are indexed, else 1024 in windows.

    dataset: a data set, or a key itself. Raises MissingError when the index has neither, InputError when such windows do not
    tile a patch.
    """
    (key,) = find_keys(index_keys(index), [dataset], (size, LARGE_PATCH))
    patch_size = split_key(key)[1]
    if patch_size % size or size % WINDOW:
        raise InputError(f"--size {size}: expected a multiple of {WINDOW} that divides {patch_size}")
    return key, patch_size


def default_latent_suffix(vae: str | Path) -> str:
    """Return the ending of the latent files of a codec: those of an embedded one must never pass for those of SD3.5's."""
    embedded = [name for name, folder in EMBEDDED_CODECS.items() if codec_folder(vae).resolve() == folder]
    return f"{embedded[0]}_vae" if embedded else VAE_PREFIX


def choose_embeddings(
    folder: Path, key: str, encoder: str, suffix: str | None, load: Callable[[], PatchEmbedder]
) -> tuple[PatchEmbedder | None, str, int]:
    """Return the embedder, None where embeddings of that ending were imported, their ending, and their width.

    folder: of the features; suffix: the ending, None for that of the encoder; load: loads it, and is called only where it
    is needed.
    """
    if suffix is None and encoder == "uni2":
        suffix = SSL_PREFIX
    embedder = load() if suffix is None or imported_width(folder, key, suffix) is None else None
    if suffix is None:
        assert embedder is not None
        suffix = SSL_PREFIX if embedder.name == "uni2" else embedder.name
    width = imported_width(folder, key, suffix)
    if width is not None:
        return None, suffix, width
    assert embedder is not None
    return embedder, suffix, embedder.width


@dataclass(frozen=True)
class FeatureFiles:
    """The two feature files of every patch of one index key: their paths, and what they must contain.

    imported: whether the tokens came from another program, and are left alone.
    """

    root: Path
    features_dir: str | None
    patch_size: int
    embedding_width: int
    vae_prefix: str
    ssl_prefix: str
    imported: bool = False

    @property
    def folder(self) -> Path:
        """Return the folder of the features."""
        return features_folder(self.root, self.features_dir)

    def paths(self, name: str) -> tuple[Path, Path]:
        """Return the files of latents and of tokens of a patch."""
        return feature_path(self.folder, name, self.vae_prefix), feature_path(self.folder, name, self.ssl_prefix)

    def is_complete(self, name: str) -> bool:
        """Tell whether both files exist with the right shape and type, and every value is finite."""
        latents, tokens = self.paths(name)
        return is_valid(latents, LATENTS.shape(self.patch_size)) and is_valid(tokens, self._tokens_shape())

    def _tokens_shape(self) -> tuple[int, int]:
        return tokens_per_image(self.patch_size), self.embedding_width

    def check_imported(self, name: str) -> None:
        """Check that a patch has the tokens that were imported. Raises MissingError, or InputError as npy.read_array does."""
        try:
            read_array(self.paths(name)[1], self._tokens_shape())
        except MissingError:
            raise MissingError(
                f"{name} has no imported embedding *_{self.ssl_prefix}.npy, as others have; import it with pixcell import, "
                "or put patches to be embedded here into another data set"
            ) from None

    def write(self, name: str, moments: torch.Tensor, tokens: torch.Tensor | None) -> None:
        """Write both files; moments (32, S/8, S/8) and tokens (L, D), on any device; None: imported, and left alone."""
        latents_path, tokens_path = self.paths(name)
        write_feature(latents_path, moments.cpu().numpy())
        if tokens is not None:
            write_feature(tokens_path, tokens.cpu().numpy())

    def check_or_write_record(self, key: str, made_by: dict[str, dict[str, Any]]) -> None:
        """Compare how the features of each prefix are made with the record of earlier runs, and add to the record.

        Raises InputError naming the first difference.
        """
        check_or_write_record(self.folder, key, made_by, "--latent-suffix, --embedding-suffix")


class DecodedPatch(NamedTuple):
    """One patch as a worker read it: uint8 (3, S, S); None when it has features already, or when there is an error."""

    name: str
    pixels: torch.Tensor | None
    error: str | None = None


class PatchDataset(Dataset):
    """The patches of one process: every world_size-th of an index, from the rank-th on."""

    def __init__(self, index: PatchIndex, files: FeatureFiles, rank: int, world_size: int):
        self.index, self.files = index, files
        self.mine = range(rank, len(index), world_size)

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, i: int) -> DecodedPatch:
        name = self.index.name(self.mine[i])
        if self.files.is_complete(name):
            return DecodedPatch(name, None)
        try:
            if self.files.imported:
                self.files.check_imported(name)
            pixels = read_patch(self.files.root / PATCHES_DIR / name, self.files.patch_size)
        except InputError as error:
            return DecodedPatch(name, None, str(error))
        return DecodedPatch(
            name, torch.tensor(pixels).permute(2, 0, 1).contiguous()
        )  # a copy: decoded pixels are read-only


class Outcome(NamedTuple):
    """What became of one patch: written now, complete before, or an error."""

    name: str
    written: bool
    error: str | None = None


def extract_features(
    patches: PatchDataset,
    codec: LatentCodec,
    embedder: PatchEmbedder | None,
    window: int,
    batch_size: int,
    workers: int,
) -> Generator[Outcome, None, None]:
    """Compute and write missing features, and yield the outcome of every patch.

    Outcomes come in order, except that those of complete patches come early.

    embedder: None where the embeddings were imported. window: W, pixels that the VAE encodes at once; batch_size: windows
    in a pass of a network.
    """
    device = codec.vae.device
    loader = DataLoader(patches, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")
    waiting: deque[Future] = deque()
    at_once = max(1, batch_size // tokens_per_image(patches.files.patch_size))
    with ThreadPoolExecutor(WRITERS) as writer:  # the device computes while files are written
        for group in group_patches(loader, at_once):
            if not isinstance(group, list):
                yield group
                continue
            pixels = torch.stack([patch.pixels for patch in group if patch.pixels is not None]).to(
                device, non_blocking=True
            )
            moments = encode_patches(pixels, codec, window, batch_size).half()
            tokens = None if embedder is None else embed_patches(pixels, embedder, batch_size).half()
            names = [patch.name for patch in group]
            waiting.append(writer.submit(write_group, patches.files, names, moments, tokens))
            while len(waiting) > 2 * WRITERS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def encode_masks(
    names: Iterable[str], folder: Path, size: int, suffix: str, codec: LatentCodec, latents: str, batch_size: int
) -> Generator[Outcome]:
    """Write the latents of masks, white on black, as a ControlNet of latents takes them; yield what became of each.

    suffix: ending of the masks; latents: of the codec's files: `3_4_mask_sd3_vae.npy` of `3_4_mask.png`. One that is whole is left.
    """
    remaining = iter(names)
    while part := list(islice(remaining, batch_size)):
        waiting: dict[str, torch.Tensor] = {}
        for name in part:
            if is_valid(feature_path(folder, name, f"{suffix}_{latents}"), LATENTS.shape(size)):
                yield Outcome(name, False)
                continue
            try:
                mask = read_mask(feature_path(folder, name, suffix), size)
                binary = mask_maps(mask, "labels", 1, f"the mask of {name}")
                waiting[name] = torch.from_numpy(binary).expand(3, -1, -1)
            except InputError as error:
                yield Outcome(name, False, str(error))
        if not waiting:
            continue
        device = codec.vae.device
        moments = encode_patches(255 * torch.stack(list(waiting.values())).to(device), codec, WINDOW, batch_size)
        for name, each in zip(waiting, moments, strict=True):
            write_feature(feature_path(folder, name, f"{suffix}_{latents}"), each.cpu().numpy())
            yield Outcome(name, True)


def group_patches(patches: Iterable[DecodedPatch], at_once: int) -> Iterator[list[DecodedPatch] | Outcome]:
    """Yield groups of patches to compute, and the outcomes of all others as they come."""
    group: list[DecodedPatch] = []
    for patch in patches:
        if patch.pixels is None:
            yield Outcome(patch.name, False, patch.error)
            continue
        group.append(patch)
        if len(group) == at_once:
            yield group
            group = []
    if group:
        yield group


def write_group(
    files: FeatureFiles, names: list[str], moments: torch.Tensor, tokens: torch.Tensor | None
) -> list[Outcome]:
    """Write a group's features; those with NaN or infinity become errors."""
    moments = moments.cpu()
    each_tokens = [None] * len(names) if tokens is None else tokens.cpu()
    outcomes = []
    for name, patch_moments, patch_tokens in zip(names, moments, each_tokens, strict=True):
        try:
            files.write(name, patch_moments, patch_tokens)
            outcomes.append(Outcome(name, True))
        except InputError as error:
            outcomes.append(Outcome(name, False, str(error)))
    return outcomes


def encode_patches(pixels: torch.Tensor, codec: LatentCodec, window: int, batch_size: int) -> torch.Tensor:
    """Return posterior mean and std (P, 32, S/8, S/8), float32, of uint8 pixels (P, 3, S, S), encoded in windows of W pixels."""
    per_side = pixels.shape[-1] // window
    windows = cut_windows(pixels, window).split(batch_size)
    return join_windows(torch.cat([codec.moments(from_uint8(part)) for part in windows]), per_side)


def embed_patches(pixels: torch.Tensor, embedder: PatchEmbedder, batch_size: int) -> torch.Tensor:
    """Return embeddings (P, n, D), float32, of the 256-pixel windows of uint8 pixels (P, 3, S, S), row by row."""
    embeddings = torch.cat([embedder.embed(part) for part in cut_windows(pixels, WINDOW).split(batch_size)])
    return embeddings.unflatten(0, (len(pixels), -1))


def collect_outcomes(outcomes: Iterable[Outcome], stop: bool) -> tuple[int, list[tuple[str, str]]]:
    """Return how many patches were written, and those that could not be, each with the reason; these are reported on stderr.

    Raises InputError at the first of them with `stop`.
    """
    written, wrong = 0, []
    for outcome in outcomes:
        written += outcome.written
        if outcome.error is None:
            continue
        if stop:
            raise InputError(outcome.error)
        wrong.append((outcome.name, outcome.error))
        tqdm.write(f"left out: {outcome.error}", file=sys.stderr)
    return written, wrong
