"""Who is let in to the studio: this machine, or those with a token; and the headers that keep its page to this server."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion.utils.errors import InputError

COOKIE = "pixcell_studio"
CLIENT = "x-pixcell-client"  # header of every request that changes something, which no other site's page can send
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through that are meant for this server, and adds the headers that keep a page from loading anything else.

    token: that a request has to bring, in its address once and then in a cookie; None: of a server that only this machine reaches, whose
    requests must name this machine as their host (DNS rebinding), and none another site as their origin.
    """

    def __init__(self, app: ASGIApp, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        refused = self.refuse(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                more = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known
                ]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if refused is not None:
            await refused(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def refuse(self, request: Request) -> Response | None:
        """Return the answer to a request that is not let through; None: it is."""
        host = request.headers.get("host", "")
        if self.token is None and not is_loopback(_host_name(host)):
            return failure(403, "this server is for the machine that it runs on; open it as 127.0.0.1")
        if self.token is not None:
            given = request.query_params.get("token")
            cookie = f"{COOKIE}_{(request.scope.get('server') or ('', 0))[1]}"  # of this port alone
            if given is not None and request.url.path == "/" and _is_same(given, self.token):
                answer = Response(status_code=303, headers={"location": "/"})
                # lax: a link in a chat or terminal may open the page; what changes something needs its header
                answer.set_cookie(cookie, self.token, httponly=True, samesite="lax")
                return answer
            if not _is_same(request.cookies.get(cookie, ""), self.token):
                return failure(401, "no token, or a wrong one: open the address that the studio printed")
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            if origin is not None and origin.partition("://")[2] != host:
                return failure(403, "the request comes from another site")
            if CLIENT not in request.headers:
                return failure(403, f"a request that changes something has the header {CLIENT}")
        return None


def _is_same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _host_name(host: str) -> str:
    """Return the name of `name:port`, or of `[address]:port`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def failure(status: int, message: str) -> JSONResponse:
    """Return the answer to a request that failed: one line of why."""
    return JSONResponse({"error": message}, status)


def choose_token(host: str, token: str | None) -> str | None:
    """Return the token of a server at an address: the one given, else a new one where other machines reach it. Raises InputError."""
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token):
        raise InputError(
            "--token: expected 16 or more of the letters A-Z, a-z, 0-9, _ and -; leave it out to have one made"
        )
    return token
