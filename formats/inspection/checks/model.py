"""Checks on what the file says of its model: hyper-parameters that a real one has, and exactly its tensors."""

from __future__ import annotations

from collections.abc import Iterator

from assay.formats import blocks
from assay.formats.containers.base import Container
from assay.formats.contract.config import tensor_shapes
from assay.formats.inspection.checks.check import Check, judged, skipped
from assay.formats.qwen2.description import Qwen2
from assay.formats.qwen2.doubts import LEAST_THETA, SHORT_CONTEXT, lost_theta

EPS = (1e-7, 1e-5)
CONTEXT = (128, 1 << 20)

_LIMITS = {
    "model.rope-theta": f">= {LEAST_THETA:g}, or a context of at most {SHORT_CONTEXT}",
    "model.rms-norm-eps": f"{EPS[0]:g} .. {EPS[1]:g}",
    "model.context-length": f"{CONTEXT[0]} .. {CONTEXT[1]}",
    "model.tensors.missing": "0",
    "model.tensors.unexpected": "0",
    "model.tensors.shapes": "0 wrong",
}


def checks(container: Container, qwen2: Qwen2 | None, refusal: str) -> Iterator[Check]:
    yield judged("model.qwen2", refusal or "qwen2", "a Qwen2 model with plausible hyper-parameters",
                 "what the file says must be read without a guess", fail=[refusal] if refusal else [])  # fmt: skip
    if qwen2 is None:
        for name, limit in _LIMITS.items():
            yield skipped(name, limit, "the file describes no Qwen2 model")
        return
    yield _theta(qwen2)
    low, high = EPS
    eps = qwen2.config.rms_norm_eps
    yield judged("model.rms-norm-eps", eps, _LIMITS["model.rms-norm-eps"], "Qwen2 has 1e-6, QwQ 1e-5",
                 warn=[] if low * 0.999 <= eps <= high * 1.001 else [f"{eps:g}"])  # fmt: skip
    length = qwen2.config.context_length
    yield judged("model.context-length", length, _LIMITS["model.context-length"],
                 "fewer is not enough for a chat prompt, more no Qwen2 was trained for",
                 warn=[] if CONTEXT[0] <= length <= CONTEXT[1] else [str(length)])  # fmt: skip
    yield from _tensors(container, qwen2)


def _theta(qwen2: Qwen2) -> Check:
    """10000 is the value that a converter puts in when it lost the file's. It is genuine only in models of a short
    context, as Qwen2.5-Math and the built-in one, and in what was distilled into the former: DeepSeek-R1-Distill-Qwen
    says so in its config, and claims a long context all the same."""
    theta = qwen2.config.rope_theta
    low = [f"{theta:g}"] if lost_theta(qwen2.config) else []
    distilled = any(word in qwen2.name.lower() for word in ("math", "distill"))
    return judged("model.rope-theta", theta, _LIMITS["model.rope-theta"],
                  "Qwen2 has 1e6; 1e4 is a converter's default, right for ten tokens and wrong from there "
                  "(genuine for short contexts, and in distillates of the Math models, which warn)",
                  fail=[] if distilled else low, warn=low if distilled else [])  # fmt: skip


def _tensors(container: Container, qwen2: Qwen2) -> Iterator[Check]:
    expected = tensor_shapes(qwen2.config)
    missing = [name for name in expected if name not in qwen2.tensors]
    lost = sum(name.endswith(".bias") for name in missing)
    why = f"{lost} of them biases: without these the text is fluent nonsense" if lost else "12 a layer, plus 2 or 3"
    yield judged("model.tensors.missing", len(missing), _LIMITS["model.tensors.missing"], why, fail=missing)
    surplus = [name for name in qwen2.tensors if name not in expected]
    yield judged("model.tensors.unexpected", len(surplus), _LIMITS["model.tensors.unexpected"],
                 "running without it would not be this model", fail=surplus)  # fmt: skip
    shapes = {name: info.shape for name, info in qwen2.tensors.items() if name in expected}
    wrong = [f"{n}: {list(shape)}, not {list(expected[n])}" for n, shape in shapes.items() if shape != expected[n]]
    types = {name: container.row_type(info.name).name for name, info in qwen2.tensors.items()}
    foreign = [f"{name}: {kind}" for name, kind in types.items() if kind not in blocks.DECODABLE]
    yield judged("model.tensors.shapes", len(wrong) + len(foreign), _LIMITS["model.tensors.shapes"],
                 "shapes follow from the hyper-parameters, types must be decodable",
                 fail=[*wrong, *foreign])  # fmt: skip
