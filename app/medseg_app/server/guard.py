"""What every request passes, whichever part of the application answers it: host, origin, login, headers."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medseg_app.jobs.store import Store
from medseg_app.server.accounts import Accounts, Throttled
from medseg_app.server.metrics import Metrics

COOKIE = "medseg"
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_OPEN = ("/login", "/healthz", "/readyz", "/medseg-assets/login.css")  # answered without login
_GRADIO = re.compile(
    r"/gradio_api/(queue/(join|data)|call(/v2)?/\w+(/\w+)?|heartbeat/\w+|startup-events|upload|upload_progress|info"
    r"|app_id|reset|cancel|file=.*)|/(config|theme\.css|assets/.*|static/.*|svelte/.*|favicon\.ico|manifest\.json)?"
)
_OURS = ("/api/v1/", "/medseg-assets/", "/medseg-screens", "/login", "/logout", "/healthz", "/readyz", "/metrics")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without any, browsers send our own forms with the origin null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class Guard:
    """The outermost layer of the application.

    Args:
        app: What lies behind.
        hosts: Names under which the application may be called; empty for any. It keeps other sites from reaching a
            server on the loopback through a name of their own.
        accounts: Who may log in; None where nobody has to.
        metrics: Counts the requests.
        store: Knows whether the disk takes no more, and whose a file is; Gradio's own routes know neither.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: tuple[str, ...],
        accounts: Accounts | None,
        metrics: Metrics,
        store: Store,
    ) -> None:
        self._app, self._hosts, self._accounts, self._metrics = app, hosts, accounts, metrics
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on with `state.owner` set."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks over websockets
        headers = Headers(scope=scope)
        token = _cookie(headers)
        fresh = None
        try:
            owner, refusal = await self._owner(scope, headers, token)
        except Throttled as error:
            owner, refusal = None, JSONResponse({"error": str(error)}, 429)
        if refusal is None and owner is None and self._accounts is None:
            fresh = token if token and _TOKEN.fullmatch(token) else secrets.token_urlsafe(32)
            owner = "session-" + hashlib.sha256(fresh.encode()).hexdigest()[:32]
            fresh = None if fresh == token else fresh
        refusal = refusal or _strange(scope, headers, self._hosts) or self._shut(scope, owner)
        scope.setdefault("state", {})["owner"] = owner or ""
        answering = _Answering(send, scope, fresh, self._metrics)
        await (refusal or self._app)(scope, receive, answering)

    async def _owner(self, scope: Scope, headers: Headers, token: str | None) -> tuple[str | None, Any]:
        """Who asks, by session or by name and password; and the refusal of wrong ones."""
        if self._accounts is None:
            return None, None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return self._accounts.user(token), None
        try:
            name, _, password = base64.b64decode(given, validate=True).decode().partition(":")
        except ValueError:
            name = password = ""
        address = (scope.get("client") or ("",))[0]
        if await run_in_threadpool(self._accounts.fits, name, password, address):
            return name, None
        return None, JSONResponse({"error": "name or password is wrong"}, 401)

    def _shut(self, scope: Scope, owner: str | None) -> Any:
        """The answer to somebody who has to log in first, or to bring his files another day."""
        if scope["path"].startswith("/gradio_api/upload") and self._store.is_full():
            return JSONResponse({"error": "disk: the space of this server is used up; delete old work"}, 413)
        if self._accounts is None or scope["path"] in _OPEN:
            return None
        if owner is not None:
            _, asked, file = scope["path"].partition("/gradio_api/file=")
            strange = asked and not self._store.may_fetch(owner, file)
            return JSONResponse({"error": "there is no file of yours"}, 404) if strange else None
        if scope["path"] == "/":
            return RedirectResponse("/login", 303)
        return JSONResponse({"error": "log in first"}, 401)


class _Answering:
    """Sends an answer with our headers; in a page every script gets the word that lets it run."""

    def __init__(self, send: Send, scope: Scope, fresh: str | None, metrics: Metrics) -> None:
        self._send, self._scope, self._fresh, self._metrics = send, scope, fresh, metrics
        self._nonce = secrets.token_urlsafe(16)
        self._start: Message | None = None
        self._page: list[bytes] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
            if self._page is None:
                await self._send(message)
            return
        if self._page is None:
            await self._send(message)
            return
        self._page.append(message.get("body", b""))
        if not message.get("more_body"):
            body = b"".join(self._page).replace(b"<script", f'<script nonce="{self._nonce}"'.encode())
            assert self._start is not None
            MutableHeaders(scope=self._start)["content-length"] = str(len(body))
            await self._send(self._start)
            await self._send({"type": "http.response.body", "body": body})

    def _begin(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers[name] = value
        headers["Content-Security-Policy"] = _POLICY.format(nonce=self._nonce)
        if not self._scope["path"].startswith(("/assets/", "/static/", "/medseg-assets/")):
            headers["Cache-Control"] = "no-store"
        if self._fresh is not None:
            headers.append("Set-Cookie", cookie(self._fresh, secure=self._scope["scheme"] == "https"))
        self._metrics.answered(self._scope["method"], message["status"])
        if headers.get("content-type", "").startswith("text/html"):
            self._start, self._page = message, []


def cookie(token: str, *, secure: bool, seconds: int = 30 * 24 * 3600) -> str:
    """The header that gives a browser its session."""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}" + "; Secure" * secure


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def _strange(scope: Scope, headers: Headers, hosts: tuple[str, ...]) -> Any:
    """The answer to a request that no page of ours would make."""
    path = scope["path"]
    if not path.startswith(_OURS) and not _GRADIO.fullmatch(path):
        return JSONResponse({"error": "there is nothing here"}, 404)
    host = urlsplit("//" + headers.get("host", "")).hostname or ""
    if hosts and host not in hosts:
        return JSONResponse({"error": f"host must be one of {', '.join(hosts)}; add it with --allow-host"}, 421)
    origin = headers.get("origin")
    if scope["method"] not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != headers.get("host"):
        return JSONResponse({"error": "requests of other sites are not answered"}, 403)
    return None
