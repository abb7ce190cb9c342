"""TLS for HTTP: the context that new connections get, made anew when the files change (HUP).

ssl is imported with the first context only: OpenSSL costs memory for years, and most nodes have none of this.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from supervisor.errors import MissingError, UsageError

if TYPE_CHECKING:
    import ssl


class TlsFiles(NamedTuple):
    """PEM files. ``client_ca``: whose certificates clients may show; ``verify``: all of them have to."""

    cert: Path
    key: Path | None = None
    client_ca: Path | None = None
    verify: bool = False


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 and newer. Raises MissingError, UsageError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0  # every connection has one request
    try:
        # A password would be asked for on a terminal that nobody looks at.
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except ssl.SSLError as failure:
        hint = "PEM, the chain first the server's, the key without a password, and made for this certificate"
        which = f"--http-tls-cert {files.cert}, --http-tls-key {files.key or files.cert}"
        raise UsageError(f"{which}: {_why(failure)}", hint) from None
    except OSError as failure:
        raise _unreadable(f"--http-tls-cert {files.cert}, --http-tls-key {files.key or files.cert}", failure) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as failure:
            raise UsageError(f"--http-tls-client-ca {files.client_ca}: {_why(failure)}", "PEM certificates") from None
        except OSError as failure:
            raise _unreadable(f"--http-tls-client-ca {files.client_ca}", failure) from None
        context.verify_mode = ssl.CERT_REQUIRED if files.verify else ssl.CERT_OPTIONAL
    return context


def _why(failure: ssl.SSLError) -> str:
    return failure.reason or str(failure)


def _unreadable(what: str, failure: OSError) -> MissingError:
    return MissingError(f"{what}: {failure.strerror or failure}", "let the user that this node runs as read it")


def common_name(certificate: object) -> str:
    """CN of what `SSLSocket.getpeercert` gave; empty if it has none."""
    match certificate:
        case {"subject": tuple(subject)}:
            names = [value for rdn in subject for key, value in rdn if key == "commonName"]
            return "".join(ch for ch in str(names[-1]) if ch.isprintable())[:64] if names else ""
        case _:
            return ""
