"""Released weights: which there are, and how they get from huggingface.co into ROOT/pretrained_models, whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from diffusion.utils.content import sha256_file
from diffusion.utils.errors import SYSTEM_ERRORS, InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.locks import file_lock

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

HUB = "https://huggingface.co"  # of the pages to open by hand; HF_ENDPOINT moves the transfers only
TIMEOUT = 10.0  # seconds to wait for the hub's first answer
# modules whose errors mean that the hub was not reached or not understood; which of them depends on huggingface_hub's version
TRANSPORT_MODULES = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "requests", "json")


@dataclass(frozen=True)
class Model:
    """One entry of the table: what to take of which repository, and where it goes below pretrained_models/."""

    name: str
    repository: str
    files: tuple[str, ...]  # names or patterns; never code, and pickles only where a repository has nothing else
    target: str  # a file if `files` is one name, else a folder
    licence: str
    gated: bool = False
    inside: str = ""  # leading part of the files' names that the target folder does without
    kind: Literal["model", "dataset"] = "model"  # of repository; data sets go beside pretrained_models/

    @property
    def is_file(self) -> bool:
        return len(self.files) == 1

    @property
    def page(self) -> str:
        return f"{HUB}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"

    def place(self, folder: Path) -> Path:
        """Return where it goes; folder: ROOT/pretrained_models."""
        return (folder if self.kind == "model" else folder.parent) / self.target


DIFFUSERS = ("*.json", "*.safetensors")
ORIGINAL = "StonyBrook-CVLab/PixCell-original-weights"
ON_PAGE = "see its page"
TABLE = (
    Model("pixcell-256", "StonyBrook-CVLab/PixCell-256", DIFFUSERS, "pixcell-256", ON_PAGE),
    Model("pixcell-1024", "StonyBrook-CVLab/PixCell-1024", DIFFUSERS, "pixcell-1024", ON_PAGE),
    Model("pixcell-256-ckpt", ORIGINAL, ("pixcell_256.ckpt",), "pixcell_256.ckpt", ON_PAGE),
    Model("pixcell-1024-ckpt", ORIGINAL, ("pixcell_1024.ckpt",), "pixcell_1024.ckpt", ON_PAGE),
    Model(
        "vae",
        "stabilityai/stable-diffusion-3.5-large",
        ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        "sd-3.5-vae",
        "Stability AI Community Licence",
        gated=True,
        inside="vae/",
    ),
    Model(
        "vae-open",  # the same weights, in a folder that asks for no access
        "StonyBrook-CVLab/PixCell-256-Cell-ControlNet",
        ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        "sd-3.5-vae",
        "Stability AI Community Licence",
        inside="vae/",
    ),
    Model(
        "uni2",
        "MahmoodLab/UNI2-h",
        ("pytorch_model.bin",),
        "uni2/pytorch_model.bin",
        "CC-BY-NC-ND 4.0",
        gated=True,
    ),
    Model(  # 32 patches of 4 slides with latents and embeddings, a ROOT of their own
        "sample-data",
        "StonyBrook-CVLab/PixCell-sample-data",
        ("*.hdf5", "*.npy"),
        "sample-data",
        "CC-BY 4.0",
        kind="dataset",
    ),
)
OPTIONAL = ("*.jpeg", "*.jpg", "*.png")  # images of a data set, taken where it has any
MODELS = {model.name: model for model in TABLE}
DEFAULT = ("pixcell-256", "pixcell-1024", "vae", "uni2")


class Unreachable(InputError):
    """The hub itself cannot be reached, so that no other model can be fetched either."""


def is_present(model: Model, target: Path) -> bool:
    """Tell whether the target is there, downloaded or put there by hand."""
    if model.is_file:
        return target.is_file()
    return all(any(target.rglob(PurePosixPath(pattern).name)) for pattern in model.files)


def fetch_all(
    models: Sequence[Model], folder: Path, report: Callable[[str], None]
) -> Iterator[tuple[Model, InputError]]:
    """Fetch each model into a folder, and yield each that fails, with the cause; the rest goes on.

    report: is told what is being fetched, and what is there. Raises InputError when another process is downloading into the
    same folder, or when the token cannot be one.
    """
    quieten()
    check_token()
    unreachable: Unreachable | None = None
    with file_lock(folder / ".download.lock"):
        for model in models:
            try:
                if unreachable:  # waiting again for each model would take minutes where packets are dropped
                    raise unreachable
                fetch(model, folder, report)
            except InputError as error:
                yield model, error
                if isinstance(error, Unreachable):
                    unreachable = error
        with contextlib.suppress(OSError):  # not empty while a download is unfinished
            (folder / ".download").rmdir()
    with contextlib.suppress(OSError):  # nor where anything is there
        folder.rmdir()


def quieten() -> None:
    """Silence huggingface_hub's warnings, and where no terminal is its progress bars."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def check_token() -> None:
    """Raise InputError for a token that no HTTP header can carry, without showing it."""
    from huggingface_hub import get_token

    token = get_token() or ""
    if not token.isascii() or not token.isprintable():
        raise InputError(
            "the token in HF_TOKEN holds characters that no token has; copy it anew from the hub's settings"
        )


