"""The one way in: ``open_model(path)`` turns a file into a :class:`ModelFile`, whatever container holds it.

Opening reads the header, the hyper-parameters and the vocabulary, and checks that the file holds exactly the
tensors the model needs, in the shapes it needs. No weight is touched: a tensor is decoded when its rows are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from assay.formats import blocks
from assay.formats.containers.apr import Apr
from assay.formats.containers.base import Container, StorageType, TensorInfo
from assay.formats.containers.cursor import shown
from assay.formats.containers.gguf import GGUF
from assay.formats.containers.hf_folder import HFFolder
from assay.formats.containers.opening import open_container
from assay.formats.contract.arguments import checked
from assay.formats.contract.config import Config, tensor_shapes
from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import Vocabulary
from assay.formats.errors import FormatError, InputError, ModelError
from assay.formats.qwen2 import from_apr as apr_qwen2
from assay.formats.qwen2 import from_gguf as gguf_qwen2
from assay.formats.qwen2 import from_hf as hf_qwen2
from assay.formats.qwen2.description import ARCHITECTURE, Qwen2
from assay.formats.qwen2.doubts import chat_doubts, doubts
from assay.formats.qwen2.token_bound import least_tokens
from assay.formats.system.atomic_file import sha256_of_files

MAX_TOKENS = 128
"""Generated where nobody says how many."""
NAMED_AT_MOST = 4  # culprits listed in one error line


@dataclass(frozen=True)
class Tensor:
    """A named array that is still in its storage format.

    ``raw(rows)`` gives uint8 [n_rows, row_bytes]: the blocks of each row side by side, as the file holds them. A row
    may end in padding, where a file fills up its last block: ``row_elements`` counts it, ``rows`` leaves it out.
    """

    name: str
    type: StorageType
    """Of what ``raw`` gives."""
    shape: tuple[int, ...]
    path: Path
    read: Callable[[slice], np.ndarray] = field(repr=False)
    nbytes: int = 0
    """Bytes in the file."""
    stored: str = ""
    """Name of the type in the file, where only that format has it and ``raw`` gives another."""

    @property
    def n_rows(self) -> int:
        """Rows along the last axis; a vector counts as one."""
        return prod(self.shape[:-1])

    @property
    def row_elements(self) -> int:
        """Elements that the blocks of a row hold: shape[-1], or more."""
        row, block = self.shape[-1] if self.shape else 1, self.type.block_elements
        return -(-row // block) * block

    @property
    def row_bytes(self) -> int:
        return self.row_elements // self.type.block_elements * self.type.block_bytes

    @checked
    def raw(self, rows: slice = slice(None)) -> np.ndarray:
        """The bytes, uint8 [n_rows, row_bytes], read-only."""
        return self.read(rows)

    @checked
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` decoded to f32 [stop - start, shape[-1]].

        Raises FormatError if a block scale (or an unquantised value) is NaN or infinite: one bad scale turns
        every activation after it into NaN, and an argmax over NaN into token 0.
        """
        raw = self.raw(slice(start, stop))
        self._require_finite(raw)
        return blocks.dequantize(self.type.name, raw)[:, : self.shape[-1] if self.shape else 1]

    def decode(self) -> np.ndarray:
        """The whole tensor, f32, in its own shape."""
        return self.rows(0, self.n_rows).reshape(self.shape)

    @checked
    def check_finite(self, rows: slice = slice(None)) -> None:
        """Raise FormatError if a scale in ``rows`` is NaN or infinite (the method ``rows`` does so by itself)."""
        self._require_finite(self.raw(rows))

    def _require_finite(self, raw: np.ndarray) -> None:
        if not blocks.finite(self.type.name, raw):
            raise FormatError("non-finite", f"a {self.type.name} scale or value is NaN or infinite",
                              path=self.path, field=f"tensor {self.name!r}")  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """A Qwen2 model as its file states it. Engines see this, never the container."""

    path: Path
    format: str
    architecture: str
    name: str
    config: Config
    vocabulary: Vocabulary
    chat_template: str | None
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, object]
    size: int
    release: Callable[[], None] = field(repr=False)
    """Gives the memory of file pages that were read back to the system; they are read again when needed."""
    warnings: tuple[str, ...] = ()
    """What a user must know who goes on with it, one line each; ``chat_doubts`` among them."""
    chat_doubts: tuple[str, ...] = ()
    """Why a chat with it is not what the model was trained for; empty if nothing is known."""
    files: tuple[Path, ...] = ()
    """The files that hold it: one, unless it is a folder or split."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file, hexadecimal; read on first use (about 1 s a gigabyte).

        Of a folder: that of the lines that ``sha256sum`` prints for the files that were read, in the order of names.
        """
        return sha256_of_files(self.files or (self.path,))

    @checked
    def check_known(self, ids: Sequence[int]) -> None:
        """Raise InputError unless ``ids`` are one or more rows of the embedding, of any number."""
        if not len(ids):
            raise InputError("there are no tokens to read", where="prompt", remedy="Give at least one token")
        if bad := [i for i in ids if not 0 <= i < self.config.n_vocab]:
            raise InputError(f"token id {bad[0]} is outside the vocabulary of {self.config.n_vocab}",
                             where="prompt", remedy="Encode the prompt with this model's tokenizer")  # fmt: skip

    @checked
    def check_ids(self, ids: Sequence[int], *, n_past: int = 0, max_tokens: int = 0) -> None:
        """Raise InputError unless ``ids`` are one or more embedding rows that fit the context.

        ``n_past`` tokens before them and ``max_tokens`` after them must fit as well: a prompt is never cut.
        """
        self.check_known(ids)
        if max_tokens < 0:
            raise InputError(f"{max_tokens} tokens cannot be generated", where="--max-tokens", remedy="Give 0 or more")
        n_read, context = n_past + len(ids), self.config.context_length
        if n_read + max_tokens > context:
            more = f" and {max_tokens} to generate" if max_tokens else ""
            raise InputError(f"{n_read} tokens of prompt{more} exceed the context of {context}", where="prompt",
                             remedy=f"Shorten the prompt{' or --max-tokens' if more else ''}; nothing is cut silently")

    @checked
    def room_after(self, ids: Sequence[int], max_tokens: int | None = None) -> int:
        """How many tokens to generate after ``ids``: ``max_tokens``, which must fit the context with them.

        None: MAX_TOKENS, or what is left of the context if that is less. Raises InputError as :func:`check_ids`, and
        where nothing is left.
        """
        if max_tokens is not None:
            self.check_ids(ids, max_tokens=max_tokens)
            return max_tokens
        return self.room_left(ids, MAX_TOKENS)

    @checked
    def room_left(self, ids: Sequence[int], most: int) -> int:
        """``most``, or what is left of the context after ``ids`` if that is less; InputError where nothing is left."""
        self.check_known(ids)
        context = self.config.context_length
        if len(ids) >= context:
            raise InputError(f"{len(ids)} tokens of prompt leave no room for an answer in the context of {context}",
                             where="prompt", remedy="Shorten the prompt; nothing is cut silently")  # fmt: skip
        return min(most, context - len(ids))

    def check_text(self, prompt: str | Prompt, most: int | None = None) -> None:
        """Raise InputError for a text that is sure to have more than ``most`` tokens (None: those of the context).

        To be asked before it is encoded, which takes a long time then; ``check_ids`` knows the exact number.
        """
        text = prompt if isinstance(prompt, str) else prompt.text
        most = self.config.context_length if most is None else most
        if len(text) > most and (n := least_tokens(text, self.vocabulary)) > most:
            raise InputError(f"{len(text):,} characters are at least {n:,} tokens, and no more than {most:,} fit",
                             where="prompt", remedy="Shorten it; nothing is cut silently")  # fmt: skip

    def census(self) -> dict[str, int]:
        """Number of tensors of each storage type, e.g. ``{"Q4_K": 168, "F32": 141}``."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = tensor.stored or tensor.type.name
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@checked
def open_model(path: str | Path) -> ModelFile:
    """Open a model file (GGUF v2 or v3, APR v2) or Hugging Face folder (Qwen2 architecture) and check what it promises.

    Raises InputError if there is no such file, FormatError if the bytes are not a well-formed container, ModelError if
    they are but do not hold a model that can be run correctly: unknown architecture, implausible hyper-parameters,
    missing, unexpected or wrongly shaped tensors, a vocabulary that does not fit.
    """
    return model_in(open_container(path))


def model_in(container: Container) -> ModelFile:
    """The model in a container that is open already; raises as :func:`open_model`."""
    model = described(container)
    tensors = {name: tensor_of(container, info, name) for name, info in model.tensors.items()}
    check_tensors(tensors, model.config, where=str(container.path))
    of_chats = tuple(chat_doubts(model.vocabulary, model.chat_template))
    return ModelFile(
        path=container.path,
        format=container.format,
        architecture=ARCHITECTURE,
        name=model.name,
        config=model.config,
        vocabulary=model.vocabulary,
        chat_template=model.chat_template,
        tensors=tensors,
        metadata=container.metadata,
        size=container.size,
        release=container.release,
        warnings=(*container.warnings, *model.warnings, *doubts(model.config, model.vocabulary), *of_chats),
        chat_doubts=of_chats,
        files=container.parts,
    )


def described(container: Container) -> Qwen2:
    """What the container says about its Qwen2 model; one branch for each format that can hold one."""
    if isinstance(container, GGUF):
        return gguf_qwen2.qwen2_of(container)
    if isinstance(container, Apr):
        return apr_qwen2.qwen2_of(container)
    if isinstance(container, HFFolder):
        return hf_qwen2.qwen2_of(container)
    raise ModelError(f"a file of format {container.format!r} holds no model", where=str(container.path),
                     remedy="Give the folder that it lies in: config.json and tokenizer.json belong to it")  # fmt: skip


def tensor_of(container: Container, info: TensorInfo, name: str | None = None) -> Tensor:
    """A tensor of any container, to be decoded by rows; called ``name`` if it is not to keep the file's."""
    kind = container.row_type(info.name)
    return Tensor(name or info.name, kind, info.shape, container.path, lambda rows: container.rows(info.name, rows),
                  nbytes=info.nbytes, stored="" if kind is info.type else info.type.name)  # fmt: skip


