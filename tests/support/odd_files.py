"""Changes of valid files as damage, other programs and attackers make them, for Hypothesis."""

import json
from typing import Any

from hypothesis import strategies as st

RAW = {
    "@1e999@": "1e999",
    "@-1e999@": "-1e999",
    "@NaN@": "NaN",
    "@Infinity@": "Infinity",
    "@deep list@": "[" * 3000 + "]" * 3000,
    "@deep object@": '{"a":' * 3000 + "1" + "}" * 3000,
    "@digits@": "9" * 5000,
    "@surrogate@": '"\\ud800"',
}
"""JSON that Python does not write, by the text that stands for it."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e300, "", "x", "16000",
    "../../x", "/etc/passwd", "a" * 300, "\0", "\u2028", [], {}, [[]], [1], ["x"], [None], {"x": 1}, {"": None}, *RAW,
)  # fmt: skip
WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
ANY = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


def to_json(value: Any) -> str:
    """Returns JSON, with the texts of ``RAW`` replaced."""
    text = json.dumps(value, ensure_ascii=False)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


@st.composite
def changed_json(draw: st.DrawFn, valid: Any) -> bytes:
    """Draws ``valid`` with one position replaced, removed or added; or truncated; or any JSON or bytes instead."""
    kind = draw(st.sampled_from(["replace"] * 6 + ["remove", "add", "whole", "truncate", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=50))
    if kind == "whole":
        return to_json(draw(ANY)).encode()
    if kind == "truncate":
        content = to_json(valid).encode()
        return content[: draw(st.integers(0, len(content) - 1))]
    return to_json(_changed(draw, valid, kind)).encode()


def _changed(draw: st.DrawFn, value: Any, kind: str) -> Any:
    children = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not children or draw(st.integers(0, 3)) == 0:
        return draw(ANY)
    key = draw(st.sampled_from(children))
    copy = dict(value) if isinstance(value, dict) else list(value)
    if kind == "remove":
        del copy[key]
    elif kind == "add" and isinstance(copy, dict):
        copy[draw(WORDS)] = draw(ANY)
    else:
        copy[key] = _changed(draw, value[key], kind)
    return copy
