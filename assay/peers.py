"""Other engines to be measured beside ours, each in a process of its own: ``python -m assay.peers llama.cpp MODEL``.

llama.cpp comes as the ``xllamacpp`` wheel (extra ``peers``) and is asked over its own HTTP interface on this machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from formats import InputError

PEERS = ("llama.cpp",)
N_THREADS = 2


class Peer:
    """A running peer: ``generate`` returns its greedy ids and tokens a second."""

    def __init__(self, address: str) -> None:
        self.address = address

    def generate(self, ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
        """``{"ids", "prefill_tok_s", "decode_tok_s"}`` for a greedy run after ``ids``, nothing cached."""
        body = {"prompt": list(ids), "n_predict": max_tokens, "temperature": 0.0, "top_k": 1, "ignore_eos": True,
                "cache_prompt": False, "return_tokens": True}  # fmt: skip
        request = urllib.request.Request(f"{self.address}/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=600) as answer:
            result = json.load(answer)
        timings = result["timings"]
        return {"ids": result["tokens"], "prefill_tok_s": timings["prompt_per_second"],
                "decode_tok_s": timings["predicted_per_second"]}  # fmt: skip


@contextmanager
def running(name: str, model: Path, context: int) -> Iterator[Peer]:
    """Start peer ``name`` on ``model`` with room for ``context`` tokens; ended when the block is left.

    Raises InputError for an unknown peer, or one that is not installed or does not start.
    """
    if name not in PEERS:
        raise InputError(f"there is no peer {name!r}", where="--vs", remedy=f"Choose one of {', '.join(PEERS)}")
    if find_spec("xllamacpp") is None:
        raise InputError("llama.cpp is not installed", where="--vs", remedy="pip install 'assay[peers]'")
    command = [sys.executable, "-m", "assay.peers", name, str(model), str(context)]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=nowhere)
    try:
        assert process.stdout is not None
        lines = (line.strip() for line in process.stdout)
        address = next((line.removeprefix("ready ") for line in lines if line.startswith("ready ")), None)
        if address is None:
            raise InputError(f"{name} could not load the model", where="--vs", remedy="Try the file with it directly")
        yield Peer(address)
    finally:
        process.kill()
        process.wait()


def serve(model: str, context: int) -> None:
    """Load ``model`` into llama.cpp, say ``ready ADDRESS``, and stay until standard input closes."""
    import xllamacpp

    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = model
    params.n_ctx, params.n_parallel = context, 1
    params.port, params.hostnames = 0, ["127.0.0.1"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = N_THREADS
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    print(f"\nready {server.listening_address}", flush=True)
    while sys.stdin.read(1):
        time.sleep(0.1)


if __name__ == "__main__":
    serve(sys.argv[2], int(sys.argv[3]))