def check_tensors(tensors: Mapping[str, Tensor], config: Config, *, where: str) -> None:
    """Raise ModelError unless ``tensors`` are exactly those of ``tensor_shapes(config)``, decodable.

    A tensor too many is as fatal as one too few: a converter that renames a bias loses it, and a model
    without its biases still produces fluent nonsense.
    """
    expected = tensor_shapes(config)
    if missing := [name for name in expected if name not in tensors]:
        raise ModelError(f"{len(missing)} tensors are missing: {_some(missing)}", where=where,
                         remedy="The conversion lost them; convert again from the original")  # fmt: skip
    if surplus := [name for name in tensors if name not in expected]:
        raise ModelError(f"{len(surplus)} tensors are not part of a Qwen2 model: {_some([*map(shown, surplus)])}",
                         where=where,
                         remedy="Assay runs plain Qwen2 only; without them it would not be this model")  # fmt: skip
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise ModelError(f"{len(wrong)} tensors have the wrong shape: {_some(wrong)}", where=where,
                         remedy="The hyper-parameters and the weights are not of one model; convert again from "
                         "the original")  # fmt: skip
    foreign = [f"{t.name} ({t.type.name})" for t in tensors.values() if t.type.name not in blocks.DECODABLE]
    if foreign:
        raise ModelError(f"{len(foreign)} tensors are stored in types Assay cannot decode: {_some(foreign)}",
                         where=where, remedy=f"It decodes {', '.join(blocks.DECODABLE)}")  # fmt: skip


def _some(names: list[str]) -> str:
    first = ", ".join(names[:NAMED_AT_MOST])
    return first if len(names) <= NAMED_AT_MOST else f"{first} and {len(names) - NAMED_AT_MOST} more"
