"""Embeddings of patches alone: what flows lead to, and what they start from. Neither images nor latents are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from diffusion.data.batch import BadItem, Batch
from diffusion.data.crops import crop_box, crops_per_side
from diffusion.data.datasets.pan_cancer import DATASETS, LARGE_PATCH, describe_identity, open_patch_index
from diffusion.data.features.partner import open_partner_features, partner_name
from diffusion.data.features.parts import TOKENS
from diffusion.data.features.store import open_features, probe_names
from diffusion.data.index.labels import classify_patches
from diffusion.data.index.patch_index import index_path
from diffusion.data.sampler import Draw
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX
from diffusion.utils.errors import InputError


@dataclass(frozen=True)
class EmbeddingItem:
    """Tokens (L, D) of an image, float32; source: those that a flow starts from; label: the number of its class."""

    tokens: torch.Tensor
    name: str
    seed: int | None = None
    source: torch.Tensor | None = None
    label: int | None = None


@dataclass(frozen=True)
class EmbeddingBatch(Batch):
    """Tokens (B, L, D), those that a flow starts from, where there are some, and numbers of classes (B,)."""

    tokens: torch.Tensor
    source: torch.Tensor | None = None
    label: torch.Tensor | None = None


class EmbeddingData(Dataset):
    """The tokens of images of `resolution` pixels, which are patches or crops of larger ones.

    root, patch_names_file, features_dir, ssl_prefix, train_subset_keys: as PanCancerData takes them. patch_size: of the
    patches; None: the resolution. source_dataset: data set whose patches of the same names a flow starts from. labels: classes, as
    `classify_patches` takes them; patches without are left out. class_names: which classes there are; None: all that occur.
    Raises MissingError, InputError at once for what is not there.
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int,
        patch_names_file: str = DEFAULT_INDEX,
        features_dir: str | None = None,
        ssl_prefix: str = SSL_PREFIX,
        train_subset_keys: Sequence[str] | None = None,
        patch_size: int | None = None,
        source_dataset: str | None = None,
        labels: str | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self.root, self.resolution = Path(root), resolution
        self.patch_size = patch_size or resolution
        self.crops_per_side = crops_per_side(self.patch_size, resolution)
        self.ssl_prefix, self.source_dataset = ssl_prefix, source_dataset
        self.index = open_patch_index(
            index_path(self.root, patch_names_file), train_subset_keys, self.patch_size, resolution
        )
        prefixes = {TOKENS.name: ssl_prefix}
        self.features = [
            open_features(self.root, features_dir, key, probe_names(self.index, i), self.patch_size, prefixes)
            for i, key in enumerate(self.index.keys)
        ]
        self.sources = [
            open_partner_features(self.root, features_dir, self.index, i, source_dataset, self.patch_size, prefixes)
            for i in range(len(self.index.keys))
            if source_dataset is not None
        ]
        self.classes = None if labels is None else classify_patches(self.index, labels, class_names)
        self._labelled = None if self.classes is None else np.flatnonzero(self.classes.numbers >= 0)

    @property
    def patch_count(self) -> int:
        """Return the number of patches; with classes, of those that have one."""
        return len(self.index) if self._labelled is None else len(self._labelled)

    def __len__(self) -> int:
        return self.patch_count * self.crops_per_side**2

    def sample_name(self, index: int) -> str:
        """Return the name of the patch that sample `index` is of."""
        return self.index.name(self._patch(index)[0])

    def describe(self, index: int) -> str:
        """Return what to call sample `index` in messages."""
        try:
            return self.sample_name(index)
        except InputError:
            return f"patch {self._patch(index)[0]} of {self.index.path}"

    def identity(self) -> dict[str, Any]:
        """Return plain values that differ for other samples or another order, and not for another place on disk."""
        classes = {} if self.classes is None else {"classes": _hash_classes(self.classes.names, self.classes.numbers)}
        source = {} if self.source_dataset is None else {"source": self.source_dataset}
        return {**describe_identity(self), "features": self.ssl_prefix, **source, **classes}

    def __getitem__(self, key: int | Draw) -> EmbeddingItem:
        """Return sample `key`; a Draw has the seed of what is random about it. Raises InputError for tokens that do not fit."""
        index, seed = key[:2] if isinstance(key, tuple) else (key, None)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        patch, crop = self._patch(index)
        which, name = self.index.locate(patch)
        box = crop_box(crop, self.crops_per_side, self.resolution)
        tokens = torch.from_numpy(self.features[which].read_part(TOKENS.name, name, box)).float()
        label = None if self.classes is None else int(self.classes.numbers[patch])
        if self.source_dataset is None:
            return EmbeddingItem(tokens, name, seed, None, label)
        partner = partner_name(name, self.source_dataset)
        source = torch.from_numpy(self.sources[which].read_part(TOKENS.name, partner, box)).float()
        if source.shape != tokens.shape:
            raise InputError(
                f"the tokens of {partner} are {tuple(source.shape)}, and those of {name} {tuple(tokens.shape)}: expected the "
                "same, by one encoder"
            )
        return EmbeddingItem(tokens, name, seed, source, label)

    def read_evenly(self, count: int, skip_bad: bool = False) -> list[EmbeddingItem]:
        """Return at most `count` samples, spread evenly over all; skip_bad: without those that cannot be read.

        Raises InputError for one that cannot be read, or when none can.
        """
        count, items, first = min(count, len(self)), [], None
        for i in range(count):
            try:
                items.append(self[i * len(self) // count])
            except InputError as error:
                if not skip_bad:
                    raise
                first = first or error
        if not items:
            raise InputError(f"none of {count} samples can be read; the first: {first}")
        return items

    def _patch(self, index: int) -> tuple[int, int]:
        """Return the number of a sample's patch in the index, and of its crop."""
        place, crop = divmod(index, self.crops_per_side**2)
        return (place if self._labelled is None else int(self._labelled[place])), crop


def _hash_classes(names: Sequence[str], numbers: np.ndarray) -> str:
    return hashlib.sha256("\n".join(names).encode() + numbers.tobytes()).hexdigest()[:16]


def collate_embeddings(items: Sequence[EmbeddingItem | BadItem]) -> EmbeddingBatch:
    """Make a batch of the items that could be read. Raises InputError when none could."""
    bad = [item for item in items if isinstance(item, BadItem)]
    readable = [item for item in items if isinstance(item, EmbeddingItem)]
    if not readable:
        raise InputError(f"none of the {len(bad)} items of a batch can be read; the first: {bad[0].reason}")
    sources = [item.source for item in readable if item.source is not None]
    labels = [item.label for item in readable if item.label is not None]
    return EmbeddingBatch(
        tokens=default_collate([item.tokens for item in readable]),
        source=default_collate(sources) if sources else None,
        label=torch.tensor(labels) if labels else None,
        names=[item.name for item in readable],
        seeds=[item.seed for item in readable],
        bad=bad,
    )


def build_embedding_data(type: str, **kwargs: Any) -> EmbeddingData:
    """Build the embeddings of whole patches (PanCancerData) or of crops of 1024-pixel ones (PanCancerDataLowRes), as configs say.

    Raises InputError for another type.
    """
    if type not in DATASETS:
        raise InputError(f"no data set type {type!r}; known are {', '.join(DATASETS)}")
    return EmbeddingData(**kwargs, patch_size=LARGE_PATCH if type == "PanCancerDataLowRes" else None)
