"""One more context in a contexts.yaml that a person wrote: appended as text, so that comments stay.

The new text is read back and must mean exactly the old contexts and the new one; where the layout does
not allow that, nothing is written and a person is told what to add. This module must never judge a
declaration.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from recmeta.artifacts import write_text
from recmeta.contexts import (
    Context,
    Contexts,
    ExplicitNegatives,
    ExposureNegatives,
    ImpressionNegatives,
    load_contexts,
)
from recmeta.errors import ContextError


def declare(path: Path, context: Context) -> bool:
    """Append ``context`` to the contexts of ``path``, whole or not at all; False where it is there already.

    Raises:
        NotFoundError: no such file.
        ContextError: a context of that name is declared otherwise, or the file's layout cannot be appended
            to; the text says what to write by hand.
    """
    before = load_contexts(path)
    there = before.contexts.get(context.name)
    if there is not None:
        if there == context:
            return False
        raise ContextError(
            f"{path}: expected no context {context.name!r}, found one that is declared otherwise"
        )
    wanted = Contexts(
        version=before.version, contexts={**before.contexts, context.name: context}, source=before.source
    )
    text = path.read_bytes().decode("utf-8")  # bytes, so that line ends stay what they are
    appended = _appended(text, context)
    if appended is None or _meant(appended) != wanted:
        raise ContextError(
            f"{path}: expected `contexts:` as an indented block to which {context.name!r} can be appended, "
            f"found another layout; write this below `contexts:` by hand: {_inline(context)}"
        )
    write_text(path, appended)
    return True


def _appended(text: str, context: Context) -> str | None:
    """The text with one more entry after the last one; None where there is no block of contexts."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return None
    block = next((value for key, value in root.value if key.value == "contexts"), None)
    if not isinstance(block, yaml.MappingNode) or block.flow_style or not block.value:
        return None
    indent = " " * block.value[0][0].start_mark.column
    end = _last_line(block) + 1
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    entry = yaml.safe_dump(
        {context.name: _written(context)},
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=100,
    )
    added = "".join(indent + line + newline for line in entry.splitlines())
    return "".join([*lines[:end], added, *lines[end:]])


def _last_line(node: yaml.Node) -> int:
    """The number of the line, from 0, on which a node's text ends; comments after it are not its own."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    # A block scalar's end is the start of the line after it.
    return int(node.end_mark.line - (node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line))


def _meant(text: str) -> Contexts | None:
    try:
        return Contexts.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError, ContextError):
        return None


def _written(context: Context) -> dict[str, Any]:
    """A context as a person would write it: no defaults, durations in words."""
    source = context.negatives.source
    negatives: dict[str, Any]
    if isinstance(source, ExposureNegatives):
        negatives = {"exposure": {"context": source.context, "within": _duration(source.within)}}
    elif isinstance(source, ImpressionNegatives):
        negatives = {"impressions": {"events": list(source.events), "within": _duration(source.within)}}
    elif isinstance(source, ExplicitNegatives):
        negatives = {"explicit": {"events": list(source.events)}}
    else:
        alive = _duration(source.alive_within)
        negatives = {"sample": {"per_positive": source.per_positive, "alive_within": alive}}
    written: dict[str, Any] = {"description": context.description} if context.description else {}
    written |= {"positives": list(context.positives), "negatives": negatives}
    if context.columns != "own":
        written["columns"] = context.columns
    if context.family is not None:
        written["family"] = context.family
    if context.features is not None:
        written["features"] = list(context.features)
    return written


def _inline(context: Context) -> str:
    return yaml.safe_dump(
        {context.name: _written(context)}, sort_keys=False, default_flow_style=True, width=float("inf")
    ).strip()


def _duration(value: timedelta) -> str:
    for unit, length in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("m", timedelta(minutes=1))):
        if value % length == timedelta(0):
            return f"{value // length}{unit}"
    seconds = value / timedelta(seconds=1)
    # Fractions of a second have no unit of their own; pydantic reads ISO 8601 too.
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"PT{seconds:.6f}S"
