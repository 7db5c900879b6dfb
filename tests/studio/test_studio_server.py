"""The studio's server: what it serves, what it never does, and that its results are those of the commands it shows, to the bit."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import torch
from conftest import REPOSITORY, read_pixels, texture
from PIL import Image
from runs import forget_processes, save_run
from scoring_data import PaddedColour
from slide_files import write_slide

pytest.importorskip("starlette")

import uvicorn

from diffusion.cli.commands.studio import LOCK, studio
from diffusion.cli.main import call
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import View
from diffusion.formats import LAST_WEIGHTS
from diffusion.generation.image_files import read_note
from diffusion.generation.solver import Solver
from diffusion.model.controlnet import ControlNet, save_controlnet
from diffusion.model.flow import EmbeddingFlow, FlowConfig, save_flow
from diffusion.model.lora import TARGETS, LoraSettings, add_lora, lora_tensors, save_lora
from diffusion.studio.access import choose_token
from diffusion.studio.history import History
from diffusion.studio.jobs import Job, JobQueue
from diffusion.studio.pictures import PictureShelf
from diffusion.studio.requests import JobRequest, format_command
from diffusion.studio.server import Studio, bind, serve
from diffusion.studio.tiles import open_zoom
from diffusion.studio.workshop import Model, Workshop
from diffusion.utils.errors import InputError
from diffusion.utils.locks import file_lock
from diffusion.workdir import open_run

WIDTH = 4
PATIENCE = 60  # seconds


@pytest.fixture(scope="module", autouse=True)
def embedder() -> Iterator[None]:
    colours = PatchEmbedder(PaddedColour(), "colours", width=WIDTH, view=View(None, mean=(0, 0, 0), std=(1, 1, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchEmbedder, "load", lambda *_, **__: colours)
        yield
    forget_processes()


class Client:
    """A browser's requests, as they are: nothing of a path is tidied."""

    def __init__(self, port: int, name: str = "one", host: str = "127.0.0.1"):
        self.port, self.name, self.host = port, name, host

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        sent = {"Host": f"{self.host}:{self.port}", "X-Pixcell-Client": self.name, **headers}
        if body is not None:
            sent.setdefault("Content-Length", str(len(body)))
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def get(self, path: str) -> Any:
        status, content, _ = self.ask("GET", path)
        assert status == 200, content
        return json.loads(content)

    def start(self, **request: Any) -> str:
        status, content, _ = self.ask("POST", "/api/jobs", json.dumps(request).encode())
        assert status == 200, content
        return json.loads(content)["number"]

    def finish(self, number: str) -> dict[str, Any]:
        for _ in range(20 * PATIENCE):
            state = self.get(f"/api/jobs/{number}")
            if state["state"] not in ("queued", "running"):
                return state
            time.sleep(0.05)
        raise AssertionError(f"not finished: {state}")

    def do(self, **request: Any) -> dict[str, Any]:
        state = self.finish(self.start(**request))
        assert state["state"] == "done", state
        return state["result"]


class Server:
    """A studio that runs in a thread."""

    def __init__(self, folder: Path, token: str | None = None, steered: bool = False):
        self.folder = folder
        run = save_run(folder / "run", folder, WIDTH, 256, prediction_type="epsilon")
        (folder / "slides").mkdir()
        self.image = folder / "slides" / "tile.png"
        texture(512, 1).save(self.image)
        self.slide = write_slide(folder / "slides" / "slide.tif")
        torch.nn.init.ones_((flow := EmbeddingFlow(
            FlowConfig(width=WIDTH, hidden_size=8, bottleneck=8, time_size=8, sinusoids=4, depth=1)
        )).out[-1].bias)  # fmt: skip
        save_flow(flow, folder / "flow.safetensors")
        arguments: dict[str, Any] = dict(workdir=run, device="cpu")
        loras = []
        if steered:
            arguments["controlnet"] = save_random_controlnet(run, folder / "controlnet")
            loras = [str(save_random_lora(run, folder / "lora"))]
        model = Model(
            {**arguments, "solver": Solver()}, arguments, loras, [1.0] * len(loras), flow=folder / "flow.safetensors"
        )
        self.out = folder / "studio"
        shelf = PictureShelf([folder / "slides"], self.out / "uploads", 0.5)
        history = History(self.out / "history")
        self.studio = Studio(shelf, history, lambda: Workshop(model, shelf, history))
        listener = bind("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(self.studio.app(token), log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def pictures(self) -> dict[str, str]:
        return {each["name"]: each["number"] for each in Client(self.port).get("/api/state")["pictures"]}

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)


