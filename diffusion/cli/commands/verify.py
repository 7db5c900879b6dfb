"""pixcell verify."""

from __future__ import annotations

from typing import Annotated

from diffusion.cli import options
from diffusion.cli.signature import Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX, VAE_PREFIX

ImagesOnly = Annotated[bool, Option("look at the images, not at the features")]
Prune = Annotated[bool, Option("write patch_names_clean.hdf5 beside the index: the patches that are sound")]


@checked
def verify(
    dataset: options.AnyDatasets = None,
    index: options.DataIndex = DEFAULT_INDEX,
    images_only: ImagesOnly = False,
    features: options.DataFeatures = None,
    latent_suffix: options.LatentSuffix = VAE_PREFIX,
    embedding_suffix: options.EmbeddingSuffix = SSL_PREFIX,
    workers: options.WorkersPerCore = None,
    prune: Prune = False,
    root: options.Root = None,
    mask_suffix: options.MaskSuffix = None,
    control_suffix: options.ControlSuffix = None,
    *,
    published: bool = False,
) -> int:
    """Read every image and feature file of an index, and list what is wrong.

    The list goes to patch_names_wrong.txt beside the index, and the exit code is then 1; --prune also writes an index without those
    patches.

    Examples:
      pixcell verify --workers 16 --prune
      pixcell verify --dataset demo --latent-suffix tiny_vae --embedding-suffix mobilenetv2
      pixcell verify --index patch_names_test.hdf5 --images-only
    """
    if images_only:
        of_features = dict(
            features=features,
            latent_suffix=latent_suffix,
            embedding_suffix=embedding_suffix,
            mask_suffix=mask_suffix,
            control_suffix=control_suffix,
        )
        refuse_unused(verify, of_features, "beside --images-only", published)

    from functools import partial

    from tqdm import tqdm

    from diffusion.data.features.parts import part_prefixes
    from diffusion.data.index.patch_index import PatchIndex, find_keys, index_keys, index_path
    from diffusion.data.index.verify import PatchCheck, verify_key, write_sound_index
    from diffusion.utils.files import atomic_write
    from diffusion.utils.hardware import count_cores
    from diffusion.utils.text import default_root

    root = root or default_root()
    path = index_path(root, index)
    present = index_keys(path)
    keys = find_keys(present, dataset) if dataset else present
    prefixes = None if images_only else part_prefixes(latent_suffix, embedding_suffix, mask_suffix, control_suffix)
    found, listing = {}, path.with_name("patch_names_wrong.txt")
    with atomic_write(listing) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for key in keys:
            patches = PatchIndex(path, [key])
            check = PatchCheck.open(root, patches, features, prefixes)
            bar = partial(tqdm, total=len(patches), desc=key, unit="patch", leave=False)
            found[key] = verify_key(patches, check, workers or count_cores(), lines, bar)
            print(f"{key}: {found[key]}")
    any_faulty = any(len(each.faulty) for each in found.values())
    if any_faulty:
        print(f"listed: {listing}")
    else:
        listing.unlink()
    if not any_faulty and not any(each.repeats for each in found.values()):
        return 0
    if prune:
        clean = path.with_name("patch_names_clean.hdf5")
        print(f"written: {clean}, {write_sound_index(clean, path, found)} patches")
    return 1
