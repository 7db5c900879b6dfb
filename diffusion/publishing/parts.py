"""What a run's network is made with: weights that it began with, codec, encoder; with their licences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from diffusion.components import resolve_vae
from diffusion.config.files import read_config
from diffusion.config.settings import Config
from diffusion.encoders.latents import LatentScale
from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder
from diffusion.formats import CONFIG_FILE, DEFAULT_VAE, SSL_PREFIX
from diffusion.hub import HUB, ON_PAGE, TABLE
from diffusion.publishing.licences import LICENCES, Part, unknown_licence
from diffusion.utils.assets import NETWORKS, network_folder
from diffusion.utils.errors import InputError
from diffusion.workdir import OPENED, Run

RELEASED = {Path(model.target).name: model.page for model in TABLE if model.licence == ON_PAGE}
ENCODERS = {
    "uni2": ("UNI2-h", LICENCES["cc-by-nc-nd-4.0"]),  # huggingface.co/MahmoodLab/UNI2-h
    "mobilenetv2": ("MobileNetV2", LICENCES["mit"]),
    "inception": ("InceptionV3 of the FID", LICENCES["apache-2.0"]),  # github.com/toshas/torch-fidelity
}
SD3_SCALE = (1.5305, 0.0609)  # scale and shift of the autoencoder of Stable Diffusion 3 and 3.5


def find_parts(run: Run, config: Config, root: Path) -> list[Part]:
    """Return the parts of a run's network, each once; config: the run's, with the codec that is meant."""
    is_own = (run.folder / CONFIG_FILE).is_file()
    base = _base_weights(config, {run.folder.resolve()}) if is_own else [_foreign_weights(run.folder)]
    return list(dict.fromkeys([*base, codec_part(config.vae_pretrained, root), encoder_part(config)]))


def codec_part(vae: str, root: Path) -> Part:
    """Return the codec that a config names, as a part."""
    place = resolve_vae(vae, root)
    folder = codec_folder(place)
    if place in EMBEDDED_CODECS or folder in EMBEDDED_CODECS.values():
        name = next(name for name, embedded in EMBEDDED_CODECS.items() if embedded == folder)
        return Part("codec", f"{name} codec of PixCell", LICENCES["apache-2.0"])
    scale = LatentScale.from_folder(folder)
    is_sd3 = all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip((scale.scale, scale.shift), SD3_SCALE, strict=True))
    if is_sd3 or folder.name == Path(DEFAULT_VAE).name:
        return Part("codec", "VAE of Stable Diffusion 3.5", LICENCES["stabilityai-ai-community"])
    return Part("codec", folder.name, unknown_licence())


def encoder_part(config: Config) -> Part:
    """Return the encoder that a run's conditions are from, as a part."""
    name = "uni2" if config.data.ssl_prefix == SSL_PREFIX else config.data.ssl_prefix
    title, licence = ENCODERS.get(name, (name, unknown_licence()))
    return Part("encoder", title, licence)


def _base_weights(config: Config, seen: set[Path]) -> Iterator[Part]:
    """Yield the weights that a run began with; for those of another run, what that one was made with."""
    for source in dict.fromkeys((config.load_from, config.adapted, config.resume_from)):  # of a student, its teacher
        if source in (None, "auto"):
            continue
        path = network_folder(source).absolute()
        if path in NETWORKS.values():
            yield Part("base weights", f"{path.name} of PixCell", LICENCES["apache-2.0"])
            continue
        folder = next((place for place in (path, *path.parents) if (place / CONFIG_FILE).is_file()), None)
        if folder is None:
            yield _foreign_weights(path)
        elif folder.resolve() not in seen:
            seen.add(folder.resolve())
            try:
                before = read_config(folder / CONFIG_FILE, OPENED)
            except InputError:
                before = None
            if not isinstance(before, Config):
                yield _foreign_weights(path)
                continue
            yield from _base_weights(before, seen)
            yield encoder_part(before)


def _foreign_weights(path: Path) -> Part:
    """Return weights that no run here has made, as a part: the released ones are known by their names."""
    page = next((RELEASED[part] for part in reversed(path.parts) if part in RELEASED), "")
    name = page.removeprefix(f"{HUB}/") if page else path.name
    return Part("base weights", name, unknown_licence(page))