def manual_steps(model: Model, folder: Path) -> str:
    """Return how to download a model without this program: the page, the files, their place."""
    target = model.place(folder)
    if model.is_file:
        return f"or by hand: open {model.page}/tree/main, take {model.files[0]}, save it as {target}"
    if model.kind == "dataset":
        return f"or by hand: open {model.page}/tree/main, take its folders patches and features, put them in {target}"
    if model.files == DIFFUSERS:
        return f"or by hand: open {model.page}/tree/main, take its .json and .safetensors files, put them in {target}, in the same folders"
    names = " and ".join(PurePosixPath(name).name for name in model.files)
    return f"or by hand: open {model.page}/tree/main/{model.inside.rstrip('/')}, take {names}, put them in {target}"


def fetch(model: Model, folder: Path, report: Callable[[str], None]) -> None:
    """Download one model into a hidden folder, then move it to its place.

    Raises InputError, Unreachable or MissingError with the cause; whole files of a broken download stay for the next run.
    """
    target = model.place(folder)
    if is_present(model, target):
        report(f"there already: {target}")
        return
    check_place(model, target)
    revision, files = list_files(model)
    size = sum(file.size or 0 for file in files) / 1e9
    report(f"downloading: {model.name}, {len(files)} files, {size:.2f} GB, from {model.page}")
    scratch = folder / ".download" / model.name
    try:
        for file in files:
            download(model, revision, file, scratch)
    finally:
        if not holds_data(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
    publish(model, scratch, [file.rfilename for file in files], target)
    shutil.rmtree(scratch)
    report(f"downloaded: {target} (licence: {model.licence})")


def check_place(model: Model, target: Path) -> None:
    """Raise InputError when something else is where the model is to go."""
    empty_folder = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if os.path.lexists(target) and (model.is_file or not empty_folder):
        names = " and ".join(PurePosixPath(name).name for name in model.files)
        raise InputError(
            f"{target} is there and is not {names if model.is_file else f'a folder with {names}'}; move it away"
        )


def list_files(model: Model) -> tuple[str | None, list[RepoSibling]]:
    """Return the repository's commit, and the wanted ones of its files.

    Raises Unreachable, InputError when the hub refuses, MissingError when the repository has no such file.
    """
    from huggingface_hub import HfApi

    with translate_errors(model, first=True):
        info: Any = HfApi().repo_info(model.repository, repo_type=model.kind, files_metadata=True, timeout=TIMEOUT)
    files = info.siblings or []
    for pattern in model.files:
        if not any(fnmatch.fnmatchcase(file.rfilename, pattern) for file in files):
            raise MissingError(f"{model.page} has no {pattern} among its {len(files)} files")
    wanted = (*model.files, *(OPTIONAL if model.kind == "dataset" else ()))
    return info.sha, [f for f in files if any(fnmatch.fnmatchcase(f.rfilename, pattern) for pattern in wanted)]


def download(model: Model, revision: str | None, file: RepoSibling, scratch: Path) -> None:
    """Download one file of a commit to below `scratch`; a complete one that is there is not transferred again.

    Raises InputError when the hub refuses, the transfer breaks off, or the content is not what the hub says it is.
    """
    from huggingface_hub import hf_hub_download

    with translate_errors(model):
        hf_hub_download(model.repository, file.rfilename, repo_type=model.kind, revision=revision, local_dir=scratch)
    path = scratch / file.rfilename
    if file.lfs and (found := sha256_file(path)) != file.lfs.sha256:
        path.unlink()
        raise InputError(f"{file.rfilename} came with SHA-256 {found}, expected {file.lfs.sha256}; run again")


def holds_data(scratch: Path) -> bool:
    """Tell whether the hidden folder is worth keeping for the next run: huggingface_hub's notes alone are not."""
    files = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
    return any(path.suffix == ".incomplete" or not path.parts[0].startswith(".") for path in files)


def publish(model: Model, scratch: Path, names: list[str], target: Path) -> None:
    """Move the wanted files, and nothing else that lies in `scratch`, to the target in one step."""
    if model.is_file:
        with atomic_write(target) as part:
            shutil.move(scratch / names[0], part)
        return
    complete = scratch.with_name(f"{scratch.name}.whole")
    shutil.rmtree(complete, ignore_errors=True)
    for name in names:
        place = complete / name.removeprefix(model.inside)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, place)
    if target.is_dir():
        target.rmdir()  # empty, by `check_place`; not every system replaces a folder
    os.replace(complete, target)


