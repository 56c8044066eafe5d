"""Parses YAML into a tree of plain nodes that know their lines, within bounds.

Builds no object or number from the text, keeps an alias as a reference to its node, and rejects files that would take
much memory or deep recursion.
Source: YAML 1.2; gopkg.in/yaml.v3, with which tbot reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import yaml

from otel_tbot.errors import TbotConfigError

MAX_CONFIG_BYTES: Final = 1024 * 1024
MAX_NODES: Final = 100_000
"""Per file, with every alias written out. tbot's own reader has a lower limit."""

MAX_DEPTH: Final = 64

_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))

# Some programs write these tags out: `!!merge <<: *anchor`.
_PLAIN_TAGS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("bool", "merge", "null"))


@dataclass(slots=True)
class Node:
    """A node of YAML: a scalar has a `text`, a map has `entries`, a list has `items`; `size` counts aliases as well.

    `is_plain` says that the text may mean something else than a string: it has no quotes, or a tag that says so.
    """

    line: int
    text: str | None = None
    is_plain: bool = True
    entries: "list[tuple[Node, Node]] | None" = None
    items: "list[Node] | None" = None
    size: int = 1
    children: "list[Node]" = field(default_factory=list)

    @property
    def is_null(self) -> bool:
        """Whether it is a null in one of its spellings, such as an empty value."""
        return self.is_plain and self.text in _NULLS


def parse_yaml(data: bytes, *, source: str) -> Node | None:
    """Parses the first document in *data*; None if it is empty. *source* names it in errors. Pure.

    Works on the parser's events, because yaml.compose crashes on deep nesting and repeats what an alias refers to.

    Raises:
        TbotConfigError: *data* is not YAML, or exceeds the bounds above; says where, and what to do.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise TbotConfigError(source, f"longer than {MAX_CONFIG_BYTES} bytes; check that it is a configuration of tbot")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TbotConfigError(source, "not UTF-8; save it as UTF-8", line=line) from None
    try:
        return _build_tree(text, source=source)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TbotConfigError(source, "contains a control character; remove it", line=line) from None
    except yaml.MarkedYAMLError as error:
        line = getattr(error.problem_mark, "line", -1) + 1
        raise TbotConfigError(source, "not valid YAML; fix this line", line=line) from None


def _build_tree(text: str, *, source: str) -> Node | None:
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
            _close(done, source=source)
            open_nodes[-1].size += done.size
        elif isinstance(event, yaml.AliasEvent):
            node = anchors.get(event.anchor)
            if node is None or any(node is other for other in open_nodes):
                raise TbotConfigError(source, "an alias of an unknown anchor, or of itself; fix this line", line=line)
            open_nodes[-1].children.append(node)
            open_nodes[-1].size += node.size
        elif isinstance(event, yaml.NodeEvent):
            node = Node(line=line)
            open_nodes[-1].children.append(node)
            if event.anchor:
                anchors[event.anchor] = node
            if isinstance(event, yaml.ScalarEvent):
                node.text, node.is_plain = event.value, event.implicit[0] or event.tag in _PLAIN_TAGS
                open_nodes[-1].size += 1
            else:
                node.entries, node.items = ([], None) if isinstance(event, yaml.MappingStartEvent) else (None, [])
                open_nodes.append(node)
        _check_bounds(open_nodes, source=source, line=line)
    return root.children[0] if root.children else None


def _check_bounds(open_nodes: Sequence[Node], *, source: str, line: int) -> None:
    if len(open_nodes) > MAX_DEPTH:
        raise TbotConfigError(source, f"nested deeper than {MAX_DEPTH} levels; flatten it", line=line)
    if open_nodes[-1].size > MAX_NODES:
        raise TbotConfigError(source, f"more than {MAX_NODES} nodes, aliases written out; use fewer aliases", line=line)


def _close(node: Node, *, source: str) -> None:
    children, node.children = node.children, []
    if node.entries is None:
        node.items = children
        return
    node.entries = list(zip(children[::2], children[1::2], strict=True))
    seen = set()
    for key, _ in node.entries:
        if key.text is not None and key.text in seen and key.text != "<<":
            raise TbotConfigError(source, "duplicate key; remove one", line=key.line)
        seen.add(key.text)
