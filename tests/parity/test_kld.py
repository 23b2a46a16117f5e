"""llama.cpp's base files: their bytes, what they lose, hostile ones, and the divergence that is computed from them.

``llama_perplexity.kld.gz`` was written by the program itself (llama.cpp in llama-cpp-python 0.3.36), of the built-in
model: ``llama-perplexity -m goldens/builtin.gguf -f TEXT -c 8 -b 8 -t 1 --chunks 2 --kl-divergence-base FILE``.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from assay.formats import FormatError, InputError, NumericError
from assay.judging.engines_under_test import UnderTest
from assay.judging.perplexity import logits_of
from assay.parity import kld

IDS = np.array([[3, 1, 4, 1, 0, 2, 4], [2, 2, 0, 1, 3, 4, 1]])
N_VOCAB = 5  # odd: a row has a filler at its end
LOGITS = np.random.default_rng(1).normal(0, 2, (2, 3, N_VOCAB))  # positions 3, 4, 5 of 7


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "base.kld"
    with kld.writing(path, IDS, N_VOCAB) as add:
        for logits in LOGITS:
            add(logits)
    return path


TEXT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"
PERPLEXITY = 4.4574
"""What the program printed."""


@pytest.fixture
def theirs(tmp_path: Path) -> kld.Base:
    """A file that llama-perplexity wrote."""
    path = tmp_path / "llama.kld"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "llama_perplexity.kld.gz").read_bytes()))
    return kld.read(path)


def test_what_llama_perplexity_wrote_is_read(theirs: kld.Base, judged: UnderTest) -> None:
    """The tokens are ours, the perplexity is the one it printed, and its logits are those of 8-bit activations."""
    assert theirs.chunks.ravel().tolist() == judged.truth.tokenizer.encode(TEXT, special=False)[:16]
    parts = []
    for i, logits in enumerate(logits_of(judged.truth, theirs.chunks, "prefill")):
        parts.append(kld.against(theirs, i, logits))
    said = kld.figures(parts)
    assert said["ppl_truth"] == pytest.approx(PERPLEXITY, abs=1e-4)
    assert said["positions"] == 6 and said["same_top"] == 1
    assert 1e-5 < (said["mean_kld"] or 0) < 1e-3, "6e-5 when it was recorded"


def test_rows_are_rounded_as_llama_perplexity_rounds_them(theirs: kld.Base) -> None:
    """A row that it wrote, written again: the same step and levels; the sum that is taken off is another's."""
    raw, size = theirs.path.read_bytes()[kld.rows_at(theirs.chunks) :], kld.row_bytes(theirs.n_vocab)
    for i, row in enumerate([*theirs.rows(0), *theirs.rows(1)]):
        before, after = raw[i * size : (i + 1) * size], kld.encoded(row)
        assert before[8:] == after[8:]
        assert struct.unpack_from("<ff", before) == pytest.approx(struct.unpack_from("<ff", after), rel=1e-5)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - math.log(sum(math.exp(v - x.max()) for v in x))


def test_the_bytes_are_those_that_llama_cpp_documents_by_its_code(file: Path) -> None:
    raw = file.read_bytes()
    assert raw[:20] == b"_logits_" + struct.pack("<iii", 7, 5, 2)
    assert raw[20 : 20 + 56] == IDS.astype("<i4").tobytes()
    assert len(raw) == 20 + 56 + 6 * (8 + 12)
    step, least, *levels = struct.unpack_from("<ff6H", raw, 76)
    x = LOGITS[0, 0]
    assert step == np.float32((x.max() - x.min()) / 65_535)
    assert least == np.float32(log_softmax(x).min())
    assert levels[x.argmax()] == 65_535 and levels[x.argmin()] == 0 and levels[5] == 0


def test_a_row_comes_back_within_half_a_step(file: Path) -> None:
    base = kld.read(file)
    assert base.n_vocab == N_VOCAB and base.chunks.tolist() == IDS.tolist()
    for chunk in range(2):
        for row, logits in zip(base.rows(chunk), LOGITS[chunk], strict=True):
            step = (logits.max() - logits.min()) / 65_535
            assert np.abs(row - log_softmax(logits)).max() <= step / 2 + 1e-6  # f32 of 12 nats


def test_what_is_16_nats_below_the_likeliest_is_cut_off_there(tmp_path: Path) -> None:
    logits = np.array([[0.0, -15.0, -16.0, -17.0, -90.0]])
    with kld.writing(tmp_path / "x", IDS[:1, :4], N_VOCAB) as add:
        add(logits)
    (row,) = kld.read(tmp_path / "x").rows(0)
    assert row == pytest.approx([0, -15, -16, -16, -16], abs=1.3e-4)


def test_equal_logits_have_no_step(tmp_path: Path) -> None:
    with kld.writing(tmp_path / "x", IDS[:1, :4], N_VOCAB) as add:
        add(np.full((1, 5), 7.0))
    (row,) = kld.read(tmp_path / "x").rows(0)
    assert row == pytest.approx([-math.log(5)] * 5)


