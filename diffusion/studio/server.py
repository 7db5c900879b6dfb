"""The studio's server: a page, tiles of pictures, jobs, results. It serves what it knows by number, and no path that a client names."""

from __future__ import annotations

import errno
import io
import json
import logging
import re
import socket
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from diffusion.data.slides.parts import read_part
from diffusion.studio.access import CLIENT, Guard, failure
from diffusion.studio.history import PICTURE, SERVED, History
from diffusion.studio.jobs import Job, JobQueue
from diffusion.studio.pictures import UPLOAD_BYTES, PictureShelf
from diffusion.studio.requests import JobRequest, check_selection
from diffusion.utils.assets import ASSETS
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.recorded import describe_difference

if TYPE_CHECKING:
    from diffusion.studio.workshop import Workshop

log = logging.getLogger(__name__)

PAGE = ASSETS / "studio"
LEAFLET = resources.files("xstatic.pkg.leaflet") / "data"
STATIC = {  # by name
    "studio.css": ("text/css", PAGE / "studio.css"),
    "studio.js": ("text/javascript", PAGE / "studio.js"),
    "leaflet.css": ("text/css", LEAFLET / "leaflet.css"),
    "leaflet.js": ("text/javascript", LEAFLET / "leaflet.js"),
}
JSON_BYTES = 32 * 2**20  # of a request, with the masks in it