def save_random_controlnet(run: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    controlnet = ControlNet.of(open_run(run, LAST_WEIGHTS, torch.device("cpu")).model, 1, maps=("nuclei",))
    for parameter in controlnet.parameters():  # which begin as nothing
        torch.nn.init.normal_(parameter, std=0.5)
    save_controlnet(controlnet, folder)
    return folder


def save_random_lora(run: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    network = open_run(run, LAST_WEIGHTS, torch.device("cpu")).model
    add_lora(network, LoraSettings.of(2, 2.0, TARGETS), "a")
    for tensor in lora_tensors(network, "a").values():
        torch.nn.init.normal_(tensor, std=0.3)
    save_lora(network, folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("studio"))
    yield server
    server.stop()


@pytest.fixture
def client(server) -> Client:
    client = Client(server.port)
    while client.get("/api/state")["model"] is None:
        time.sleep(0.05)
    return client


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def painted(width: int, height: int, left: int, top: int, right: int, bottom: int) -> str:
    mask = np.zeros((height, width, 4), dtype=np.uint8)
    mask[..., 3] = 255
    mask[top:bottom, left:right, :3] = 255
    return png(mask)


class TestPictures:
    def test_tiles_are_those_of_the_picture_at_every_level(self, server, client):
        number = server.pictures()["tile"]
        told = client.get(f"/api/pictures/{number}")
        assert told["levels"][:2] == [[512, 512], [256, 256]] and told["factor"] == 1
        status, content, headers = client.ask("GET", f"/api/pictures/{number}/tiles/0/1/1.jpg")
        assert status == 200 and headers["content-type"] == "image/jpeg"
        tile = np.asarray(Image.open(io.BytesIO(content))).astype(int)
        assert np.abs(tile - read_pixels(server.image)[256:, 256:]).mean() < 3
        coarse = np.asarray(Image.open(io.BytesIO(client.ask("GET", f"/api/pictures/{number}/tiles/1/0/0.jpg")[1])))
        assert np.abs(coarse.astype(int) - np.asarray(Image.open(server.image).resize((256, 256), 4))).mean() < 4
        for wrong in (
            "12/0/0",
            "0/2/0",
            "99999999999999999999/0/0",
            f"{'9' * 5000}/0/0",
            "0/-1/0",
            "0/%D9%A3/0",
        ):
            assert client.ask("GET", f"/api/pictures/{number}/tiles/{wrong}.jpg")[0] in (400, 404)

    def test_a_selection_is_what_the_network_is_given(self, server, client):
        number = server.pictures()["tile"]
        status, content, _ = client.ask("GET", f"/api/pictures/{number}/part?x=100&y=30&width=256&height=200")
        assert status == 200
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), read_pixels(server.image)[30:230, 100:356])
        for wrong in (
            "x=400&y=0&width=256&height=256",
            "x=0&y=0&width=9999&height=9999",
            "x=0",
            "x=a&y=0&width=1&height=1",
            f"x={10**400}&y=0&width=256&height=256",
        ):
            assert client.ask("GET", f"/api/pictures/{number}/part?{wrong}")[0] == 400


JOBS = [
    ("tile", dict(action="sample", part=(40, 60, 256, 256), seed=4, steps=2, guidance=1.5)),
    ("tile", dict(action="vary", part=(0, 0, 300, 280), steps=4, strength=0.35,
                  look=dict(kind="place", name="slide", x=300, y=300, amount=0.4))),
    ("slide", dict(action="repair", part=(64, 32, 256, 256), steps=2, mask=painted(256, 256, 60, 50, 130, 170))),
    ("tile", dict(action="extend", part=(10, 0, 256, 256), steps=2, extend=(0, 32, 64, 0))),
    ("tile", dict(action="enlarge", part=(10, 0, 128, 96), steps=3, enlarge=2, seed=9)),
    ("slide", dict(action="stain", part=(0, 0, 256, 256), steps=2, structure="sdedit", strength=0.5)),
    ("tile", dict(action="colours", part=(0, 0, 256, 256), colours=dict(kind="place", name="slide", x=200, y=200))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "request_"), JOBS, ids=[job["action"] for _, job in JOBS])
def test_a_result_is_that_of_its_command_to_the_bit(server, client, tmp_path, monkeypatch, name, request_):
    """The picture is kept, with its settings inside and without paths, and the command line makes the same one."""
    if request_["action"] == "colours":
        pytest.importorskip("torchstain")
    numbers = server.pictures()
    request = {**request_, "picture": numbers[name]}
    for each in ("look", "colours"):
        if each in request:
            request[each] = {**request[each], "name": numbers[request[each]["name"]]}
    entry = client.do(**request)
    status, content, headers = client.ask("GET", f"/history/{entry['number']}/picture.png?download")
    assert status == 200 and "attachment" in headers["content-disposition"]
    (tmp_path / "page.png").write_bytes(content)
    note = read_note(tmp_path / "page.png")
    assert note and str(server.folder) not in json.dumps(note)
    words = shlex.split(entry["command"])
    assert words[0] == "pixcell"
    monkeypatch.chdir(server.folder)
    forget_processes()
    assert not call([*words[1:], "--out", str(tmp_path / "out")])
    [made] = (tmp_path / "out").glob("*.png")
    assert np.array_equal(read_pixels(made), read_pixels(tmp_path / "page.png"))
    for file, kind in (("before.png", "image/png"), ("thumbnail.jpg", "image/jpeg")):
        assert client.ask("GET", f"/history/{entry['number']}/{file}")[2]["content-type"] == kind
    assert client.get("/api/state")["history"][0]["number"] == entry["number"]