def test_the_divergence_is_the_one_that_llama_cpp_adds_up(tmp_path: Path) -> None:
    """Over tokens above -16 only: the last two count in no sum, though the candidate is 9,000 nats off there."""
    base = np.array([[0.0, -1.0, -2.0, -80.0, -90.0]])
    found = np.array([[0.5, -1.0, -1.0, -9000.0, -9000.0]])
    with kld.writing(tmp_path / "x", IDS[:1, :4], N_VOCAB) as add:
        add(base)
    one = kld.against(kld.read(tmp_path / "x"), 0, found)
    p, q = log_softmax(base[0]), log_softmax(found[0])
    expected = sum(math.exp(p[i]) * (p[i] - q[i]) for i in range(3))
    assert one.divergence.kl == pytest.approx([expected], abs=1e-4)
    following = IDS[0, 3]
    assert one.divergence.true_next == pytest.approx(p[following], abs=1e-4)
    assert one.divergence.found_next == pytest.approx(q[following])
    assert one.same_top.tolist() == [True]
    assert kld.surprise(found, IDS[0, :4]) == pytest.approx([-q[following]])


def test_figures(file: Path) -> None:
    base = kld.read(file)
    parts = [kld.against(base, i, LOGITS[i]) for i in range(2)]
    said = kld.figures(parts)
    assert said["positions"] == 6 and said["same_top"] == 1
    mean = said["mean_kld"]
    assert mean is not None and abs(mean) < 1.3e-4  # what rounding leaves
    swapped = kld.figures([kld.against(base, i, -LOGITS[i]) for i in range(2)])
    assert (swapped["mean_kld"] or 0) > 1 and swapped["same_top"] == 0


def broken(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


ROW = 76
HOSTILE = {
    "empty": (lambda raw: b"", "empty-file"),
    "magic": (lambda raw: broken(raw, 0, b"_logitz_"), "bad-magic"),
    "header cut": (lambda raw: raw[:15], "truncated"),
    "no context": (lambda raw: broken(raw, 8, struct.pack("<i", 0)), "bad-count"),
    "negative context": (lambda raw: broken(raw, 8, struct.pack("<i", -7)), "bad-count"),
    "huge context": (lambda raw: broken(raw, 8, struct.pack("<i", 2**31 - 1)), "bad-count"),
    "large context": (lambda raw: broken(raw, 8, struct.pack("<i", 1 << 20)), "truncated"),
    "negative vocabulary": (lambda raw: broken(raw, 12, struct.pack("<i", -1)), "bad-count"),
    "huge vocabulary": (lambda raw: broken(raw, 12, struct.pack("<i", 2**31 - 1)), "bad-count"),
    "large vocabulary": (lambda raw: broken(raw, 12, struct.pack("<i", 1 << 24)), "truncated"),
    "no chunk": (lambda raw: broken(raw, 16, struct.pack("<i", 0)), "bad-count"),
    "huge number of chunks": (lambda raw: broken(raw, 16, struct.pack("<i", 2**31 - 1)), "bad-count"),
    "many chunks": (lambda raw: broken(raw, 16, struct.pack("<i", 1 << 20)), "truncated"),
    "unfinished": (lambda raw: raw[:-20], "truncated"),
    "more than it says": (lambda raw: raw + b"\0", "bad-size"),
    "id outside": (lambda raw: broken(raw, 20, struct.pack("<i", 5)), "bad-id"),
    "negative id": (lambda raw: broken(raw, 24, struct.pack("<i", -1)), "bad-id"),
    "NaN step": (lambda raw: broken(raw, ROW, struct.pack("<f", math.nan)), "bad-row"),
    "negative step": (lambda raw: broken(raw, ROW, struct.pack("<f", -1e-4)), "bad-row"),
    "huge step": (lambda raw: broken(raw, ROW, struct.pack("<f", 3e38)), "bad-row"),
    "infinite least": (lambda raw: broken(raw, ROW + 4, struct.pack("<f", -math.inf)), "bad-row"),
    "not a distribution": (lambda raw: broken(raw, ROW + 4, struct.pack("<f", -16.0)), "bad-row"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, file: Path) -> None:
    spoil, code = HOSTILE[name]
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(FormatError) as caught:
        list(kld.read(file).rows(0))
    assert caught.value.code == code and caught.value.remedy


def test_an_unfinished_file_says_how_much_of_it_is_there(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(FormatError, match="holds 1 of them"):
        kld.read(file)


def test_a_file_that_shrinks_while_it_is_read(file: Path) -> None:
    base = kld.read(file)
    rows = base.rows(1)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(FormatError, match="file-changed"):
        list(rows)


def test_the_writer_wants_every_chunk_whole_and_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(InputError, match="1 of 2 chunks"), kld.writing(path, IDS, N_VOCAB) as add:
        add(LOGITS[0])
    with pytest.raises(InputError, match="logits of a chunk"), kld.writing(path, IDS, N_VOCAB) as add:
        add(LOGITS[0, :2])
    spoilt = LOGITS[0].copy()
    spoilt[1, 1] = np.nan
    with pytest.raises(NumericError), kld.writing(path, IDS, N_VOCAB) as add:
        add(spoilt)
    assert not list(tmp_path.iterdir()), "nothing is left of what was not finished"
