"""A model file from one URL, by ranges where an earlier try left off. What is there after a crash:

    NAME.part         the bytes received so far
    NAME.part.json    {"url", "validator"}: where they came from, and the ETag or Last-Modified they had

Hugging Face's own package is not used. It is installed anyway (tokenizers needs it: 8 MB, 17 MB with what it needs to
download) and its import takes 0.2 s, so weight is not the reason. But it keeps files in a cache of its own, tells no
callback how far it is, and fetches from no other address: all of this file would stay, and a model would come by one of
two ways. What it does better, Xet's transfers and the token of its login, two files that need no token do not miss.
"""

from __future__ import annotations

import json
import os
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request

from assay import bearer
from assay.fetch.catalogue import HuggingFace, Url
from assay.formats import SourceError
from assay.formats.system.atomic_file import beside, sha256_of
from assay.formats.system.progress import Progress

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 18
TOKEN = "HF_TOKEN"
"""Environment variable: what Hugging Face knows the user by."""


def fetch(source: HuggingFace | Url, final: Path, size: int, progress: Progress) -> str:
    """Fetch into ``final`` + ``.part`` and return its SHA-256.

    Raises SourceError, OSError or HTTPException; InputError for a token that must not be sent.
    """
    url, headers = address_of(source)
    part = beside(final, ".part")
    have, validator = received(final, url)
    if have != size and not transfer(url, headers, final, have, validator, size, progress):
        forget(final)
        transfer(url, headers, final, 0, "", size, progress)
    return sha256_of(part, progress)


def address_of(source: HuggingFace | Url) -> tuple[str, dict[str, str]]:
    """URL and request headers; ``HF_ENDPOINT`` and ``HF_TOKEN`` are honoured.

    Raises InputError for a token that cannot be sent, or that others could read on the way.
    """
    if isinstance(source, Url):
        return source.url, {}
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    token = bearer.key_of_environment(TOKEN)
    url = f"{endpoint}/{source.repo}/resolve/{quote(source.revision, safe='')}/{quote(source.file)}"
    if not token:
        return url, {}
    bearer.demand_private(TOKEN, url)
    return url, {"Authorization": f"Bearer {token}"}


def transfer(url: str, headers: dict[str, str], final: Path, have: int, validator: str, size: int,
             progress: Progress) -> bool:  # fmt: skip
    """Receive the bytes from ``have`` on, or all of them if the server sends all.

    False if what the server would continue is another file than the one begun: the caller starts afresh.
    """
    request = Request(url, headers={"User-Agent": "assay"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is for this host, not for where it redirects to
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        response = bearer.opener(url).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return False
        raise
    with response:
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            if not continues(response.headers, have, validator, size):
                return False
        else:
            have = 0
            begin(response.headers, url, final, size)
        receive(response, beside(final, ".part"), have, size, progress)
    return True


def received(final: Path, url: str) -> tuple[int, str]:
    """How many bytes an earlier try left from this URL, and their validator; (0, "") if they cannot be continued."""
    try:
        memory = json.loads(beside(final, ".part.json").read_text(encoding="utf-8"))
        if memory["url"] == url and memory["validator"]:
            return beside(final, ".part").stat().st_size, str(memory["validator"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # no memory, or a torn one: start afresh
    return 0, ""


def forget(final: Path) -> None:
    """Give up what an earlier try left."""
    beside(final, ".part.json").unlink(missing_ok=True)
    beside(final, ".part").unlink(missing_ok=True)


def validator_of(headers: Message) -> str:
    """A strong ETag, or else Last-Modified, or else "" (RFC 9110, 13.1.5: If-Range needs a strong validator)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def continues(headers: Message, have: int, validator: str, size: int) -> bool:
    """Whether a 206 answer goes on with the same file where the last try stopped."""
    if have == 0:
        raise SourceError("the server sent a range that was not asked for")
    return headers.get("Content-Range") == f"bytes {have}-{size - 1}/{size}" and validator_of(headers) == validator


def begin(headers: Message, url: str, final: Path, size: int) -> None:
    """Check the announced length, then empty the partial file and remember what it will hold."""
    length = headers.get("Content-Length")
    if length is not None and length != str(size):
        raise SourceError(f"the server has {length} bytes, but the catalogue says {size}")
    forget(final)
    beside(final, ".part").touch()
    memory = {"url": url, "validator": validator_of(headers)}
    beside(final, ".part.json").write_text(json.dumps(memory), encoding="utf-8")


def receive(response: IO[bytes] | Any, part: Path, have: int, size: int, progress: Progress) -> None:
    """Append the body to ``part``, never beyond ``size`` bytes; SourceError if it is longer or shorter."""
    with part.open("ab") as out:
        while chunk := response.read(CHUNK):
            if have + len(chunk) > size:
                raise SourceError(f"the server sends more than the {size} bytes that the catalogue says")
            out.write(chunk)
            have += len(chunk)
            progress(have, size, "downloading")
    if have < size:
        raise SourceError(f"the connection ended after {have} of {size} bytes")
