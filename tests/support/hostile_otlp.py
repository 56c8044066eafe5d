"""Builds OTLP requests with foreign data in one field each, by walking the protocol's own descriptors."""

import copy
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Its length is divisible by three, so that its base64 occurs in the base64 of a longer text that begins with it. Its
# spaces break every pattern, also that of tbot.helper, which may carry any string that keeps to it.
CANARY: Final = "canary 9e1f of a host"

# Above each limit of the event, and as a time not a whole second.
NUMBER: Final = 1_234_567_890_123_456_789
NUMBER_32: Final = 1_234_567_891

_MAX_VALUES = 2
_SIZES_BYTES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_FIELD_32 = frozenset(
    {
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_SINT32,
        FieldDescriptor.TYPE_FIXED32,
        FieldDescriptor.TYPE_SFIXED32,
        FieldDescriptor.TYPE_ENUM,
    }
)
_FLOATS = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})

# Field 999 is not in the protocol: a varint, then a string.
_UNKNOWN_NUMBER = b"\xb8\x3e\xd3\x85\xd8\xcc\x04"
_UNKNOWN_TEXT = b"\xba\x3e" + bytes([len(CANARY)]) + CANARY.encode()

# What a serialised request holds if one of them is in it: text, varints, fixed integers, a double; an id is cut short.
MARKS: Final = (
    CANARY.encode()[:8],
    b"\x95\x82\xa6\xef\xc7\x9e\x84\x91\x11",
    b"\xd3\x85\xd8\xcc\x04",
    *(struct.pack(form, number) for form, number in (("<Q", NUMBER), ("<I", NUMBER_32), ("<d", NUMBER_32 + 0.5))),
)

Step = Callable[[Any], Any]
Plant = Callable[[Any], None]


def plant_everywhere(honest: Message) -> Iterator[tuple[str, Message]]:
    """Yields copies of *honest* with foreign data in one more field each, and the field's path.

    Every text, key, number, enum, flag, id and byte string of every message gets a value, and every message gets a
    field that the protocol does not have.
    """
    for name, steps, plant in _walk(honest, "", (), 0):
        message = copy.deepcopy(honest)
        target: Any = message
        for step in steps:
            target = step(target)
        plant(target)
        yield name, message


def _walk(
    message: Message, path: str, steps: tuple[Step, ...], values: int
) -> Iterator[tuple[str, tuple[Step, ...], Plant]]:
    values += message.DESCRIPTOR.name == "AnyValue"
    if values > _MAX_VALUES:
        return
    for field in message.DESCRIPTOR.fields:
        name = f"{path}.{field.name}".lstrip(".")
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _walk_messages(message, field, name, steps, values)
        else:
            yield name, steps, _plant(field, _to_value(field))
    if values > 1:
        return
    for kind, unknown in (("number", _UNKNOWN_NUMBER), ("text", _UNKNOWN_TEXT)):
        yield f"{path}.<unknown {kind}>".lstrip("."), steps, lambda target, data=unknown: target.MergeFromString(data)


def _walk_messages(
    message: Message, field: FieldDescriptor, name: str, steps: tuple[Step, ...], values: int
) -> Iterator[tuple[str, tuple[Step, ...], Plant]]:
    if not _is_repeated(field):
        child = getattr(message, field.name)
        yield from _walk(child, name, (*steps, lambda parent, n=field.name: getattr(parent, n)), values)
        return
    children = getattr(message, field.name)
    for number, child in enumerate(children):
        step: Step = lambda parent, n=field.name, i=number: getattr(parent, n)[i]  # noqa: E731  # one of many
        yield from _walk(child, f"{name}[{number}]", (*steps, step), values)
    new = copy.deepcopy(message)
    child = getattr(new, field.name).add()
    yield from _walk(child, f"{name}[new]", (*steps, lambda parent, n=field.name: getattr(parent, n).add()), values)


def _to_value(field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return CANARY
    if field.type == FieldDescriptor.TYPE_BYTES:
        # The receiver rejects an id of another length.
        return CANARY.encode()[: _SIZES_BYTES.get(field.name)]
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type in _FLOATS:
        return NUMBER_32 + 0.5
    return NUMBER_32 if field.type in _FIELD_32 else NUMBER


def _plant(field: FieldDescriptor, value: object) -> Plant:
    def plant(target: Any) -> None:
        if _is_repeated(field):
            getattr(target, field.name).append(value)
        else:
            setattr(target, field.name, value)

    return plant


def _is_repeated(field: FieldDescriptor) -> bool:
    """Returns whether *field* is repeated; protobuf before 6.31 has no `is_repeated`."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)
