"""Feature files: the one place that names, reads, writes and checks them.

Beside `<column>_<row>.jpeg` (or, in older sets, under ROOT/features/<same path>) lie, for a patch of S pixels,
`<column>_<row>_sd3_vae.npy`, float16 (32, S/8, S/8): 16 channels of posterior mean, then 16 of posterior std, on the VAE's scale;
`<column>_<row>_uni.npy`, float16 (n, D): one embedding per 256-pixel window, row-major.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion.data.crops import LATENT_FACTOR, tokens_per_image
from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside

LATENT_CHANNELS = 16
VAE_PREFIX, SSL_PREFIX = "sd3_vae", "uni"
OLDER_FEATURES_DIR = "features"


def feature_path(folder: Path, patch_name: str, prefix: str) -> Path:
    """The feature file of a patch; `folder` is ROOT/patches or the features folder."""
    return folder / Path(patch_name).with_name(f"{Path(patch_name).stem}_{prefix}.npy")


def features_folder(root: Path, features_dir: str | Path | None) -> Path:
    """Where new features go: beside the images, or in a folder of their own (relative to ROOT)."""
    return root / "patches" if features_dir is None else root / features_dir


def find_features_folder(root: Path, features_dir: str | Path | None, patch_name: str, prefix: str) -> Path:
    """Where existing features are: the folder named, else beside the images, else ROOT/features.

    Decided once for a data set, by its first patch. Raises MissingError naming every place looked at.
    """
    candidates = [None, OLDER_FEATURES_DIR] if features_dir is None else [features_dir]
    paths = [feature_path(features_folder(root, candidate), patch_name, prefix) for candidate in candidates]
    for candidate, path in zip(candidates, paths, strict=True):
        if path.is_file():
            return features_folder(root, candidate)
    looked = " or ".join(str(path) for path in paths)
    raise MissingError(
        f"no features at {looked}; make them with tools/extract_features.py, or name their folder with features_dir"
    )


def moments_shape(size: int) -> tuple[int, int, int]:
    side = size // LATENT_FACTOR
    return 2 * LATENT_CHANNELS, side, side


def read_moments(path: Path, size: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    """Posterior mean and std, float32 (32, h, w), of a part of a patch of `size` pixels; only that part is read.

    Raises MissingError, or InputError for a file that is not whole, float16, of the right shape, and finite there.
    """
    part = _open(path, moments_shape(size))[:, rows, columns].astype(np.float32)
    return _finite(path, part)


def read_tokens(path: Path, size: int) -> np.ndarray:
    """Embeddings, float32 (n, D), of a patch of `size` pixels. Raises as read_moments does."""
    array = _open(path, (tokens_per_image(size), None))
    return _finite(path, array.astype(np.float32))


def write_feature(path: Path, array: np.ndarray) -> None:
    """Write aside as float16, then rename, so that no reader ever sees half a file.

    Raises InputError when a value is not finite in float16.
    """
    with np.errstate(over="ignore"):
        half = _finite(path, np.asarray(array, dtype=np.float16))
    with written_aside(path) as temporary, open(temporary, "wb") as file:
        np.save(file, half)


def is_valid(path: Path, shape: tuple[int | None, ...]) -> bool:
    """Whether a feature file is there, whole, of that shape (None: any length), float16 and finite."""
    try:
        _finite(path, _open(path, shape))
    except InputError:
        return False
    return True


def _open(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Map a feature file without reading it; the mapping itself checks that the file is as long as its header says."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingError(f"no feature file {path}; make it with tools/extract_features.py") from None
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a whole .npy file ({error}); delete it and extract again") from error
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=False))
    if not fits or array.dtype != np.float16:
        wanted = ", ".join("D" if n is None else str(n) for n in shape)
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}: expected float16 ({wanted}); extract this patch again"
        )
    return array


def _finite(path: Path, array: np.ndarray) -> np.ndarray:
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(f"{path}: {bad} of {array.size} values are not finite in float16; extract this patch again")
    return array
