"""Released weights land whole or not at all; against a hub of our own, with tiny files, that speaks what is asked of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import command, in_process

from diffusion import hub as released
from diffusion.hub import MODELS, Unreachable
from tools.download_models import main

TOOL = "tools/download_models.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
VAE, UNI2 = "stabilityai/stable-diffusion-3.5-large", "MahmoodLab/UNI2-h"
GATED = (VAE, UNI2)
OPEN, SAMPLES = "StonyBrook-CVLab/PixCell-256-Cell-ControlNet", "StonyBrook-CVLab/PixCell-sample-data"
SAMPLE_FILES = (
    "patches/metadata/patch_names_all.hdf5",
    "features/tcga_diagnostic/brca/single_1024/slide/1_2_uni.npy",
    "patches/tcga_diagnostic/brca/single_1024/slide/1_2.jpeg",
)
ORIGINAL = "StonyBrook-CVLab/PixCell-original-weights"


def content(text: str) -> bytes:
    """A few kilobytes that tell one file from another."""
    return f"{text}\n".encode() * 200


def pixcell(size: int) -> dict[str, bytes]:
    """A pipeline folder: four files to take, and code, a pickle and texts to leave."""
    repository = f"StonyBrook-CVLab/PixCell-{size}"
    wanted = ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", WEIGHTS)
    unwanted = (
        "README.md",
        ".gitattributes",
        "pipeline.py",
        "transformer/pixcell_transformer_2d.py",
        "transformer/model.bin",
    )
    return {name: content(f"{repository} {name}") for name in (*wanted, *unwanted)}


def repositories() -> dict[str, dict[str, bytes]]:
    names = {
        ORIGINAL: ("pixcell_256.ckpt", "pixcell_1024.ckpt", "README.md"),
        VAE: (
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "model_index.json",
            "transformer/big.safetensors",
        ),
        OPEN: ("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "controlnet/big.safetensors"),
        UNI2: ("pytorch_model.bin", "config.json", "uni2.py"),
        SAMPLES: (*SAMPLE_FILES, "README.md", "loader.py"),
    }
    return {
        "StonyBrook-CVLab/PixCell-256": pixcell(256),
        "StonyBrook-CVLab/PixCell-1024": pixcell(1024),
        **{
            repository: {name: content(f"{repository} {name}") for name in files} for repository, files in names.items()
        },
    }


def landed(*names: str) -> dict[str, bytes]:
    """What the models of these names leave below ROOT: every file that is to be there, by path."""
    of_pixcell = {
        size: {n: b for n, b in pixcell(size).items() if n.endswith((".json", ".safetensors"))} for size in (256, 1024)
    }
    served = repositories()
    places = {
        **{f"pixcell-{size}": {f"pixcell-{size}/{n}": b for n, b in of_pixcell[size].items()} for size in of_pixcell},
        "pixcell-256-ckpt": {"pixcell_256.ckpt": served[ORIGINAL]["pixcell_256.ckpt"]},
        "pixcell-1024-ckpt": {"pixcell_1024.ckpt": served[ORIGINAL]["pixcell_1024.ckpt"]},
        "vae": {f"sd-3.5-vae/{name[4:]}": data for name, data in served[VAE].items() if name.startswith("vae/")},
        "vae-open": {f"sd-3.5-vae/{name[4:]}": data for name, data in served[OPEN].items() if name.startswith("vae/")},
        "uni2": {"uni2/pytorch_model.bin": served[UNI2]["pytorch_model.bin"]},
        "sample-data": {f"../sample-data/{name}": served[SAMPLES][name] for name in SAMPLE_FILES},
    }
    return {
        os.path.normpath(f"pretrained_models/{path}"): data for name in names for path, data in places[name].items()
    }


class Hub(ThreadingHTTPServer):
    """The hub's answers to model_info and hf_hub_download."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories()
        self.gets: list[str] = []  # paths of files that were transferred, or begun
        self.breaks: set[str] = set()  # files whose first transfer ends half way, whose later ones are refused
        self.short: set[str] = set()  # files of which half comes, as if that were all
        self.spoiled: set[str] = set()  # files that come with other bytes than the listing says

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if listing := re.fullmatch("/api/(models|datasets)/([^/]+/[^/]+)", path):
            is_data = listing[2] == SAMPLES
            self.send_listing(listing[2]) if is_data == (listing[1] == "datasets") else self.reply(404)
        elif file := re.fullmatch("(?:/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.send_file(*file.groups())
        else:
            self.reply(404)

    def send_listing(self, repository: str) -> None:
        if repository not in self.server.repositories:
            return self.reply(404, {"X-Error-Code": "RepoNotFound"})
        files = [listed(name, data) for name, data in self.server.repositories[repository].items()]
        counts = {"private": False, "downloads": 0, "likes": 0, "tags": []}  # huggingface_hub 0.2x reads them
        body = json.dumps({"id": repository, "sha": COMMIT, "siblings": files, **counts}).encode()
        self.reply(200, {"Content-Type": "application/json"}, body)

    def send_file(self, repository: str, name: str) -> None:
        token = self.headers.get("Authorization")
        if repository in GATED and token != "Bearer secret":
            return self.reply(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        data = self.server.repositories[repository][name]
        again = name in self.server.breaks and name in self.server.gets
        if self.command == "GET":
            self.server.gets.append(name)
            if again:
                return self.reply(503)
        sent = data[::-1] if name in self.server.spoiled else data
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        about = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        half = name in self.server.breaks | self.server.short and self.command == "GET"
        sent = sent[start : len(sent) // 2] if half else sent[start:]
        said = len(sent) if name in self.server.short else len(data) - start
        self.reply(206 if start else 200, about, sent, length=said)

    def reply(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def listed(name: str, data: bytes) -> dict:
    """A file as the hub lists it: large ones with their SHA-256."""
    entry = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
    if not name.endswith((".safetensors", ".ckpt", ".bin")):
        return entry
    return {**entry, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


def download(endpoint: str, root: Path, *names: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the tool without anything that the developer has set for the real hub."""
    clean = {
        "HF_HOME": str(root.parent / "hf"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
    }
    no_token = {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "", "HF_TOKEN_PATH": str(root.parent / "none")}
    variables = {**clean, **no_token, "HF_ENDPOINT": endpoint, **environment}
    return command(TOOL, "--root", root, *names, interpreter=True, **variables)  # which its library reads when imported


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def errors(result: subprocess.CompletedProcess) -> dict[str, str]:
    """The one line of each model that failed, by its name; the last line of stderr sums up."""
    *lines, summary = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    found = {line.split(": ")[1]: line for line in lines}
    assert len(found) == len(lines) and summary.endswith(f"not downloaded: {', '.join(found)}"), result.stderr
    return found


def test_everything_lands_once(hub, root):
    wanted = [name for name in MODELS if name != "vae-open"]  # whose place is that of vae
    done = download(hub.url, root, *wanted, HF_TOKEN="secret")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert files_in(root) == landed(*wanted)
    assert not list(root.rglob(".*")) and "secret" not in done.stdout
    cached = files_in(root.parent / "hf") if (root.parent / "hf").exists() else {}
    assert not set(cached.values()) & set(landed(*wanted).values())

    hub.gets.clear()
    again = download(hub.url, root, *MODELS, HF_TOKEN="secret")
    assert again.returncode == 0 and again.stdout.count("there already: ") == len(MODELS)
    assert not hub.gets


def test_a_vae_without_a_gate_and_sample_data_need_no_token(hub, root):
    """The VAE's second source is left alone where the first has filled its place within the same call."""
    done = download(hub.url, root, "vae-open", "sample-data")
    assert done.returncode == 0 and files_in(root) == landed("vae-open", "sample-data"), done.stderr
    both = download(hub.url, root.with_name("other"), "vae", "vae-open", HF_TOKEN="secret")
    assert both.returncode == 0 and files_in(root.with_name("other")) == landed("vae"), both.stderr


def test_gated_models_wait_for_a_token(hub, root):
    """The rest lands without it; with it only what lacked is fetched. No name means four models."""
    for token, status in (("", "401, no token is set"), ("not-the-one", "403, with the token that is set")):
        done = download(hub.url, root, HF_TOKEN=token)
        assert done.returncode == 1
        lines = errors(done)
        assert set(lines) == {"vae", "uni2"}
        for name, repository in (("vae", VAE), ("uni2", UNI2)):
            page = f"https://huggingface.co/{repository}"
            assert f"({status}); ask for access at {page}, then set HF_TOKEN" in lines[name]
            assert str(root / "pretrained_models" / MODELS[name].target) in lines[name]
        assert "not-the-one" not in done.stdout + done.stderr
        assert files_in(root) == landed("pixcell-256", "pixcell-1024")
    hub.gets.clear()
    done = download(hub.url, root, HF_TOKEN="secret")
    assert done.returncode == 0, done.stderr
    assert files_in(root) == landed("pixcell-256", "pixcell-1024", "vae", "uni2")
    assert len(hub.gets) == len(landed("vae", "uni2"))


def test_a_broken_transfer_goes_on(hub, root):
    hub.breaks, hub.short = {WEIGHTS}, {"pixcell_256.ckpt"}
    done = download(hub.url, root, "pixcell-256", "pixcell-256-ckpt", "pixcell-1024-ckpt")
    lines = errors(done)
    assert done.returncode == 1 and set(lines) == {"pixcell-256", "pixcell-256-ckpt"}, done.stderr
    # a huggingface_hub before 1.0 does not try again by itself
    assert re.search("the hub answered 503|the transfer broke off", lines["pixcell-256"])
    assert "the transfer broke off (Consistency check failed" in lines["pixcell-256-ckpt"]
    visible = {path: data for path, data in files_in(root).items() if "/.download/" not in path}
    assert visible == landed("pixcell-1024-ckpt")

    hub.breaks, hub.short = set(), set()
    hub.gets.clear()
    done = download(hub.url, root, "pixcell-256", "pixcell-256-ckpt")
    assert done.returncode == 0, done.stderr
    assert sorted(hub.gets) == ["pixcell_256.ckpt", WEIGHTS]  # the small files of the folder were whole
    assert files_in(root) == landed("pixcell-256", "pixcell-256-ckpt", "pixcell-1024-ckpt")
    assert not list(root.rglob(".*"))


def test_other_bytes_than_listed_are_refused(hub, root):
    hub.spoiled = {"pixcell_256.ckpt"}
    done = download(hub.url, root, "pixcell-256-ckpt")
    expected = hashlib.sha256(landed("pixcell-256-ckpt")["pretrained_models/pixcell_256.ckpt"]).hexdigest()
    assert done.returncode == 1 and f"expected {expected}; run again" in errors(done)["pixcell-256-ckpt"]
    assert not files_in(root)


def test_what_the_hub_has_not(hub, root):
    del hub.repositories["StonyBrook-CVLab/PixCell-256"]
    del hub.repositories[ORIGINAL]["pixcell_256.ckpt"]
    done = download(hub.url, root, "pixcell-256", "pixcell-256-ckpt", "pixcell-1024-ckpt")
    lines = errors(done)
    assert done.returncode == 1 and set(lines) == {"pixcell-256", "pixcell-256-ckpt"}
    assert "not found (404): https://huggingface.co/StonyBrook-CVLab/PixCell-256;" in lines["pixcell-256"]
    assert f"https://huggingface.co/{ORIGINAL} has no pixcell_256.ckpt among its 2 files" in lines["pixcell-256-ckpt"]
    assert files_in(root) == landed("pixcell-1024-ckpt")


@pytest.mark.parametrize(("offline", "cause"), [("0", "cannot reach the hub at"), ("1", "HF_HUB_OFFLINE")])
def test_no_connection(root, offline, cause):
    """It is told at once, with what to do by hand, for every model."""
    with socket.socket() as taken:  # bound and not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        started = time.monotonic()
        done = download(f"http://127.0.0.1:{taken.getsockname()[1]}", root, HF_HUB_OFFLINE=offline)
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    lines = errors(done)
    assert list(lines) == ["pixcell-256", "pixcell-1024", "vae", "uni2"]
    for name, line in lines.items():
        model = MODELS[name]
        assert cause in line and f"by hand: open https://huggingface.co/{model.repository}/tree/main" in line
        assert str(root / "pretrained_models" / model.target) in line
    assert not files_in(root)


def test_a_hub_out_of_reach_is_asked_once(root, monkeypatch):
    """Where packets are dropped each try takes its time; the other models are reported all the same."""
    asked = []

    def fetch(model, folder, report):
        asked.append(model.name)
        raise Unreachable("no answer")

    monkeypatch.setattr(released, "fetch", fetch)
    for name in ("quieten", "check_token"):  # they change and read what this process shares
        monkeypatch.setattr(released, name, lambda: None)
    done = in_process(main, "--root", root, "vae", "uni2")
    assert done.returncode == 1 and list(errors(done)) == ["vae", "uni2"]
    assert asked == ["vae"]


def test_a_full_disk_ends_the_run(root, monkeypatch):
    """It is the system's own error, no broken transfer that might go better with the next model."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    file = SimpleNamespace(rfilename="pytorch_model.bin", size=1, lfs=None)
    monkeypatch.setattr(released, "list_files", lambda model: (COMMIT, [file]))
    monkeypatch.setattr(released, "quieten", lambda: None)
    done = in_process(main, "--root", root, "uni2", "vae")
    assert done.returncode == 2 and "No space left on device" in done.stderr and done.stderr.count("\n") == 1
    assert not files_in(root)


def test_what_stands_in_the_way_is_left_alone(hub, root):
    """A folder half filled by hand is neither taken for the model nor overwritten."""
    half = root / "pretrained_models/sd-3.5-vae/config.json"
    half.parent.mkdir(parents=True)
    half.write_text("mine")
    done = download(hub.url, root, "vae", HF_TOKEN="secret")
    assert done.returncode == 1 and f"{half.parent} is there and is not a folder with" in errors(done)["vae"]
    assert files_in(root) == {"pretrained_models/sd-3.5-vae/config.json": b"mine"} and not hub.gets
    half.unlink()
    assert download(hub.url, root, "vae", HF_TOKEN="secret").returncode == 0
    assert files_in(root) == landed("vae")


def test_one_at_a_time(hub, root):
    from diffusion.utils.locks import file_lock

    with file_lock(root / "pretrained_models/.download.lock"):
        done = download(hub.url, root, "pixcell-256")
    assert done.returncode == 2 and "another process is at work here" in done.stderr and not hub.gets


def test_a_token_that_cannot_be_one_is_not_shown(hub, root):
    done = download(hub.url, root, "uni2", HF_TOKEN="hf_sécret")
    assert done.returncode == 2 and done.stderr.startswith("error: the token in HF_TOKEN holds characters")
    assert done.stderr.count("\n") == 1 and "cret" not in done.stderr


def test_unknown_names(root):
    done = in_process(main, "--root", root, "pixcell-256", "pixcell-512")
    assert done.returncode == 2 and not done.stdout and not root.exists()
    assert done.stderr.startswith(f"error: no model 'pixcell-512', expected one of {', '.join(MODELS)}\n")
    assert done.stderr.count("\n") == 1


def test_from_python(hub, root, monkeypatch, capsys):
    from diffusion.cli.commands.download import download as fetch_models

    told = []
    monkeypatch.setattr(released, "fetch", lambda model, folder, report: told.append((model.name, folder)))
    for name in ("quieten", "check_token"):
        monkeypatch.setattr(released, name, lambda: None)
    assert fetch_models(["vae", "vae"], root=root) == 0 and told == [("vae", root / "pretrained_models")]
    assert fetch_models(list_=True, root=root) == 0 and "UNI2-h" in capsys.readouterr().out


def test_the_list_says_what_is_there(root):
    for path, data in landed("vae", "pixcell-256-ckpt").items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    done = in_process(main, "--root", root, "--list")
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert list(rows) == list(MODELS)
    there = {name for name, row in rows.items() if not row.endswith("not there")}
    assert there == {"vae", "vae-open", "pixcell-256-ckpt"}  # two sources of one place
    assert {name for name, row in rows.items() if "on request" in row} == {"vae", "uni2"}
    assert "CC-BY-NC-ND 4.0" in rows["uni2"] and f"https://huggingface.co/{UNI2} " in rows["uni2"]


def test_import_is_light():
    heavy = "{'torch', 'huggingface_hub', 'diffusers'}"
    code = f"import sys; from diffusion import hub; sys.exit(bool({heavy} & set(sys.modules)))"
    done = command("-c", code, interpreter=True)
    assert done.returncode == 0, done.stderr
