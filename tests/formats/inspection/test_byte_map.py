"""The map of a file: every byte has one name, and the names tell the truth."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from assay.formats import blocks
from assay.formats.blocks.fields import FIELDS, meaning
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import Container
from assay.formats.containers.opening import open_container
from assay.formats.inspection.byte_map import PADDING, sections, spans
from assay.formats.inspection.byte_map_tensor import block_at
from assay.formats.inspection.span import Span
from assay.formats.inspection.stats import stats_of
from assay.goldens import BUILTIN
from tests import apr_builder, gguf_files
from tests.model_builder import Shape, build
from tests.random_blocks import HALVES

UP = "blk.0.ffn_up.weight"


def files(tmp_path: Path) -> list[Path]:
    shape = Shape(hidden=256, types={"ffn_up": ["Q4_K"], "ffn_gate": ["Q6_K"]})
    raw = tmp_path / "raw.gguf"
    raw.write_bytes(gguf_files.small_file())
    return [build(tmp_path / "a.gguf", shape), apr_builder.build(tmp_path / "b.apr", shape), raw, BUILTIN]


@pytest.fixture(params=range(4))
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Container:
    return open_container(files(tmp_path)[request.param])


def test_sections_cover_the_file_once(container: Container) -> None:
    found = sections(container)
    assert [found[0].start, found[-1].stop] == [0, container.size]
    assert all(before.stop == after.start for before, after in pairwise(found))
    names = [section.name for section in found if section.name not in (PADDING, "tensor data")]
    assert names == ["header", "metadata", "tensor infos", *(["footer"] if container.format == "apr" else [])]
    data = sum(section.nbytes for section in found if section.name == "tensor data")
    assert data == sum(info.nbytes for info in container.tensors.values())


def test_spans_cover_the_file_once(container: Container) -> None:
    at = 0
    for span in spans(container, 0, container.size):
        assert span.offset == at
        assert span.length > 0
        at = span.stop
    assert at == container.size


def test_spans_of_any_window_are_those_of_the_file(container: Container) -> None:
    whole = list(spans(container, 0, container.size))
    rng = np.random.default_rng(0)
    for start in rng.integers(0, container.size, 40).tolist():
        stop = min(start + int(rng.integers(1, 300)), container.size)
        wanted = [span for span in whole if span.offset < stop and start < span.stop]
        found = list(spans(container, start, stop))
        cut = [span for span in found if span.field != PADDING]
        assert cut == [span for span in wanted if span.field != PADDING]
        assert found[0].offset <= start
        assert found[-1].stop >= stop


def test_numbers_in_the_header_are_what_the_bytes_say(tmp_path: Path) -> None:
    path = build(tmp_path / "a.gguf")
    data = path.read_bytes()
    container = open_container(path)
    first = next(iter(container.tensors.values())).offset
    found = {span.field: span for span in spans(container, 0, first)}
    for span in found.values():
        if isinstance(span.value, int) and span.length in (4, 8):
            assert struct.unpack_from({4: "<I", 8: "<Q"}[span.length], data, span.offset)[0] == span.value
    assert found["header.n_kv"].value == len(container.metadata)
    assert found["header.n_tensors"].value == len(container.tensors)
    names = [span.value for field, span in found.items() if field.startswith("tensor[") and field.endswith("].name")]
    assert names == list(container.tensors)
    keys = [span.value for field, span in found.items() if field.startswith("kv[") and field.endswith("].key")]
    assert keys == list(container.metadata)


def test_numbers_in_an_apr_index_are_what_the_reader_says(tmp_path: Path) -> None:
    container = open_container(apr_builder.build(tmp_path / "b.apr"))
    found = {span.field: span for span in spans(container, 0, container.size)}
    for i, info in enumerate(container.tensors.values()):
        assert found[f"tensor[{i}].name"].value == info.name
        assert found[f"tensor[{i}].size"].value == info.nbytes
        assert [found[f"tensor[{i}].dims[{axis}]"].value for axis in range(len(info.shape))] == list(info.shape)
    assert found["header.magic"].offset == 0
    assert found["header.checksum"].offset == 40
    assert found["footer.checksum"].stop == container.size


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_fill_their_block_and_name_its_halves(kind: str) -> None:
    fields = FIELDS[kind]
    assert sum(field.length for field in fields) == BY_NAME[kind].block_bytes
    assert tuple(field.offset for field in fields if field.kind == "f16") == tuple(sorted(HALVES[kind]))
    assert next(field.offset for field in fields if field.name == "d") == HALVES[kind][0]


def test_every_type_that_is_taken_apart_has_its_fields() -> None:
    assert set(FIELDS) == set(blocks.DECODABLE) - {"F32", "F16", "BF16"}


@pytest.mark.parametrize("kind", FIELDS)
def test_packed_elements_are_where_the_dump_says(kind: str) -> None:
    """Flip one byte of a packed field: just the elements that the dump names for it change."""
    rng = np.random.default_rng(3)
    for field in FIELDS[kind]:
        if field.kind not in ("packed", "i8") or field.name == "scales":
            continue
        raw = rng.integers(0, 256, BY_NAME[kind].block_bytes, dtype=np.uint8)
        for at in range(field.length):
            other = raw.copy()
            other[field.offset + at] ^= 0xFF
            changed = np.flatnonzero(blocks.unpack(kind, raw).q.ravel() != blocks.unpack(kind, other).q.ravel())
            if field.kind == "i8":
                assert changed.tolist() == [at]
                continue
            assert field.planes is not None
            bits, run = field.planes
            said = [at // run * (8 // bits) * run + at % run + plane * run for plane in range(8 // bits)]
            assert changed.tolist() == sorted(said)
            assert f"e{said[0]}.." in meaning(field, b"", at, at + 1)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0", "Q8_0"])
def test_a_block_decodes_as_the_gguf_package_has_it(kind: str, tmp_path: Path) -> None:
    container = open_container(build(tmp_path / "a.gguf", Shape(hidden=512, types={"ffn_up": [kind]})))
    whole = quants.dequantize(container.rows(UP), GGMLQuantizationType[kind])
    size = BY_NAME[kind].block_elements
    for index in (0, 1, 512 // size, 48 * 512 // size - 1):
        block = block_at(container, UP, index)
        assert block is not None
        assert np.array_equal(block.values, whole[block.row, block.first : block.first + size])
        assert block.offset == container.tensors[UP].offset + index * BY_NAME[kind].block_bytes


def test_a_row_that_ends_in_padding(tmp_path: Path) -> None:
    """48 columns in one block of 256: an APR file fills the row up, and the rest must not count."""
    name = "model.layers.0.mlp.down_proj.weight"
    tensor, values = apr_builder.padded_matrix(name, 32, 48, "Q4_K", seed=3)
    container = open_container(apr_builder.build(tmp_path / "a.apr", tensors={"blk.0.ffn_down.weight": tensor}))
    found = stats_of(container, name).values
    assert found is not None
    assert (found.n, found.min, found.max) == (values.size, values.min(), values.max())
    block = block_at(container, name, 5)
    assert block is not None
    assert (block.row, block.first) == (5, 0)
    assert np.array_equal(block.values[:48], values[5])


def test_numbers_without_blocks_keep_to_their_row(tmp_path: Path) -> None:
    container = open_container(build(tmp_path / "a.gguf", Shape(hidden=32, ffn=10)))
    name = "blk.0.ffn_down.weight"
    info = container.tensors[name]
    found: list[Span] = list(spans(container, info.offset, info.offset + info.nbytes))
    assert [span.field for span in found[:4]] == ["[0, 0..3]", "[0, 4..7]", "[0, 8..9]", "[1, 0..3]"]
    values = [float(word) for span in found for word in span.value.split()]
    assert np.allclose(values, container.raw(name).view("<f4"), rtol=1e-4)  # five digits are shown