class Studio:
    """The routes of the page, on pictures, results, and a workshop that is opened by the thread that works with it.

    The page is there meanwhile: what a workshop needs takes seconds to import.
    """

    def __init__(self, shelf: PictureShelf, history: History, open_workshop: Callable[[], Workshop]):
        self.shelf, self.history, self.queue = shelf, history, JobQueue()
        self.workshop: Workshop | None = None

        def start(_: Job) -> dict[str, Any]:
            self.workshop = open_workshop()
            return self.workshop.describe()

        self.opening = self.queue.add(Job("", start))

    def work(self, request: JobRequest, job: Job) -> dict[str, Any]:
        """Do a job, once the workshop is open. Raises InputError."""
        if self.workshop is None or self.opening.result is None:
            raise InputError(self.opening.error)
        return self.workshop.run(request, job)

    def app(self, token: str | None) -> Starlette:
        """Return the application."""
        routes = [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/api/state", self.state),
            Route("/api/model", self.network),
            Route("/api/pictures/{number}", self.picture),
            Route("/api/pictures/{number}/tiles/{level}/{column}/{row}.jpg", self.tile),
            Route("/api/pictures/{number}/part", self.part),
            Route("/api/pictures/{number}/download", self.download),
            Route("/api/uploads", self.upload, methods=["POST"]),
            Route("/api/jobs", self.add_job, methods=["POST"]),
            Route("/api/jobs/{number}", self.job),
            Route("/api/jobs/{number}/preview", self.preview),
            Route("/api/jobs/{number}", self.cancel, methods=["DELETE"]),
            Route("/api/history/{number}", self.remove, methods=["DELETE"]),
            Route("/api/history/{number}/put-back", self.put_back, methods=["POST"]),
            Route("/history/{number}/{name}", self.result),
        ]
        handlers: Any = {
            MissingError: lambda _, error: failure(404, str(error)),
            InputError: lambda _, error: failure(400, str(error)),
            404: lambda *_: failure(404, "there is nothing at this address"),
            Exception: _failed,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.add_middleware(Guard, token=token)
        return app

    async def page(self, _: Request) -> Response:
        """Return the page."""
        return FileResponse(PAGE / "index.html", media_type="text/html", headers={"cache-control": "no-cache"})

    async def static(self, request: Request) -> Response:
        """Return a script or style sheet of the page, by its name in a list."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise MissingError("there is nothing at this address")
        kind, path = STATIC[name]
        return Response(path.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})

    async def network(self, _: Request) -> Response:
        """Return what the page has to know of the network; null while it is being opened."""
        return JSONResponse({"model": self.opening.result, "error": self.opening.error})

    async def state(self, _: Request) -> Response:
        """Return what the page begins with: the network, pictures, history."""
        opening = self.opening
        found = {
            "model": opening.result,
            "error": opening.error,
            "pictures": self.shelf.names(),
            "refused": list(self.shelf.refused.values()),
            "history": await run_in_threadpool(self.history.entries),
        }
        return JSONResponse(found)

    async def picture(self, request: Request) -> Response:
        """Return the sizes of a picture."""
        number = request.path_params["number"]
        shown = await run_in_threadpool(self.shelf.show, number)
        levels = await run_in_threadpool(self.shelf.levels, number)
        return JSONResponse(
            {
                "number": number,
                "name": shown.name,
                "note": shown.note,
                "factor": shown.factor,
                "levels": levels,
                "width": shown.width,
                "height": shown.height,
            }
        )

    async def tile(self, request: Request) -> Response:
        """Return a tile of a picture."""
        place = request.path_params
        level, column, row = (_whole(place[name]) for name in ("level", "column", "row"))
        content = await run_in_threadpool(self.shelf.tile, place["number"], level, column, row)
        kind = "image/jpeg" if content.startswith(b"\xff\xd8") else "image/png"
        return Response(content, media_type=kind, headers={"cache-control": "max-age=3600"})

    async def part(self, request: Request) -> Response:
        """Return the pixels of a selection, as the network is given them, as PNG."""
        shelf, number = self.shelf, request.path_params["number"]
        path = shelf.path(number)
        x, y, width, height = (_whole(request.query_params.get(name, "")) for name in ("x", "y", "width", "height"))
        check_selection(x, y, width, height)

        def read() -> bytes:
            with shelf.read_from(number) as slide:
                pixels, _ = read_part(slide, path, (x, y, width, height))
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()

        return Response(await run_in_threadpool(read), media_type="image/png", headers={"cache-control": "no-store"})

    async def download(self, request: Request) -> Response:
        """Return an upload, or a picture with a result in it, as a file to save."""
        path = self.shelf.upload_path(request.path_params["number"])
        return FileResponse(path, media_type="image/png", filename=path.name)

    async def upload(self, request: Request) -> Response:
        """Take a picture."""
        content = await _read_body(request, UPLOAD_BYTES)
        name = unquote(request.headers.get("x-name", "upload"))
        number = await run_in_threadpool(self.shelf.upload, content, name)
        return JSONResponse(self.shelf.describe(number))

    async def add_job(self, request: Request) -> Response:
        """Take a job, and return its number."""
        body = await _read_body(request, JSON_BYTES)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the request is no JSON ({type(error).__name__})") from None
        wanted = JobRequest.read(content)
        self.shelf.path(wanted.picture)
        if self.opening.state == "failed":
            raise InputError(self.opening.error)
        client = request.headers[CLIENT][:64]
        job = self.queue.add(Job(client, lambda job: self.work(wanted, job)))
        return JSONResponse({"number": job.number})

    async def job(self, request: Request) -> Response:
        """Return how far a job is."""
        job = self._job(request)
        return JSONResponse(
            {
                "state": job.state,
                "place": self.queue.place(job),
                "step": job.step,
                "steps": job.steps,
                "previews": job.previews,
                "seconds": round(job.seconds, 1),
                "result": job.result,
                "error": job.error,
            }
        )

    async def preview(self, request: Request) -> Response:
        """Return what a job is on the way to."""
        content = self._job(request).preview
        if content is None:
            return Response(status_code=204)
        return Response(content, media_type="image/jpeg", headers={"cache-control": "no-store"})

    async def cancel(self, request: Request) -> Response:
        """Cancel a job."""
        self.queue.cancel(self._job(request))
        return JSONResponse({})

    def _job(self, request: Request) -> Job:
        client = request.headers.get(CLIENT) or request.query_params.get("client", "")
        job = self.queue.find(request.path_params["number"], client)
        if job is None:
            raise MissingError("no such job: the studio was started anew, or it is another page's")
        return job

    async def remove(self, request: Request) -> Response:
        """Delete a result."""
        await run_in_threadpool(self.history.remove, request.path_params["number"])
        return JSONResponse({})

    async def put_back(self, request: Request) -> Response:
        """Keep a copy of a result's picture with the result in its place, and return the copy's description and the place."""

        def put() -> dict[str, Any]:
            number = request.path_params["number"]
            entry, result = self.history.entry(number), self.history.file(number, PICTURE)
            resolution = self.shelf.resolution(entry["source"])
            if differs := describe_difference(entry.get("resolution", {}), resolution):
                was, now = differs
                raise InputError(f"it was made of its picture read with {was}, not {now}; start the studio so again")
            copy, place = self.shelf.put_into(entry["source"], tuple(entry["part"]), result)
            return {**self.shelf.describe(copy), "part": list(place)}

        return JSONResponse(await run_in_threadpool(put))

    async def result(self, request: Request) -> Response:
        """Return a file of a result; with ?download as a file to save."""
        number, name = request.path_params["number"], request.path_params["name"]
        path = self.history.file(number, name)
        saved = f"pixcell_{number}.png" if "download" in request.query_params else None
        return FileResponse(path, media_type=SERVED[name], filename=saved)


def _whole(text: str) -> int:
    """Return a whole number of at most 9 digits. Raises InputError."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InputError(f"{text[:20]!r}: expected a whole number")
    return int(text)


async def _failed(_: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return failure(500, f"it failed ({type(error).__name__}); the server's output says where")


async def _read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request, of at most so many bytes. Raises InputError."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise InputError(f"more than {limit >> 20} MB")
        parts.append(part)
    return b"".join(parts)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0: any that is free. Raises InputError for an address that is taken, or none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        advice = "another --port, or 0 for one that is free" if taken else "another --host or --port"
        raise InputError(f"{host}:{port} cannot be listened at ({error}); take {advice}") from None
    return listener


def serve(studio: Studio, listener: socket.socket, token: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `say` gets the address once it answers."""
    config = uvicorn.Config(
        studio.app(token), log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # all addresses of this machine
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    query = "" if token is None else f"/?token={token}"
    started = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await started(sockets)
        say(f"http://{shown}:{port}{query}")

    server.startup = startup  # pyright: ignore[reportAttributeAccessIssue]
    try:
        server.run(sockets=[listener])  # raises KeyboardInterrupt once it has ended by Ctrl-C
    finally:
        studio.queue.close()
