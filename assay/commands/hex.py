"""``assay hex``: the bytes of a file, each field by name."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.text import Text

from assay.commands import options, tables
from assay.formats import InputError
from assay.formats.blocks.fields import FIELDS
from assay.formats.containers.base import Container
from assay.formats.inspection.byte_map import PADDING, spans
from assay.formats.inspection.byte_map_tensor import Block, block_at
from assay.formats.inspection.span import Span

LENGTH, NUMBERS_LENGTH, MOST = 256, 64, 1 << 20
LINE = 16
VALUES_SHOWN = 6
STYLES = ("cyan", "green", "magenta", "yellow")


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    tensor: Annotated[
        str | None, typer.Option(help="Dump this tensor's data; --offset then counts from its start.")
    ] = None,
    block: Annotated[int | None, typer.Option(min=0, help="With --tensor: the block to decode field by field.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="First byte to show.")] = 0,
    length: Annotated[
        int | None, typer.Option(min=1, max=MOST, help=f"Bytes to show; by default {LENGTH}, or one block.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Dump bytes with the name and the meaning of each field: header, metadata, tensor infos, and blocks of a tensor.

    Below a block stand the values it decodes to, group by group. e5..8 are elements 5 to 8 of the block. Of a split
    GGUF it is the one file that you name.
    """
    container = options.open_any(model, alone=True)
    start, stop = window(container, tensor, block, offset, length)
    found = list(spans(container, start, stop))
    if as_json:
        typer.echo(json.dumps(tables.finite(facts_of(container, start, stop, found)), ensure_ascii=False))
        return
    where = f"bytes {start:,} to {stop - 1:,} of {container.size:,}"
    tables.line((f"{container.path} ({container.format}): {where}", "bold"))
    show(container, found, start, stop)


def window(container: Container, tensor: str | None, block: int | None, offset: int,
           length: int | None) -> tuple[int, int]:  # fmt: skip
    """The bytes start:stop of the file that are asked for; InputError if there are none such."""
    begin, end = 0, container.size
    if tensor is None:
        if block is not None:
            raise InputError("the tensor of the block is not named", where="--block", remedy="Name it with --tensor")
    else:
        if tensor not in container.tensors:
            raise InputError(f"there is no tensor {tensor!r}", where="--tensor",
                             remedy="'assay tensors' lists their names")  # fmt: skip
        info = container.tensors[tensor]
        begin, end = info.offset, info.offset + info.nbytes
        blocks = info.nbytes // info.type.block_bytes
        if block is not None and not block < blocks:
            raise InputError(f"the tensor has blocks 0 to {blocks - 1}, not {block}", where="--block",
                             remedy="Choose one of them")  # fmt: skip
        begin += (block or 0) * info.type.block_bytes
        whole = info.type.block_bytes if info.type.name in FIELDS else NUMBERS_LENGTH
        length = length or whole
    start = begin + offset
    if start >= end:
        raise InputError(f"byte {offset} is beyond the end: there are {end - begin} bytes", where="--offset",
                         remedy="Choose a smaller one")  # fmt: skip
    return start, min(start + (length or LENGTH), end)


def facts_of(container: Container, start: int, stop: int, found: list[Span]) -> dict[str, Any]:
    """The JSON object."""
    fields = []
    for span in found:
        first, last = max(span.offset, start), min(span.stop, stop)
        place = {"tensor": span.tensor, "block": span.block} if span.tensor else {}
        fields.append({"offset": span.offset, "length": span.length, "field": span.field, "value": span.value, **place,
                       "bytes": bytes_of(container, first, last).hex()})  # fmt: skip
    return {"model": options.container_of(container), "offset": start, "length": stop - start, "fields": fields,
            "blocks": [facts_of_block(one) for one in blocks_in(container, found)]}  # fmt: skip


def facts_of_block(block: Block) -> dict[str, Any]:
    facts = {key: value for key, value in vars(block).items() if key != "values"}
    return {**facts, "values": block.values.tolist()}


def blocks_in(container: Container, found: list[Span]) -> list[Block]:
    """The blocks that the spans belong to."""
    places = dict.fromkeys((span.tensor, span.block) for span in found if span.block is not None)
    blocks = [block_at(container, name, index) for name, index in places if index is not None]
    return [block for block in blocks if block is not None]


def bytes_of(container: Container, start: int, stop: int) -> bytes:
    if container.map is None:
        raise InputError("a folder has no bytes of its own", where=str(container.path),
                         remedy="Give one of its safetensors files")  # fmt: skip
    return container.map[start:stop]


def show(container: Container, found: list[Span], start: int, stop: int) -> None:
    """Field by field; the blocks of a tensor one by one, each with what it decodes to."""
    groups: dict[tuple[str, int | None], list[Span]] = {}
    for span in found:
        groups.setdefault((span.tensor, span.block), []).append(span)
    for (name, index), group in groups.items():
        block = None if index is None else block_at(container, name, index)
        if block is not None:
            last = block.first + len(block.values) - 1
            tables.line()
            tables.line((f"{name}  {block.type}  block {index:,} of {block.n_blocks:,}", "bold"),
                        f"  row {block.row:,}, elements {block.first:,} to {last:,}")  # fmt: skip
        elif name:
            info = container.tensors[name]
            tables.line()
            tables.line((f"{name}  {info.type.name}  {' × '.join(map(str, info.shape))}", "bold"))
        show_bytes(container, group, start, stop)
        if block is not None:
            show_values(block)


def show_bytes(container: Container, group: list[Span], start: int, stop: int) -> None:
    """Offset, bytes, field, meaning; 16 bytes a line, a new field on a new line."""
    rows, style, before = [], 0, None
    for span in group:
        style, before = style + (span.field != before), span.field
        colour = "dim" if span.field == PADDING else STYLES[style % len(STYLES)]
        for i, at in enumerate(range(max(span.offset, start), min(span.stop, stop), LINE)):
            raw = bytes_of(container, at, min(at + LINE, span.stop, stop))
            said = (span.field, str(span.value)) if i == 0 else ("", "")
            hexed = raw.hex(" ").ljust(3 * LINE - 1)
            rows.append((Text(f"{at:08x}", "dim"), Text(hexed, colour), Text(said[0], colour), Text(said[1])))
    tables.grid(rows, fold_from=2)


def show_values(block: Block) -> None:
    """A line a group: its scale, its min, its first values."""
    groups = max(len(block.scales), 1)
    size = len(block.values) // groups
    for i in range(groups):
        values = block.values[i * size : (i + 1) * size]
        scale = f"  scale {block.scales[i]:>4}" if block.scales else ""
        least = f"  min {block.mins[i]:>3}" if block.mins else ""
        head = " ".join(f"{value:>10.4g}" for value in values[:VALUES_SHOWN])
        tables.line((f"  = e{i * size}..{(i + 1) * size - 1}".ljust(14), "bold"), f"{scale}{least}  {head} ...")
