"""Generates the parts of the reference pages that come from the code; `make docs` writes them."""

import ast
import inspect
import re
from pathlib import Path

import click

import otel_tbot
from benchmarks import charts
from otel_tbot.bridge import batching, connection, server
from otel_tbot.bridge.metrics import METRICS
from otel_tbot.cli.main import PROGRAM, cli
from otel_tbot.exporters.records import to_resource
from otel_tbot.otlp.encoding import HOST_ARCHS, OS_TYPES
from otel_tbot.outcome import Outcome
from otel_tbot.tbot import http_request
from tools import ROOT
from tools.pages import to_table

KIT = ROOT / "collector-config"


def to_resource_table() -> str:
    """Returns the table of the resource: key, allowed values, and when each is there."""
    constants = to_resource(is_local=False).attributes
    rows = []
    for key, value in to_resource(is_local=True).attributes.items():
        if key in constants:
            is_version = key == "telemetry.sdk.version"
            rows.append((f"`{key}`", "the version of OpenTelemetry's SDK" if is_version else f"`{value}`", "yes"))
        else:
            values = {"os.type": OS_TYPES, "host.arch": HOST_ARCHS}[key].values()
            allowed = ", ".join(f"`{allowed}`" for allowed in dict.fromkeys(values))
            rows.append((f"`{key}`", allowed, "only if the event is made on the machine that tbot runs on"))
    return to_table(("Attribute", "Allowed values", "Always there"), rows)


def to_performance_table() -> str:
    """Returns the ratios that the charts show, with what each is compared with and the times behind it."""
    figures = charts.read_rows(charts.RESULTS.read_text(encoding="utf-8"))
    rows = []
    for chart in charts.CHARTS:
        for one in charts.measure(chart, figures):
            times = f"{one.value} against {one.base_value}"
            rows.append((chart.title, one.bar.label, one.bar.base_label, charts.to_ratio(one.ratio), times))
    return to_table(("Figure", "What", "Compared with", "Ratio", "Minimum of each"), rows)


def find_commands() -> dict[str, click.Command]:
    """Returns the commands by name."""
    return dict(cli.commands)


def find_options(command: click.Command) -> set[str]:
    """Returns the options of *command*, in all their spellings."""
    parameters = command.get_params(_to_context(command))
    return {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}


def to_command_sections() -> str:
    """Returns a section for each command: its help for 80 columns."""
    commands = {PROGRAM: cli, **find_commands()}
    return "\n\n".join(
        f"## {name}\n\n```text\n{command.get_help(_to_context(command)).rstrip()}\n```"
        for name, command in commands.items()
    )


def _to_context(command: click.Command) -> click.Context:
    parent = click.Context(cli, info_name=PROGRAM, terminal_width=80, help_option_names=["-h", "--help"])
    return parent if command is cli else click.Context(command, info_name=command.name, parent=parent)


def to_name_table() -> str:
    """Returns the table of public names, each with the first sentence of its docstring."""
    rows = []
    for name in otel_tbot.__all__:
        value = getattr(otel_tbot, name)
        kind = "class" if inspect.isclass(value) else "function"
        rows.append((f"`{name}`", kind, to_first_sentence(inspect.getdoc(value) or "")))
    return to_table(("Name", "Kind", "What it is"), rows)


def to_outcome_table() -> str:
    """Returns the table of outcomes, each with the docstring below its definition."""
    module = ast.parse(Path(inspect.getfile(Outcome)).read_text(encoding="utf-8"))
    (tree,) = (node for node in module.body if isinstance(node, ast.ClassDef))
    values = [node.value for node in tree.body[1:] if isinstance(node, ast.Expr)]
    texts = [str(value.value) for value in values if isinstance(value, ast.Constant)]
    return to_table(
        ("Outcome", "Its value", "Meaning"),
        ((f"`Outcome.{o.name}`", f'`"{o.value}"`', text) for o, text in zip(Outcome, texts, strict=True)),
    )


