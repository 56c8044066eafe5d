"""`python -m tests.tables [--check]`: writes README's tables anew from the code, or fails where they differ."""

import re
import sys

from otel_tbot.event import ATTRIBUTES, MAX_COUNT, OTHER, Attribute
from otel_tbot.settings import SETTINGS
from tests.conftest import ROOT

README = ROOT / "README.md"


def main() -> int:
    """0 where README is true now, 1 where --check found it was not."""
    text = README.read_text(encoding="utf-8")
    renewed = renew(text)
    if "--check" not in sys.argv:
        README.write_text(renewed, encoding="utf-8")
    elif text != renewed:
        print("README.md: a table differs from the code; run `make docs`", file=sys.stderr)
        return 1
    return 0


def renew(text: str) -> str:
    """*text* with each table between its markers made anew."""
    for name, table in (("attributes", to_attribute_table()), ("settings", to_setting_table())):
        begin, end = f"<!-- {name}: `make docs` writes this table -->\n", f"\n<!-- end of {name} -->"
        found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)
        if found is None:
            raise AssertionError(f"README.md has no markers for the table of {name}")
        text = text[: found.start()] + begin + table + end + text[found.end() :]
    return text


def to_attribute_table() -> str:
    """The attributes: key, type, allowed values, meaning, and whether each is always there."""
    rows = ["| Attribute | Type | Allowed values | Meaning | Always there |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| `{a.key}` | {a.type} | {to_values(a)} | {a.brief} | {'yes' if a.is_required else 'no'} |"
        for a in ATTRIBUTES
    ]
    return "\n".join(rows)


def to_values(attribute: Attribute) -> str:
    """What may stand under a key, for people."""
    if attribute.type == "int":
        return f"0 to {MAX_COUNT}"
    other = f", else `{OTHER}`" if attribute.may_be_other else ""
    if attribute.values:
        return ", ".join(f"`{value}`" for value in attribute.values) + other
    return f"{attribute.form}{other}"


def to_setting_table() -> str:
    """The variables: names, rule, default, meaning."""
    rows = ["| Variable | Allowed values | Default | Meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{s.name}` | {s.rule} | {s.unset_text} | {s.meaning} |" for s in SETTINGS]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