def test_a_result_is_put_back_into_a_copy_of_its_picture(server, client, monkeypatch):
    """The copy is the picture but for the part, keeps how the part was made, and can be edited and downloaded; the picture stays."""
    number, original = server.pictures()["tile"], read_pixels(server.image)
    request = dict(action="vary", part=(100, 30, 128, 96), steps=2, strength=0.9)
    copies, entries = [], []
    for picture in (number, None):
        entries.append(client.do(**request, picture=picture or copies[-1]["number"], seed=len(copies)))
        status, content, _ = client.ask("POST", f"/api/history/{entries[-1]['number']}/put-back")
        assert status == 200, content
        copies.append(json.loads(content))
        request["part"] = (0, 300, 256, 200)
    assert [copy["name"] for copy in copies] == ["tile_edited_1", "tile_edited_2"]
    assert copies[0]["number"] != copies[1]["number"] and copies[1].pop("part") == [0, 300, 256, 200]
    assert client.get("/api/state")["pictures"][-1] == copies[1]
    status, content, headers = client.ask("GET", f"/api/pictures/{copies[1]['number']}/download")
    assert status == 200 and "attachment" in headers["content-disposition"]
    expected = original.copy()
    parts = [read_pixels(server.out / "history" / entry["number"] / "picture.png") for entry in entries]
    expected[30:126, 100:228], expected[300:500, :256] = parts
    copy = Image.open(io.BytesIO(content))
    assert np.array_equal(np.asarray(copy), expected) and json.loads(copy.info["pixcell"])["seed"] == 1
    assert np.array_equal(read_pixels(server.image), original)
    assert client.ask("GET", f"/api/pictures/{number}/download")[0] == 404, "files of the user are not handed out"
    larger = client.do(action="extend", picture=number, part=(0, 0, 256, 256), steps=1, extend=(0, 0, 8, 0))
    status, content, _ = client.ask("POST", f"/api/history/{larger['number']}/put-back")
    assert status == 400 and b"264 x 256 pixels does not fit into 256 x 256" in content
    assert client.ask("POST", f"/api/history/{'0' * 14}-{'a' * 8}/put-back")[0] == 404
    monkeypatch.setattr(server.studio.shelf, "mpp", 0.25)  # as after a restart with another --mpp
    status, content, _ = client.ask("POST", f"/api/history/{entries[0]['number']}/put-back")
    assert status == 400 and b"read with --mpp 0.5, not --mpp 0.25" in content


def test_uploads_and_copies_are_taken_pixel_for_pixel_whatever_the_resolution_of_images(tmp_path, monkeypatch):
    texture(512, 1).save(tmp_path / "fine.png")
    shelf = PictureShelf([tmp_path / "fine.png"], tmp_path / "uploads", 0.5, 0.25)
    [fine] = shelf.names()
    assert (shelf.show(fine["number"]).width, shelf.show(fine["number"]).factor) == (256, 2)
    upload = shelf.upload((tmp_path / "fine.png").read_bytes(), "own.png")
    assert shelf.show(upload).width == 512 and shelf.resolution(upload) == {"mpp": 0.5, "image_mpp": None}
    texture(128, 2).save(tmp_path / "result.png")
    copy, place = shelf.put_into(fine["number"], (100, 60, 128, 128), tmp_path / "result.png")
    assert place == (50, 30, 128, 128)
    with shelf.read_from(fine["number"]) as whole, shelf.read_from(copy) as changed:
        expected = np.asarray(whole.read(0, 0, 256)).copy()
        expected[30:158, 50:178] = read_pixels(tmp_path / "result.png")
        assert np.array_equal(np.asarray(changed.read(0, 0, 256)), expected)
    later = PictureShelf([tmp_path / "fine.png"], tmp_path / "uploads", 0.5, 0.25)
    assert later.show(copy).width == 256, "also after a restart"
    monkeypatch.setattr("diffusion.studio.pictures.UPLOAD_PIXELS", 200 * 200)
    with pytest.raises(InputError, match="256 x 256 pixels: copies are kept of at most"):
        shelf.put_into(fine["number"], (100, 60, 128, 128), tmp_path / "result.png")


