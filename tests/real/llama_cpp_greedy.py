"""Greedy token ids of llama.cpp, the independent engine: ``python llama_cpp_greedy.py MODEL IDS_JSON N_TOKENS``."""

import json
import sys
import urllib.request

import xllamacpp


def greedy(path: str, ids: list[int], n_tokens: int) -> list[int]:
    """Ids after ``ids``, by llama.cpp's own server on this machine, two threads, always the likeliest token."""
    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup = 2048, 1, False
    params.port, params.hostnames = 0, ["127.0.0.1"]
    params.cpuparams.n_threads = 2
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    body = {"prompt": ids, "n_predict": n_tokens, "temperature": 0.0, "top_k": 1, "return_tokens": True}
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["tokens"]


if __name__ == "__main__":
    print(json.dumps(greedy(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))))
