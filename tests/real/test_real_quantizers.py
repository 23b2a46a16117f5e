"""The quantisers on a whole model: every block of the 0.5B, in the type that Q4_K_M gives it, against ggml's own."""

import numpy as np
import pytest

from assay.engines import find
from assay.formats import open_model
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.quantizers import quantize
from assay.formats.quantizers.quantization_mix import chosen_types
from tests import ggml_library

ROWS = 4096


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_every_tensor_has_the_type_that_the_published_file_gives_it(name: str) -> None:
    tensors = open_model(find(name)).tensors
    chosen = chosen_types({tensor.name: tensor.shape for tensor in tensors.values()}, "Q4_K_M", by_name=True)
    published = {tensor.name: tensor.type.name for tensor in tensors.values() if len(tensor.shape) > 1}
    assert chosen == published


@pytest.mark.real
@pytest.mark.skipif(not ggml_library.AVAILABLE, reason="needs the xllamacpp wheel on x86-64")
@pytest.mark.parametrize("one_in", [6, pytest.param(1, marks=pytest.mark.real_slow)])
def test_every_block_of_the_half_billion_is_ggml_s(one_in: int) -> None:
    """Of all pieces of its matrices, or of one in six of each type."""
    file = open_model(find("qwen2.5-coder-0.5b"))
    types = chosen_types({tensor.name: tensor.shape for tensor in file.tensors.values()}, "Q4_K_M")
    same, total = dict.fromkeys(types.values(), 0), dict.fromkeys(types.values(), 0)
    pieces: dict[str, list[tuple[str, int]]] = {kind: [] for kind in same}
    for name, kind in types.items():
        pieces[kind] += [(name, start) for start in range(0, file.tensors[name].n_rows, ROWS)]
    for kind, name, start in [(kind, *piece) for kind, some in pieces.items() for piece in some[::one_in]]:
        x = file.tensors[name].rows(start, start + ROWS)
        size = BY_NAME[kind].block_bytes
        equal = quantize(kind, x).reshape(-1, size) == ggml_library.ggml_quantize(kind, x).reshape(-1, size)
        same[kind] += int(np.count_nonzero(equal.all(axis=1)))
        total[kind] += len(equal)
        file.release()
    assert same == total and all(total.values())
