"""llama.cpp as an external engine: its own server, out of the ``xllamacpp`` wheel (extra ``peers``).

Several prompts of one request are put in the queue together, so all sequences are read in one batch and then go on in
step. A server holds ``n_ctx`` tokens over all its slots.
"""

from __future__ import annotations

import sys

from assay.benchmark.machine import n_threads
from assay.peers.process import announce, wait_for_the_end


def serve(model: str, context: int, slots: int) -> None:
    """Load ``model`` with ``slots`` sequences of ``context`` tokens each, and answer until the end."""
    import xllamacpp

    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = model
    params.n_ctx, params.n_parallel, params.kv_unified = context * slots, slots, False
    params.cache_ram_mib = 0  # no copies of earlier prompts: they would cost time and memory that nobody asked for
    params.port, params.hostnames = 0, ["127.0.0.1"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads()
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    announce(server.listening_address)
    wait_for_the_end()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
