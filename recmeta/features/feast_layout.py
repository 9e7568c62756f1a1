"""How Feast lays a row out in its online stores: keys, fields, packed values. Feast itself is not imported.

Importing Feast takes seconds and draws in torch; a server needs neither. What is written here is read by
Feast and the other way round, which a test holds for every store. This module must never open a store.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from recmeta.features.counters import Float32s
from recmeta.features.partitions import View
from recmeta.features.schema import ITEM, ITEM_CODES, KEYS, USER_ITEM, VALUES

PROJECT = "recmeta"
"""Feast's name for all that belongs together; it stands in every key and in the name of every table."""

_STRING = 2
"""Number of the type STRING in Feast's ValueType."""

_STRING_TYPE = struct.pack("<I", _STRING)


@cache
def value_message() -> Any:
    """Feast's own message for a value, read from its file: its package would import all of Feast."""
    loaded = sys.modules.get("feast.protos.feast.types.Value_pb2")
    if loaded is not None:
        return loaded.Value
    spec = importlib.util.find_spec("feast")
    assert spec is not None and spec.origin is not None  # noqa: S101  (a dependency)
    path = Path(spec.origin).parent / "protos" / "feast" / "types" / "Value_pb2.py"
    found = importlib.util.spec_from_file_location("recmeta_feast_value_pb2", path)
    assert found is not None and found.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Value


def _length(text: bytes) -> bytes:
    return struct.pack("<I", len(text))


def _part(text: str) -> bytes:
    """One value of a key."""
    encoded = text.encode()
    return b"%b%b%b" % (_STRING_TYPE, len(encoded).to_bytes(4, "little"), encoded)


@cache
def _names(names: tuple[str, ...]) -> bytes:
    """The start of every key over these names: how many, and each."""
    encoded = [name.encode() for name in sorted(names)]
    parts = [struct.pack("<I", _STRING) + _length(name) + name for name in encoded]
    return struct.pack("<I", len(names)) + b"".join(parts)


def entity_key(view: View, values: Sequence[str]) -> bytes:
    """The key of a row: Feast's serialization, version 3; ``values`` in the order of ``view.keys``."""
    by_name = sorted(zip(view.keys, values, strict=True))
    return _names(view.keys) + b"".join(_part(value) for _, value in by_name)


def pair_head(item_id: str) -> bytes:
    """The first bytes of the key of an item and any user."""
    return _names(KEYS[USER_ITEM]) + _part(item_id)


def pair_tail(user_id: str) -> bytes:
    """The other bytes of the key of a user and any item."""
    return _part(user_id)


def item_key(item_id: str) -> bytes:
    """The key of an item."""
    return _names(KEYS[ITEM]) + _part(item_id)


def table_name(view: str) -> str:
    """The table of a view, in SQLite."""
    return f"{PROJECT}_{view}"


@cache
def field_name(view: str, column: str) -> bytes:
    """The field of a view's column in Redis, of the hash at the row's key."""
    return struct.pack("<I", mmh3.hash(f"{view}:{column}", signed=False))


@cache
def stamp_name(view: str) -> bytes:
    """The field of a view's time stamp in Redis."""
    return f"_ts:{view}".encode()


def pack(view: View, values: Any) -> bytes:
    """A row's value as it is stored: a list of numbers or strings, or bytes, as the view's column has it."""
    if view.column == ITEM_CODES:
        return bytes(value_message()(bytes_val=values).SerializeToString())
    message = value_message()()
    packed = message.float_list_val if view.column == VALUES else message.string_list_val
    packed.val.extend(values)
    if not len(values):
        packed.SetInParent()
    return bytes(message.SerializeToString())


def unpack(view: View, stored: bytes) -> Any:
    """Undo `pack`; None where what is stored is no such value.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no value of Feast's at all.
    """
    message = value_message().FromString(stored)
    if view.column == ITEM_CODES:
        return message.bytes_val if message.HasField("bytes_val") else None
    wanted = "float_list_val" if view.column == VALUES else "string_list_val"
    return list(getattr(message, wanted).val) if message.HasField(wanted) else None


@cache
def _head(width: int) -> bytes:
    """What stands before the numbers of a counter row of this width."""
    message = value_message()()
    message.float_list_val.val.extend([0.0] * width)
    return bytes(message.SerializeToString()[: -4 * width])


def fit(stored: Iterable[bytes | None], width: int) -> list[bool]:
    """Which of these are counter rows of ``width`` numbers; those of other settings are not."""
    head = _head(width)
    size = len(head) + 4 * width
    return [row is not None and len(row) == size and row.startswith(head) for row in stored]


def numbers(stored: Sequence[bytes], width: int) -> Float32s:
    """Counter rows that `fit`, [n, width]."""
    start = len(_head(width))
    joined = b"".join([row[start:] for row in stored])
    found: Float32s = np.frombuffer(joined, dtype="<f4").reshape(len(stored), width)
    return found


def pack_stamp(microseconds: int) -> bytes:
    """An instant as Redis holds it; microseconds since 1970, UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return bytes(Timestamp(seconds=seconds, nanos=rest * 1_000).SerializeToString())


def unpack_stamp(stored: bytes) -> int:
    """Undo `pack_stamp`."""
    stamp = Timestamp.FromString(stored)
    return int(stamp.seconds) * 1_000_000 + int(stamp.nanos) // 1_000
