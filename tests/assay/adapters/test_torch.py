"""A real ``Qwen2ForCausalLM`` made from the built-in model, judged by what docs/adapters.md shows.

Needs the extra ``torch`` and has a marker of its own: to be run whenever adapter or judge change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import assay
from assay.formats.conversion.convert import convert
from assay.goldens import BUILTIN
from assay.parity.verdict import Verdict

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
DOCS = Path(__file__).parents[3] / "docs" / "adapters.md"
TEXT = "def area(r):\n    return 3"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The built-in model as folders of f32 and of bf16."""
    where = tmp_path_factory.mktemp("folders")
    for kind in ("f32", "bf16"):
        convert(BUILTIN, where / kind, to="hf", treatment=kind.upper(), every=True)
    yield {kind: where / kind for kind in ("f32", "bf16")}


def loaded(folder: Path, dtype: str, **options: Any) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)


def engine(folder: Path, dtype: str, **options: Any) -> Any:
    from assay.adapters.torch import TransformersEngine

    return TransformersEngine(loaded(folder, dtype, **options))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "folder", "verdict"), [
    ("float32", "f32", Verdict.NOISE), ("bfloat16", "bf16", Verdict.DRIFT), ("float16", "bf16", Verdict.DRIFT),
])  # fmt: skip
def test_a_right_model_is_green(dtype: str, folder: str, verdict: Verdict, attention: str,
                                folders: dict[str, Path]) -> None:  # fmt: skip
    mine = engine(folders[folder], dtype, attn_implementation=attention)
    found = assay.judge(mine, folders[folder], TEXT, tier="full")
    assert found.verdict == verdict, str(found)
    assert [part.verdict for part in found.parts[:5]] == [verdict, verdict, Verdict.SKIPPED, verdict, verdict]
    missing = next(line for line in found.findings if "not shown" in line)
    assert missing.startswith("not shown: q_proj, k_proj, v_proj;")
    assert not any("declares" in line for line in found.findings)
    if dtype == "float32":
        assert found.stages and found.stages.untouched == 0, "hooks that change nothing change nothing"


def test_dtype_and_declaration_must_fit(folders: dict[str, Path]) -> None:
    from assay.adapters.torch import TransformersEngine

    silent = TransformersEngine(loaded(folders["bf16"], "bfloat16"), declaration=assay.Declaration())
    assert assay.bisect(silent, folders["bf16"], TEXT).verdict == Verdict.BUG


FAULTS = {
    "rope": ("k_rope", "rotary_emb.inv_freq"),
    "norm": ("ffn_norm", "layers.1.post_attention_layernorm.variance_epsilon"),
    "bias": ("v_bias", "layers.2.self_attn.v_proj.bias"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name: str, folders: dict[str, Path]) -> None:
    stage, path = FAULTS[name]
    mine = engine(folders["f32"], "float32")
    owner, _, attribute = path.rpartition(".")
    module = mine.model.model.get_submodule(owner)
    if name == "norm":
        setattr(module, attribute, 1e-3)
    else:
        getattr(module, attribute).data.mul_(1.01)
    found = assay.bisect(mine, folders["f32"], TEXT)
    assert found.verdict == Verdict.BUG and found.site is not None
    assert found.site[0] in (stage, "q_rope") and (name == "rope" or found.site[1] == int(path.split(".")[1]))


def test_the_example_of_the_docs(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """30 lines: f32, bf16, and a module of the user's own with a fault in it."""
    code = re.search(r"<!-- torch -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code and len(code[1].splitlines()) <= 30
    exec(code[1], {"folder": folders["f32"]})
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line[0] != " "] == ["NOISE", "DRIFT", "BUG"]
    assert "ffn_swiglu of layer 1: its local error is" in said
