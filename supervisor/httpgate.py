"""Changes over HTTP: who may (httpaccess.py), what they mean (httpchanges.py), and the admin server, which acts."""

from __future__ import annotations

import os
from collections.abc import Callable

from fencing import wire
from fencing.lease import MS
from fencing.logs import Log
from supervisor import httpchanges
from supervisor.adminserver import AdminServer
from supervisor.config import Config
from supervisor.errors import PgrError
from supervisor.healthserver import Current, HealthServer
from supervisor.httpaccess import Access, Peer, admit, read_tokens
from supervisor.httpchanges import Ask
from supervisor.httptls import TlsFiles, make_context
from supervisor.httpwire import Answer, Request


class Gate:
    """A client of the admin server that lives in the same process."""

    def __init__(self, admin: AdminServer, access: Access, log: Log) -> None:
        self.admin, self.access, self.log = admin, access, log

    def refuse(self, request: Request, peer: Peer) -> Answer | None:
        """Before its body is read."""
        who = admit(self.access, request.headers, peer)
        if isinstance(who, str):
            return None
        event = {"method": request.method, "path": request.path, "peer": peer.address, "status": who.status}
        self.log.once_per("http.refused", 1).warning("http.refused", expected=False, **event)
        return who

    def begin(self, request: Request, peer: Peer, reply: Callable[[Answer], None], now_ns: int) -> int:
        """An instant by which it is answered."""
        by = admit(self.access, request.headers, peer)
        if not isinstance(by, str):
            raise AssertionError("refused before")
        ask = httpchanges.translate(request, self.admin.snapshot, by)
        if isinstance(ask, Answer):
            reply(ask)
            return now_ns
        self.log.info("http.change", method=request.method, path=request.path, by=by, request=ask.name)
        request_id = os.urandom(8).hex()
        client = b"http:" + request_id.encode()
        self.admin.inside[client] = _Conversation(self.admin, client, ask, reply, now_ns).take
        self.admin.request(client, wire.encode(ask.name, ask.body, request_id), now_ns, remote=False)
        return now_ns + ask.timeout_ms * MS


class _Conversation:
    """The frames that would go to a client of the admin protocol, until one of them is the answer."""

    def __init__(
        self, admin: AdminServer, client: bytes, ask: Ask, reply: Callable[[Answer], None], now_ns: int
    ) -> None:  # fmt: skip
        self.admin, self.client, self.ask, self.reply, self.now_ns = admin, client, ask, reply, now_ns
        self.accepted = self.replied = False

    def take(self, data: bytes) -> None:
        frame = wire.decode(data)
        if frame.name == "admin.progress":
            if frame.body["event"] == "accepted":
                self.accepted = True
                if self.ask.begun is not None:
                    self._reply(self.ask.begun)
            return
        del self.admin.inside[self.client]
        body = frame.body
        if body["ok"]:
            self._reply(self.ask.done(body["result"], self.admin.snapshot, self.now_ns))
        else:
            self._reply(httpchanges.failed(self.ask, body["code"], body["error"], body["hint"], accepted=self.accepted))

    def _reply(self, answer: Answer) -> None:
        if not self.replied:
            self.replied = True
            self.reply(answer)


class Http:
    """The server as the configuration wants it; new files are taken with `reload`. Raises PgrError, OSError."""

    def __init__(self, config: Config, current: Current, admin: AdminServer, log: Log) -> None:
        if config.http is None:
            raise ValueError("there is no HTTP")
        self.log = log
        self.gate = Gate(admin, access_of(config), log)
        tls = make_context(files) if (files := tls_files(config)) is not None else None
        self.server = HealthServer(current, config.http.host, config.http.port, tls, self.gate)

    def reload(self, config: Config) -> str:
        """With what the files hold now. What does not fit changes nothing, and is said."""
        try:
            access, files = access_of(config), tls_files(config)
            tls = make_context(files) if files is not None else None
        except PgrError as bad:
            self.log.error("http.not_reloaded", message=bad.message, hint=bad.hint)
            return bad.message
        self.gate.access, self.server.tls = access, tls
        self.log.info("http.reloaded", tls=tls is not None, changes=access.allowed)
        return ""


def make(config: Config, current: Current, admin: AdminServer, log: Log) -> Http | None:
    return Http(config, current, admin, log) if config.http is not None else None


def access_of(config: Config) -> Access:
    """Raises PgrError."""
    tokens = read_tokens(config.http_token_file) if config.http_token_file is not None else ()
    return Access(tokens, config.http_tls_client_ca is not None)


def tls_files(config: Config) -> TlsFiles | None:
    if config.http_tls_cert is None:
        return None
    verify = config.http_tls_verify == "required"
    return TlsFiles(config.http_tls_cert, config.http_tls_key, config.http_tls_client_ca, verify)
