"""A run as a folder of the hub: diffusers' layout, the settings as data, and a model card."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.components import resolve_vae
from diffusion.config.files import dump_config
from diffusion.config.settings import Config
from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder, load_vae
from diffusion.formats import CONDITIONS_DIR, CONFIG_FILE, DEFAULT_VAE, PIPELINE_INDEX
from diffusion.hub import HUB, check_token, describe_cause, exception_chain, quieten
from diffusion.model.pixart import PixArt
from diffusion.pipeline import PixCellPipeline, PixCellTransformer2DModel
from diffusion.publishing.model_card import CardContent, write_card
from diffusion.utils.errors import SYSTEM_ERRORS, InputError
from diffusion.utils.files import atomic_write

if TYPE_CHECKING:
    from diffusion.workdir import Run

CARD = "README.md"


def write_hub_folder(
    folder: Path,
    run: Run,
    root: Path,
    content: CardContent,
    dtype: torch.dtype = torch.float32,
    conditions: Sequence[Path] = (),
) -> None:
    """Write what `PixCellPipeline.from_pretrained` opens, README.md, and a run's config.py; all of it or nothing.

    content.config: the run's, with the codec that is meant; without content.has_codec the codec is left out, and whoever opens
    the folder names it. dtype: of the network's weights. conditions: files of embeddings that go along.
    Raises InputError when the folder is there, and for a network that diffusers' layout cannot hold.
    """
    config = content.config
    if folder.exists():
        raise InputError(f"{folder} is already there; name a new folder (--out)")
    vae = load_vae(codec_folder(resolve_vae(config.vae_pretrained, root)), torch.float32)
    network = run.model if dtype == torch.float32 else round_network(run.model, dtype)
    transformer = PixCellTransformer2DModel(network, config.prediction_type)
    with atomic_write(folder) as temporary:
        PixCellPipeline(transformer, vae).save_pretrained(temporary)
        if not content.has_codec:
            shutil.rmtree(temporary / "vae")
            index = json.loads((temporary / PIPELINE_INDEX).read_text())
            (temporary / PIPELINE_INDEX).write_text(json.dumps({**index, "vae": [None, None]}, indent=2) + "\n")
        if content.has_settings:
            dump_config(without_paths(config), temporary / CONFIG_FILE)
        for path in conditions:
            (temporary / CONDITIONS_DIR).mkdir(exist_ok=True)
            shutil.copyfile(path, temporary / CONDITIONS_DIR / path.name)
        (temporary / CARD).write_text(write_card(content), encoding="utf-8")


def round_network(network: PixArt, dtype: torch.dtype) -> PixArt:
    """Return a copy of a network in half precision. Raises InputError for weights that it cannot hold.

    Positions that are the grid of the network's size stay so: as that grid rounded once.
    """
    side = network.config.base_size
    grid = network.position_grid(side, side)
    has_grid = torch.equal(network.pos_embed.cpu(), grid)
    rounded = copy.deepcopy(network).to(dtype)
    if has_grid:
        rounded.pos_embed = grid.to(dtype)
    for name, tensor in rounded.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold; publish fp32 or bf16"
            )
    return rounded


def without_paths(config: Config) -> Config:
    """Return a config that says nothing of the folders of the machine that it is from."""

    def last(path: str | None) -> str | None:
        return None if path is None else Path(path).name

    vae, name = config.vae_pretrained, Path(config.vae_pretrained).name
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    plain = Config(**{**values, "task": Config.task})  # of a student, too, whose weights say what it is
    return dataclasses.replace(
        plain,
        root=None,
        work_dir=None,
        load_from=last(config.load_from),
        resume_from=last(config.resume_from),
        vae_pretrained=vae if vae in EMBEDDED_CODECS else DEFAULT_VAE if name == Path(DEFAULT_VAE).name else name,
        data=dataclasses.replace(
            config.data,
            root=None,
            features_dir=last(config.data.features_dir),
            patch_names_file=Path(config.data.patch_names_file).name,
        ),
        validation=dataclasses.replace(config.validation, patch_names_file=last(config.validation.patch_names_file)),
        evaluation=dataclasses.replace(config.evaluation, encoder=config.evaluation.encoder.partition("=")[0]),
    )


def check_repository(name: str) -> None:
    """Raise InputError for what is no name of a repository."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise InputError(f"{name!r} is no repository of the hub: expected OWNER/NAME")


def upload_folder(folder: Path, repository: str, public: bool) -> str:
    """Upload a folder to a repository of the hub, which is made if it is not there; return its page.

    The token is huggingface_hub's own: HF_TOKEN, or a stored login. Raises InputError when there is none, when the hub
    refuses, and for a public repository where `public` is not meant.
    """
    from huggingface_hub import HfApi, get_token

    quieten()
    check_token()
    if not get_token():
        raise InputError(
            "no token of the hub, which an upload takes; set HF_TOKEN to one that may write, or run hf auth login"
        )
    try:
        api = HfApi()
        api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise InputError(f"{repository} is public, for anyone to see; say --public if you mean it")
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), repo_type="model", commit_message="Weights of pixcell push"
        )
    except InputError:
        raise
    except Exception as error:  # of several HTTP libraries, whose messages may quote headers and with them the token
        if getattr(error, "errno", None) in SYSTEM_ERRORS:
            raise
        causes = list(exception_chain(error))
        codes = [code for each in causes if (code := getattr(getattr(each, "response", None), "status_code", None))]
        reason = f"the hub answered {codes[0]}" if codes else describe_cause(causes)
        advice = "see that the token may write to it" if codes and codes[0] in (401, 403) else "run again"
        raise InputError(f"{repository} was not uploaded ({reason}); {advice}") from None
    return f"{HUB}/{repository}"