def to_limit_table() -> str:
    """Returns the table of the bridge's limits, from its constants."""
    headers = f"{http_request.MAX_HEADERS}, of {http_request.MAX_HEAD_BYTES // 1024} KiB together"
    rows = (
        ("A report", f"{http_request.MAX_REQUEST_BYTES // 1024} KiB", "`resource_exhausted`"),
        (
            "A body on any other path",
            f"{http_request.MAX_REQUEST_BYTES // 1024} KiB",
            "HTTP 404, then the connection closes",
        ),
        ("A request's headers", headers, "HTTP 431, then the connection closes"),
        ("Time for one request", f"{connection.READ_SECONDS:g} seconds", "the connection is closed"),
        ("Time for a TLS handshake", f"{connection.READ_SECONDS:g} seconds", "the connection is closed"),
        ("Time to read a response", f"{connection.WRITE_SECONDS:g} seconds", "the connection is closed"),
        (
            "Requests of one connection without a response",
            f"{connection.MAX_UNANSWERED}",
            "these are answered, then the connection closes",
        ),
        ("An idle connection", f"{server.IDLE_SECONDS} seconds (`--idle-timeout`)", "it is closed"),
        ("Connections", f"{server.MAX_CONNECTIONS:,}", "the one that has been silent longest is closed"),
        ("Connections with TLS", f"{server.MAX_TLS_CONNECTIONS:,}", "the one that has been silent longest is closed"),
        ("Waiting reports", f"{batching.MAX_PENDING:,}", "`resource_exhausted` at once"),
        ("Events in one export", f"{batching.MAX_BATCH}", "the next export takes the rest"),
        ("Waiting at the end", f"{batching.DRAIN_SECONDS:g} seconds", "`unavailable`"),
    )
    return to_table(("What", "Limit", "Beyond it"), rows)


def to_metric_table() -> str:
    """Returns the table of the bridge's own metrics."""
    return to_table(("Metric", "Meaning"), ((f"`{name}`", meaning) for name, meaning in METRICS.items()))


def to_kit_table() -> str:
    """Returns the table of the collector kit's files: what each is, and the command that runs it."""
    rows = []
    for path in sorted(KIT.glob("*.yaml")):
        head = read_head(path)
        lines = re.findall(r"^ {2}((?:otelcol|docker) .*)$", head, re.MULTILINE)
        commands = "<br>".join(f"`{re.split(' {2,}', line)[0]}`" for line in lines)
        rows.append((f"[{path.name}](../../collector-config/{path.name})", to_first_sentence(head), commands))
    return to_table(("File", "What it is", "Run with"), rows)


def to_kit_variable_table() -> str:
    """Returns the table of the environment variables that the collector kit's files use."""
    users: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted(KIT.glob("*.yaml")):
        found = re.findall(r"^ {2}(TBOT_\w+) +(\S+)(?: {2,}(.+))?$", read_head(path), re.MULTILINE)
        for name, default, meaning in found:
            users.setdefault((name, default, meaning), []).append(path.name)
    rows = [
        (f"`{name}`", f"`{default}`", ", ".join(f"`{name}`" for name in names), meaning)
        for (name, default, meaning), names in sorted(users.items())
    ]
    return to_table(("Variable", "Default", "Files", "Meaning"), rows)


def read_head(path: Path) -> str:
    """Returns the comment at the beginning of a file, without its comment marks."""
    found = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    return re.sub(r"^# ?", "", found.group(), flags=re.MULTILINE) if found else ""


def to_target_table() -> str:
    """Returns the table of the targets of `make`."""
    targets = re.findall(r"^([a-z-]+):.*?## (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return to_table(("Target", "What it does"), ((f"`make {name}`", text) for name, text in targets))


def to_first_sentence(text: str) -> str:
    """Returns the first sentence of the first paragraph of *text*, on one line. Pure."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\w[.`\")])\s(?=[A-Z])", paragraph, maxsplit=1)[0]