@contextlib.contextmanager
def translate_errors(model: Model, first: bool = False) -> Iterator[None]:
    """Translate what huggingface_hub raises into one sentence. Errors of the system (a full disk), and bugs, pass as they are.

    first: the hub has not answered yet, so that silence means that it is out of reach.
    Raises InputError, or Unreachable.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import OfflineModeIsEnabled

    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in SYSTEM_ERRORS:
            raise
        causes = list(exception_chain(error))
        codes = [code for cause in causes if (code := getattr(getattr(cause, "response", None), "status_code", None))]
        if codes:
            raise InputError(refusal_message(model, codes[0])) from error
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
            raise Unreachable(
                "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing may be fetched; unset it and run again"
            ) from error
        if not isinstance(error, (OSError, RuntimeError)) and root_module(error) not in TRANSPORT_MODULES:
            raise
        if first:
            reason = f"cannot reach the hub at {constants.ENDPOINT} ({describe_cause(causes)}); run again with network"
            raise Unreachable(reason) from error
        raise InputError(f"the transfer broke off ({describe_cause(causes)}); run again and it goes on") from error


def refusal_message(model: Model, status: int) -> str:
    """Return what an HTTP status of the hub means for a model."""
    from huggingface_hub import get_token

    token = "with the token that is set" if get_token() else "no token is set"
    if status in (401, 403) and model.gated:
        return f"no access ({status}, {token}); ask for access at {model.page}, then set HF_TOKEN to a token of your account"
    if status in (401, 403):
        return f"no access to {model.page} ({status}, {token}); the token is not valid, or the page is gone or closed"
    if status == 404:
        return f"not found (404): {model.page}"
    return f"the hub answered {status}; run again later"


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def describe_cause(causes: list[BaseException]) -> str:
    """Return the innermost reason, in a few words.

    Messages of the HTTP libraries are left out: some quote the headers, and with them the token.
    """
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    last = causes[-1]
    if root_module(last) == "builtins" and str(last):
        return str(last).splitlines()[0]
    return type(last).__name__


def root_module(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]
