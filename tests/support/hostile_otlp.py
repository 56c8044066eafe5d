"""OTLP requests with a canary in each of their text fields, found by walking the protocol's own descriptors."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Its length is divisible by three, so that its base64 is found in that of bytes which it begins; its spaces break every
# pattern, that of tbot.helper too, which may carry any text that keeps to it.
CANARY = "canary 9e1f of a host"
_MAX_VALUES = 3

Step = Callable[[Any], Any]


def plant_everywhere(honest: Message) -> Iterator[tuple[str, Message]]:
    """Copies of *honest*, each with CANARY in one more text, key or bytes; with the name of the place."""
    for name, steps, plant in _walk(honest, "", (), 0):
        message = copy.deepcopy(honest)
        target: Any = message
        for step in steps:
            target = step(target)
        plant(target)
        yield name, message


def _walk(
    message: Message, path: str, steps: tuple[Step, ...], values: int
) -> Iterator[tuple[str, tuple[Step, ...], Callable[[Any], None]]]:
    values += message.DESCRIPTOR.name == "AnyValue"
    if values > _MAX_VALUES:
        return
    for field in message.DESCRIPTOR.fields:
        name = f"{path}.{field.name}".lstrip(".")
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _walk_messages(message, field, name, steps, values)
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield name, steps, _plant(field, CANARY)
        elif field.type == FieldDescriptor.TYPE_BYTES and not field.name.endswith("_id"):
            # An id of another length is no OTLP; of the right length it is random, and no text.
            yield name, steps, _plant(field, CANARY.encode())


def _walk_messages(
    message: Message, field: FieldDescriptor, name: str, steps: tuple[Step, ...], values: int
) -> Iterator[tuple[str, tuple[Step, ...], Callable[[Any], None]]]:
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


def _plant(field: FieldDescriptor, value: object) -> Callable[[Any], None]:
    def plant(target: Any) -> None:
        if _is_repeated(field):
            getattr(target, field.name).append(value)
        else:
            setattr(target, field.name, value)

    return plant


def _is_repeated(field: FieldDescriptor) -> bool:
    """As protobuf says since 6.31, and before."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)