def test_masks_of_nuclei_and_adapters_count_as_in_the_command(tmp_path, monkeypatch):
    """To the bit, with half of an adapter and a ControlNet that reads what is painted; without either, another picture."""
    forget_processes()
    steered = Server(tmp_path, steered=True)
    try:
        client = Client(steered.port)
        while (told := client.get("/api/state"))["model"] is None:
            assert not told["error"], told
            time.sleep(0.05)
        assert told["model"]["loras"] == [{"name": "lora", "scale": 1.0}]
        assert told["model"]["control"] == {"painted": True, "own": False}
        request = dict(action="vary", picture=steered.pictures()["tile"], part=(0, 0, 256, 256), steps=2, guidance=1.0)
        nuclei = painted(256, 256, 30, 30, 120, 90)
        entries = [
            client.do(**request, loras=[scale], control=control, control_scale=1.0 if control else 0.0)
            for scale, control in ((0.5, nuclei), (0.5, None), (0.0, nuclei))
        ]
        pictures = []
        monkeypatch.chdir(tmp_path)
        for number, entry in enumerate(entries):
            pictures.append(read_pixels(steered.out / "history" / entry["number"] / "picture.png"))
            forget_processes()
            assert not call([*shlex.split(entry["command"])[1:], "--out", str(tmp_path / f"out_{number}")])
            assert np.array_equal(read_pixels(tmp_path / f"out_{number}/tile.png"), pictures[-1])
        assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
        for more, height in (
            (dict(action="extend", extend=(0, 40, 0, 0)), 296),
            (dict(action="enlarge", enlarge=2), 512),
        ):
            entry = client.do(**{**request, **more}, loras=[0.0], control=nuclei)
            assert entry["height"] == height, "what is painted is made as large as the result"
        state = client.finish(client.start(**request))
        assert state["state"] == "failed" and "the ControlNet has nothing to read" in state["error"]
    finally:
        steered.stop()


