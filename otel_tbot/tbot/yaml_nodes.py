"""YAML, read with care: the bytes of a file go in, a tree of nodes with their lines comes out, built of nothing else.

No object or number is made of a text, an alias is the node itself, and what would explode elsewhere is refused.
Source: YAML 1.2; gopkg.in/yaml.v3, with which tbot reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import yaml

from otel_tbot.errors import TbotConfigError

MAX_CONFIG_BYTES: Final = 1024 * 1024
MAX_NODES: Final = 100_000
"""Of a file, with every alias written out: tbot's own reader refuses much less."""

MAX_DEPTH: Final = 64


@dataclass(slots=True)
class Node:
    """A node of YAML: a `text` (None for none), `entries` of a map, or `items` of a list; `size` with aliases."""

    line: int
    text: str | None = None
    is_plain: bool = True
    entries: "list[tuple[Node, Node]] | None" = None
    items: "list[Node] | None" = None
    size: int = 1
    children: "list[Node]" = field(default_factory=list)


def parse_yaml(data: bytes, *, place: str) -> Node | None:
    """The first document in *data*, None where it is empty. Pure.

    From the parser's events, without building anything that the text names or repeats; *place* names it in errors.

    Raises:
        TbotConfigError: it is no YAML, or beyond the bounds above, with its aliases written out: where, and what to do.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise TbotConfigError(place, f"longer than {MAX_CONFIG_BYTES} bytes; no configuration of tbot is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TbotConfigError(place, "not UTF-8; save it as UTF-8", line=line) from None
    try:
        return _build_tree(text, place=place)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TbotConfigError(place, "holds a control character; remove it", line=line) from None
    except yaml.MarkedYAMLError as error:
        line = getattr(error.problem_mark, "line", -1) + 1
        raise TbotConfigError(place, "not YAML; mend the line", line=line) from None


def _build_tree(text: str, *, place: str) -> Node | None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    anchors: dict[str | None, Node] = {}
    root = Node(line=1)
    open_nodes = [root]
    for event in yaml.parse(text, Loader=loader):
        line = getattr(event.start_mark, "line", 0) + 1
        if isinstance(event, yaml.DocumentEndEvent):
            break  # tbot reads the first document
        if isinstance(event, yaml.CollectionEndEvent):
            done = open_nodes.pop()
            _close(done, place=place)
            open_nodes[-1].size += done.size
        elif isinstance(event, yaml.AliasEvent):
            node = anchors.get(event.anchor)
            if node is None or any(node is other for other in open_nodes):
                raise TbotConfigError(place, "an alias of nothing, or of itself; mend the line", line=line)
            open_nodes[-1].children.append(node)
            open_nodes[-1].size += node.size
        elif isinstance(event, yaml.NodeEvent):
            node = Node(line=line)
            open_nodes[-1].children.append(node)
            if event.anchor:
                anchors[event.anchor] = node
            if isinstance(event, yaml.ScalarEvent):
                node.text, node.is_plain = event.value, event.implicit[0]
                open_nodes[-1].size += 1
            else:
                node.entries, node.items = ([], None) if isinstance(event, yaml.MappingStartEvent) else (None, [])
                open_nodes.append(node)
        _check_bounds(open_nodes, place=place, line=line)
    return root.children[0] if root.children else None


def _check_bounds(open_nodes: Sequence[Node], *, place: str, line: int) -> None:
    if len(open_nodes) > MAX_DEPTH:
        raise TbotConfigError(place, f"nested deeper than {MAX_DEPTH}; no configuration of tbot is", line=line)
    if open_nodes[-1].size > MAX_NODES:
        raise TbotConfigError(place, f"more than {MAX_NODES} nodes with its aliases; use fewer aliases", line=line)


def _close(node: Node, *, place: str) -> None:
    children, node.children = node.children, []
    if node.entries is None:
        node.items = children
        return
    node.entries = list(zip(children[::2], children[1::2], strict=True))
    seen = set()
    for key, _ in node.entries:
        if key.text is not None and key.text in seen and key.text != "<<":
            raise TbotConfigError(place, "a key that is there twice; leave one", line=key.line)
        seen.add(key.text)