def test_pictures_of_one_name_are_all_shown_and_results_are_not(tmp_path):
    for name in ("a/one.png", "b/one.png", "b/studio/history/20260101000000-deadbeef/picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        texture(256, len(name)).save(tmp_path / name)
    shelf = PictureShelf(
        [tmp_path / "a", tmp_path / "b"], tmp_path / "b/studio/uploads", 0.5, left_out=[tmp_path / "b/studio/history"]
    )
    assert [each["name"] for each in shelf.names()] == ["one (a/one.png)", "one (b/one.png)"] and not shelf.refused


def test_one_image_uploaded_by_several_pages_at_a_time_is_kept_once(tmp_path):
    texture(256, 1).save(tmp_path / "one.png")
    content, shelf, numbers = (tmp_path / "one.png").read_bytes(), PictureShelf([], tmp_path / "uploads", 0.5), []
    threads = [threading.Thread(target=lambda: numbers.append(shelf.upload(content, "one.png"))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(numbers) == 4 and len(set(numbers)) == 1 and len(list((tmp_path / "uploads").iterdir())) == 1


def test_a_look_is_of_256_pixels_and_a_stain_shows_what_it_is_on_the_way_to(server, client):
    number = server.pictures()["tile"]
    small = client.do(action="sample", picture=number, part=(0, 0, 128, 128), steps=1)
    look = dict(kind="result", name=small["number"])
    state = client.finish(client.start(action="sample", picture=number, part=(0, 0, 256, 256), steps=1, look=look))
    assert state["state"] == "failed" and state["error"].startswith("the result has 128 x 128 pixels: expected 256")
    state = client.finish(client.start(action="stain", picture=number, part=(0, 0, 256, 256), steps=8, strength=1.0))
    assert state["state"] == "done" and state["step"] == state["steps"] == 8 and state["previews"] >= 3


def test_a_list_names_pictures_anywhere(tmp_path):
    texture(256, 1).save(tmp_path / "one.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/slides.txt").write_text(f"{tmp_path / 'one.png'}\n")
    shelf = PictureShelf([tmp_path / "lists/slides.txt"], tmp_path / "uploads", 0.5)
    assert [each["name"] for each in shelf.names()] == ["one"] and not shelf.refused


def test_a_slide_without_small_levels_is_never_read_at_once(tmp_path, monkeypatch):
    """Its coarse tiles come from a thumbnail that is made strip by strip."""
    path = tmp_path / "flat.tif"
    pixels = np.asarray(texture(1024, 3).resize((2048, 1536)))
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER"
    )
    whole = open_zoom(path)
    assert whole.levels == [(2048, 1536), (1024, 768), (512, 384), (256, 192)]
    expected = [np.asarray(whole.read(level, 0, 0)).astype(int) for level in range(4)]
    monkeypatch.setattr("diffusion.studio.tiles.MAX_LEVEL_PIXELS", 600 * 600)
    zoom = open_zoom(path)
    seen: list[tuple[int, int]] = []
    read_region = openslide.OpenSlide.read_region
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *a: seen.append(a[3]) or read_region(*a))
    monkeypatch.setattr("diffusion.data.slides.reader.MAX_LEVEL_PIXELS", 600 * 600)
    for level in range(4):
        assert np.abs(np.asarray(zoom.read(level, 0, 0)).astype(int) - expected[level]).mean() < 4
    assert max(width * height for width, height in seen) <= 600 * 600


def test_a_broken_slide_is_opened_anew(server, client, monkeypatch):
    number = server.pictures()["slide"]
    shelf = server.studio.shelf
    assert client.ask("GET", f"/api/pictures/{number}/tiles/0/0/0.jpg")[0] == 200
    with monkeypatch.context() as patch:

        def broken(*_: Any) -> None:
            raise openslide.OpenSlideError("a cable was out")

        patch.setattr("openslide.deepzoom.DeepZoomGenerator.get_tile", broken)
        status, content, _ = client.ask("GET", f"/api/pictures/{number}/tiles/0/1/0.jpg")
        assert status == 400 and b"is broken at tile 1, 0" in content
    assert number not in shelf._zooms
    assert client.ask("GET", f"/api/pictures/{number}/tiles/0/1/0.jpg")[0] == 200


def test_an_upload_is_turned_as_its_camera_says(server, client):
    image = texture(300, 5).crop((0, 0, 300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    number = json.loads(client.ask("POST", "/api/uploads", buffer.getvalue(), **{"X-Name": "photo.jpg"})[1])["number"]
    assert client.get(f"/api/pictures/{number}")["levels"][0] == [200, 300]


def test_a_preview_that_cannot_be_made_is_left_out(server, client, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("diffusion.studio.workshop.Preview.show", fail)
    request = dict(action="vary", picture=server.pictures()["tile"], part=(0, 0, 256, 256), guidance=1.0, strength=1.0)
    assert client.do(**request, steps=12)["width"] == 256


def test_the_embedder_is_loaded_when_the_studio_opens_and_never_again(server, client, monkeypatch):
    monkeypatch.setattr(PatchEmbedder, "load", lambda *_, **__: pytest.fail("it is loaded again"))
    client.do(action="sample", picture=server.pictures()["tile"], part=(0, 0, 256, 256), steps=1, guidance=1.0)


class TestJobs:
    def test_one_runs_the_others_wait_and_pages_do_not_mix(self, server, client):
        number = server.pictures()["tile"]
        other = Client(server.port, "two")
        request = dict(action="sample", picture=number, part=(0, 0, 256, 256), guidance=1.0)
        first = client.start(**request, steps=200)
        second = other.start(**request, steps=1, seed=5)
        third = client.start(**request, steps=1, seed=6)
        assert other.get(f"/api/jobs/{second}")["place"] == 1 and client.get(f"/api/jobs/{third}")["place"] == 2
        assert other.ask("GET", f"/api/jobs/{first}")[0] == 404, "a page sees its own jobs alone"
        assert other.ask("DELETE", f"/api/jobs/{first}")[0] == 404
        while not (state := client.get(f"/api/jobs/{first}"))["previews"]:
            assert state["state"] in ("queued", "running")
            time.sleep(0.02)
        status, content, _ = client.ask("GET", f"/api/jobs/{first}/preview")
        assert status == 200 and Image.open(io.BytesIO(content)).size == (256, 256)
        assert client.ask("DELETE", f"/api/jobs/{first}")[0] == 200
        assert client.finish(first)["state"] == "cancelled"
        results = [who.finish(job)["result"]["seed"] for who, job in ((other, second), (client, third))]
        assert results == [5, 6]

    def test_a_job_that_waits_is_cancelled_at_once_and_leaves_nothing(self, server, client):
        number = server.pictures()["tile"]
        request = dict(action="sample", picture=number, part=(0, 0, 256, 256), guidance=1.0)
        first, second = client.start(**request, steps=100), client.start(**request, steps=100)
        for job in (second, first):
            client.ask("DELETE", f"/api/jobs/{job}")
        assert client.finish(second)["state"] == client.finish(first)["state"] == "cancelled"
        places = [place for place in (server.out / "history").iterdir() if not (place / "entry.json").is_file()]
        assert not places

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA"),
            MemoryError(),
            RuntimeError("MPS backend out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ],
    )
    def test_out_of_memory_ends_a_job_and_not_the_server(self, error):
        queue = JobQueue()

        def work(_: Job) -> dict[str, Any]:
            raise error

        failed, good = queue.add(Job("a", work)), queue.add(Job("a", lambda _: {"fine": True}))
        while good.state != "done":
            time.sleep(0.01)
        assert failed.state == "failed" and failed.error.startswith("out of memory: take a smaller selection")

    def test_a_queue_that_is_closed_stops_the_job_that_runs(self):
        queue, began = JobQueue(), threading.Event()

        def work(job: Job) -> dict[str, Any]:
            began.set()
            while True:
                job.advance(1, 2)
                time.sleep(0.01)

        running, waiting = queue.add(Job("a", work)), queue.add(Job("a", work))
        assert began.wait(PATIENCE)
        queue.cancel(dropped := queue.add(Job("a", work)))
        assert dropped.state == "cancelled" and dropped.work is not work, "masks of a job that never runs are not kept"
        queue.close()
        assert running.state == "cancelled" and waiting.state == "queued" and not queue._thread.is_alive()

    def test_ctrl_c_stops_the_job_that_runs(self, tmp_path, monkeypatch):
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("uvicorn.Server.run", interrupt)
        history = History(tmp_path / "history")
        studio = Studio(PictureShelf([], tmp_path / "uploads", 0.5), history, lambda: pytest.skip("not opened"))
        with pytest.raises(KeyboardInterrupt), bind("127.0.0.1", 0) as listener:
            serve(studio, listener, None, print)
        assert not studio.queue._thread.is_alive()

    @pytest.mark.parametrize("fault", [KeyError(1), SystemExit(3)])
    def test_a_fault_of_the_code_ends_a_job_and_not_the_server(self, caplog, fault):
        queue = JobQueue()

        def work(_: Job) -> dict[str, Any]:
            raise fault

        failed, good = queue.add(Job("a", work)), queue.add(Job("a", lambda _: {}))
        while good.state != "done":
            time.sleep(0.01)
        assert failed.state == "failed" and type(fault).__name__ in failed.error
        assert "a job of the studio failed" in caplog.text


SECRET = "nobody may read this"


class TestSecurity:
    @pytest.fixture
    def secret(self, server) -> Path:
        path = server.folder / "secret.txt"
        path.write_text(SECRET)
        return path

    def test_no_path_leads_out(self, server, client, secret):
        """Dots, encoded once and twice, backslashes, absolute paths, nulls, wherever an address has a part."""
        number = server.pictures()["tile"]
        entries = [each["number"] for each in client.get("/api/state")["history"]] or ["20260101000000-00000000"]
        up = [
            "../" * 6,
            "..%2f" * 6,
            "..%252f" * 6,
            "%2e%2e/" * 6,
            "..\\" * 6,
            "..%5c" * 6,
            "....//" * 4,
            "/",
            "//",
            "%00",
            ".%00./",
        ]
        targets = [str(secret), str(secret)[1:], "etc/passwd", "secret.txt", "entry.json", "mask.png"]
        tried = 0
        for method, prefix, ending in (
            ("GET", "/", ""),
            ("GET", "/static/", ""),
            ("GET", "/history/", ""),
            ("GET", f"/history/{entries[0]}/", ""),
            ("GET", "/api/pictures/", ""),
            ("GET", "/api/pictures/", "/download"),
            ("GET", f"/api/pictures/{number}/tiles/0/0/", ""),
            ("GET", "/api/history/", ""),
            ("POST", "/api/history/", "/put-back"),
        ):
            for dots in up:
                for target in targets:
                    path = f"{prefix}{dots}{target}{ending}".replace(" ", "%20")
                    status, content, _ = client.ask(method, path)
                    assert SECRET.encode() not in content and b"root:" not in content, path
                    assert status in (400, 404, 405), (path, status)
                    tried += 1
        assert tried > 500
        assert client.ask("GET", f"/history/{entries[0]}/entry.json")[0] == 404, "it names paths of the machine"

    def test_links_out_of_the_folders_are_not_followed(self, server, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        texture(256, 1).save(outside / "private.png")
        given = tmp_path / "given"
        given.mkdir()
        texture(256, 2).save(given / "mine.png")
        (given / "link.png").symlink_to(outside / "private.png")
        (given / "folder").symlink_to(outside)
        (given / "within.png").symlink_to(given / "mine.png")
        shelf = PictureShelf([given], tmp_path / "uploads", 0.5)
        [shown] = shelf.names()  # the link within is the same file
        assert shown["name"] in ("mine", "within")
        assert any("link out of the folders" in reason for reason in shelf.refused.values())

    def test_a_result_that_became_a_link_is_not_served(self, tmp_path, secret):
        history = History(tmp_path)
        place = history.begin()
        Image.new("RGB", (8, 8)).save(place / "picture.png")
        history.finish(place, {"action": "sample"})
        assert history.file(place.name, "picture.png").is_file()
        (place / "thumbnail.jpg").unlink()
        (place / "thumbnail.jpg").symlink_to(secret)
        with pytest.raises(InputError):
            history.file(place.name, "thumbnail.jpg")
        moved = tmp_path / "20260101000000-deadbeef"
        moved.symlink_to(secret.parent)
        assert [entry["number"] for entry in history.entries()] == [place.name]

    @pytest.mark.parametrize("kind", ["text", "svg", "pickle", "bomb", "cut", "eps", "zip"])
    def test_hostile_uploads_are_refused_in_a_line(self, server, client, kind):
        def chunk(name: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        good = io.BytesIO()
        texture(64, 1).save(good, "PNG")
        content = {
            "text": b"#!/bin/sh\ntouch /tmp/executed\n",
            "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
            "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/executed'\ntR.",
            "bomb": head + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b""),
            "cut": good.getvalue()[:200],
            "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/tmp/executed) (w) file\n",
            "zip": b"PK\x03\x04" + bytes(100),
        }[kind]
        before = set(server.out.rglob("*"))
        status, answer, _ = client.ask("POST", "/api/uploads", content, **{"X-Name": "..%2F..%2Fevil.png"})
        assert status == 400 and "\n" not in json.loads(answer)["error"]
        assert set(server.out.rglob("*")) == before and not Path("/tmp/executed").exists()

    def test_an_upload_keeps_nothing_but_its_pixels(self, server, client):
        image = texture(300, 5)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", pnginfo=None)
        payload = buffer.getvalue() + b"<script>alert(1)</script>"
        status, answer, _ = client.ask(
            "POST", "/api/uploads", payload, **{"X-Name": "..%2F..%2F%3Cb%3Eevil%3C%2Fb%3E.png"}
        )
        assert status == 200
        number = json.loads(answer)["number"]
        [file] = (server.out / "uploads").glob("b_*.png")
        assert b"script" not in file.read_bytes() and np.array_equal(read_pixels(file), np.asarray(image))
        names = {each["number"]: each["name"] for each in client.get("/api/state")["pictures"]}
        assert names[number] == "b" and file.stem.startswith("b_")
        entry = client.do(action="sample", picture=number, part=(0, 0, 256, 256), steps=1, guidance=1.0)
        assert entry["width"] == 256

    def test_bodies_are_limited(self, server, client):
        status, answer, _ = client.ask("POST", "/api/jobs", b" " * (33 * 2**20))
        assert status == 400 and b"more than 32 MB" in answer
        assert client.ask("POST", "/api/jobs", b"[" * 100000)[0] == 400

    def test_other_sites_reach_nothing(self, server, client):
        """By their own name for this address (DNS rebinding), by a form, or by a script."""
        assert Client(server.port, host="evil.example").ask("GET", "/api/state")[0] == 403
        assert Client(server.port, host="127.0.0.1.evil.example").ask("GET", "/")[0] == 403
        body = json.dumps(dict(action="sample", picture="x", part=(0, 0, 256, 256))).encode()
        assert client.ask("POST", "/api/jobs", body, Origin="https://evil.example")[0] == 403
        assert client.ask("POST", "/api/jobs", body, **{"X-Pixcell-Client": ""})[0] == 403
        assert client.ask("DELETE", "/api/history/20260101000000-00000000", Origin="null")[0] == 403
        headers = client.ask("GET", "/")[2]
        assert (
            "default-src 'self'" in headers["content-security-policy"]
            and headers["x-content-type-options"] == "nosniff"
        )
        assert headers["access-control-allow-origin"] is None

    def test_the_page_names_no_other_host(self):
        for path in (REPOSITORY / "asset/studio").iterdir():
            assert "//" not in path.read_text().replace("// ", ""), path

    def test_another_address_needs_a_token(self, tmp_path):
        assert choose_token("127.0.0.1", None) is None and choose_token("localhost", None) is None
        made = choose_token("0.0.0.0", None)
        assert made is not None and len(made) >= 24 and made != choose_token("0.0.0.0", None)
        for token in ("short", "with a space and more", "ümlaute-und-mehr-davon"):
            with pytest.raises(InputError, match="expected 16 or more"):
                choose_token("0.0.0.0", token)
        forget_processes()
        guarded = Server(tmp_path, token=made)
        try:
            client = Client(guarded.port, host="some.machine")
            for path in ("/", "/api/state", "/static/studio.js", "/?token=wrong", "/?token=%C3%A9"):
                assert client.ask("GET", path)[0] == 401, path
            status, _, headers = client.ask("GET", f"/?token={made}")
            cookie = headers["set-cookie"]
            assert status == 303 and "HttpOnly" in cookie and "SameSite=lax" in cookie
            assert client.ask("GET", "/api/state", Cookie=cookie.partition(";")[0])[0] == 200
        finally:
            guarded.stop()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "the request is list: expected an object"),
        (dict(action="sample"), "the request lacks picture"),
        (dict(action="delete"), "action 'delete': expected one of"),
        (dict(part=(0, 0, 10, 10)), "a selection of 10 x 10 pixels: expected 64 to 4096 a side"),
        (dict(part=(-1, 0, 256, 256)), "a selection of 256 x 256"),
        (dict(part="everything"), "part is 'everything'"),
        (dict(steps=0), "0 steps"),
        (dict(part=(0, 0, 256)), "part has 3 values: expected 4"),
        (dict(action="enlarge", enlarge=1), "enlarged 1 times"),
        (dict(action="enlarge", enlarge=4, part=(0, 0, 4000, 256)), "a result of more than 8192 pixels"),
        (dict(guidance=float("nan")), "guidance"),
        (dict(strength="1"), "strength is '1'"),
        (dict(action="repair"), "nothing is painted"),
        (dict(action="extend", extend=(0, 0, 0, 0)), "nothing is added"),
        (dict(action="extend", extend=(4096, 0, 1, 0), part=(0, 0, 4096, 256)), "a result of more than 8192 pixels"),
        (dict(action="colours"), "no reference"),
        (dict(look=dict(kind="file", name="/etc/passwd")), "kind 'file': expected one of stored, result, place"),
        (dict(workdir="/"), "the request has no field workdir"),
        (dict(seed=-1), "seed -1"),
    ],
)
def test_requests_that_cannot_be_are_refused(request_, message):
    whole = dict(action="sample", picture="x", part=(0, 0, 256, 256))
    given = request_ if not isinstance(request_, dict) or request_ == dict(action="sample") else {**whole, **request_}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        JobRequest.read(given)


def test_faults_of_a_job_are_said_in_a_line(server, client):
    number = server.pictures()["tile"]
    whole = dict(action="sample", picture=number, part=[0, 0, 256, 256], steps=1)
    for changes, message in (
        (dict(part=[400, 400, 256, 256]), "are not a part of it"),
        (dict(action="repair", mask=painted(100, 100, 0, 0, 50, 50)), "has 100 x 100 pixels: expected 256 x 256"),
        (dict(action="repair", mask="no base64!"), "the mask is no PNG"),
        (dict(action="repair", mask=painted(256, 256, 0, 0, 0, 0)), "nothing would change"),
        (dict(look=dict(kind="stored", name="../../secret")), "no stored look"),
        (dict(look=dict(kind="result", name="../../secret")), "no such file of a result"),
        (dict(look=dict(kind="place", name="nowhere")), "no picture"),
        (dict(loras=[1.0]), "the studio was started with 0"),
        (dict(action="stain", structure="control"), "expected a ControlNet"),
    ):
        state = client.finish(client.start(**{**whole, **changes}))
        assert state["state"] == "failed" and message in state["error"], state
        assert "\n" not in state["error"]
    assert client.ask("POST", "/api/jobs", json.dumps({**whole, "picture": "nowhere"}).encode())[0] == 404


def test_the_history_is_there_after_a_restart_and_entries_can_be_removed(server, client):
    number = server.pictures()["tile"]
    entry = client.do(action="sample", picture=number, part=(0, 0, 256, 256), steps=1, guidance=1.0)
    again = History(server.out / "history")
    (again.folder / "20250101000000-00000000").mkdir()  # of a job that a killed server left
    again.sweep()
    assert again.entries()[0]["number"] == entry["number"]
    assert not (again.folder / "20250101000000-00000000").exists()
    assert client.ask("DELETE", f"/api/history/{entry['number']}")[0] == 200
    assert client.ask("GET", f"/history/{entry['number']}/picture.png")[0] == 404
    assert all(each["number"] != entry["number"] for each in client.get("/api/state")["history"])


def test_a_command_is_quoted_as_a_shell_needs_it():
    text = format_command(
        "edit", [Path("a slide's.svs")], {"part": (1, 2, 3, 4), "mask": None, "lora": ("x y:0.5",), "compile": False}
    )
    assert shlex.split(text) == ["pixcell", "edit", "a slide's.svs", "--part", "1", "2", "3", "4", "--lora", "x y:0.5"]


def test_a_second_studio_leaves_the_first_one_s_jobs_alone(server, tmp_path):
    """Its address is taken, or its folder: what a job has begun is not swept away."""
    out = tmp_path / "studio"
    begun = History(out / "history").begin()
    with pytest.raises(InputError, match="cannot be listened at"):
        studio([server.image], workdir=server.folder / "run", out=out, port=server.port)
    with file_lock(out / LOCK), pytest.raises(InputError):
        studio([server.image], workdir=server.folder / "run", out=out, port=0)
    assert begun.is_dir()


def test_an_address_that_is_taken_is_an_error_of_one_line(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{server.port} cannot be listened at"):
        studio([server.image], workdir=server.folder / "run", out=tmp_path / "studio", port=server.port)


@pytest.mark.parametrize("wrong", [["--lora", "nowhere.safetensors:0.5"], ["--workdir", "nowhere"]])
def test_a_network_that_cannot_be_opened_is_said_on_the_page_and_in_the_terminal(tmp_path, wrong):
    call_ = [sys.executable, "-m", "pixcell", "studio", "--workdir", "nano", "--port", "0", *wrong]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        call_, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        client = Client(int(re.findall(r":(\d+)", process.stdout.readline())[0]))
        line = process.stderr.readline()
        assert line.startswith("error: ") and "nowhere" in line
        while not (told := client.get("/api/model"))["error"]:
            time.sleep(0.05)
        assert told["error"] in line and told["model"] is None
        texture(256, 1).save(tmp_path / "tile.png")
        number = json.loads(client.ask("POST", "/api/uploads", (tmp_path / "tile.png").read_bytes())[1])["number"]
        status, answer, _ = client.ask(
            "POST", "/api/jobs", json.dumps(dict(action="sample", picture=number, part=(0, 0, 256, 256))).encode()
        )
        assert status == 400 and told["error"] in json.loads(answer)["error"]
    finally:
        process.kill()


def test_without_its_packages_the_studio_says_what_to_install(tmp_path):
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')")
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    call_ = [sys.executable, "-m", "pixcell", "studio", "--workdir", "nano", "--port", "0"]
    done = subprocess.run(call_, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "pip install 'pixcell[studio]'" in done.stderr
