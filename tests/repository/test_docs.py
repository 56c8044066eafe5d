"""Compares pages and code in both directions. Each deliberate difference is here with its reason."""

import ast
import inspect
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import otel_tbot
from otel_tbot import errors  # errors of each are looked for
from otel_tbot.bridge.metrics import METRICS
from otel_tbot.event import ATTRIBUTES, EVENT_NAME
from otel_tbot.exporters.records import to_resource
from otel_tbot.settings import SETTINGS
from tests.repository.test_packaging import PROJECT
from tests.support.checkout import ROOT
from tests.support.walkthrough import Walkthrough
from tools import generate as tables
from tools import reference
from tools.imports import list_modules
from tools.pages import read_pages
from tools.site import to_site

PAGES = {page.name: page for page in read_pages()}
EXAMPLES = [example for page in PAGES.values() for example in page.examples()]
ALL = "\n".join(page.text for page in PAGES.values())
CHANGELOG = PAGES["CHANGELOG.md"].text
README = PAGES["README.md"].text

KEYS = {attribute.key for attribute in ATTRIBUTES} | set(to_resource(is_local=True).attributes)

# Keys that pages name because they are not sent, and values of the Helm chart that look like keys.
OTHER_KEYS = {"host.name", "enduser.id", "service.port", "service.annotations"}

# Variables that pages name and the code does not, because they are other programs' own.
OTHER_VARIABLES = {
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "the page says that it is not read",
    "TBOT_GITLAB_JWT": "GitLab's and tbot's",
    "NO_COLOR": "has none of the prefixes, so it is not looked for",
    "OTEL_EXPORTER_PROMETHEUS_HOST": "OpenTelemetry's Prometheus exporter reads it",
    "OTEL_EXPORTER_PROMETHEUS_PORT": "OpenTelemetry's Prometheus exporter reads it",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "an example of the form for one signal",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "an example of the form for one signal",
}


def is_variable(text):
    """Whether *text* is the name of a variable of otel-tbot, OpenTelemetry, tbot or Teleport."""
    return re.fullmatch(r"_?(?:OTEL|TELEPORT|TBOT)_[A-Z_]*[A-Z]", text) is not None


def find_variables_of_the_code():
    """Returns every variable that is a string in the package's code."""
    texts = set()
    for path in (ROOT / "otel_tbot").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_variable(node.value):
                texts.add(node.value)
    return texts


# Examples.


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_every_example_runs_or_says_what_it_needs(example):
    """A test runs a block, a line before it says what a test cannot have, or it is a picture or a generated text."""
    if example.language == "text" and not example.run:
        assert not example.need
        return
    assert bool(example.run) != bool(example.need)
    if example.run:
        assert hasattr(Walkthrough, f"_run_{example.run[0]}")


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.language == "sh"], ids=lambda example: example.place)
def test_no_line_of_an_example_fails_unseen(example):
    """A shell with -e does not stop at a negated command that fails, so `! grep` would prove nothing."""
    assert not re.search(r"^!|(?<![$(])\B!\s", example.text, re.MULTILINE)


def test_examples_are_fenced():
    """No page has a block that is only indented, because no test would find it."""
    assert not [
        (page.name, line) for page in PAGES.values() for line in page.prose().splitlines() if line.startswith("    ")
    ]


def needs_helm(page):
    """Whether a test that runs the examples of *page* runs Helm."""
    return any(e.run and re.search(r"^helm ", e.text, re.MULTILINE) for e in page.examples())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.backends] if needs_helm(page) else [])
        for name, page in PAGES.items()
        if any(e.run for e in page.examples())
    ],
)
def test_the_examples_of_a_page_run_in_order(name, tmp_path, otelcol, request):
    """Each has the exit status and the output, and sends as many events to the real collector, as the page says."""
    page = PAGES[name]
    if any("strace" in example.text for example in page.examples()):
        request.getfixturevalue("strace")
    if needs_helm(page):
        request.getfixturevalue("helm")
    with Walkthrough(page, tmp_path, otelcol) as walkthrough:
        for example in page.examples():
            if example.run:
                walkthrough.run(example)
        walkthrough.check_end()


def test_the_ansible_tasks_write_the_drop_in_of_the_page():
    """The copied file is the unit that a test runs, in the folder that the task before it makes."""
    examples = {example.language: example.text for example in PAGES["docs/how-to/systemd.md"].examples()}
    tasks = yaml.safe_load(examples["yaml"])
    (drop_in,) = (task["ansible.builtin.copy"] for task in tasks if "ansible.builtin.copy" in task)
    folders = [task["ansible.builtin.file"].get("path") for task in tasks if "ansible.builtin.file" in task]

    assert examples["ini"] == drop_in["content"]
    assert str(Path(drop_in["dest"]).parent) in folders


# What is generated.


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_what_the_code_says(name):
    """`make docs` generates tables and command sections from the code."""
    assert PAGES[name].text == tables.renew_page(PAGES[name].text)


def test_every_table_is_in_a_page():
    """Each table that can be generated is in a page, and README has the one of the event."""
    used = [table for page in PAGES.values() for table in tables.find_tables(page.text)]

    assert set(tables.TABLES) == set(used)
    assert ["attributes"] == tables.find_tables(README)


# The event.


def test_every_key_is_documented_and_no_other():
    """README, reference and changelog (Telemetry) name all keys of event and resource; no page names another key."""
    telemetry = CHANGELOG.partition("### Telemetry")[2].partition("\n### ")[0]
    event = PAGES["docs/reference/event.md"].text
    named = set(re.findall(r"`((?:tbot|session|service|telemetry|os|host|enduser)\.[a-z_.]*[a-z])`", ALL))
    files = {name for name in named if re.search(r"\.(yaml|yml|service|md|py)$", name)}

    assert not [key for text in (README, telemetry, event) for key in KEYS if f"`{key}`" not in text]
    assert KEYS >= named - files - {EVENT_NAME} - OTHER_KEYS


# Settings.


def test_every_variable_is_documented_and_no_other():
    """The reference names each variable that is read, and pages name no variable that nothing reads."""
    known = find_variables_of_the_code()
    settings = PAGES["docs/reference/settings.md"].text
    kit = set(re.findall(r"env:(TBOT_\w+)", "".join(p.read_text() for p in (ROOT / "collector-config").glob("*.yaml"))))
    makes = {"OTEL_TBOT_REQUIRE_COLLECTOR", "OTEL_TBOT_PROOF_WITHOUT_NAMESPACES"}
    named = {name for name in re.findall(r"\b_?[A-Z][A-Z_]*[A-Z]\b", ALL) if is_variable(name)}
    patch = {"OTEL_TBOT_PREFIX"}

    assert {setting.name for setting in SETTINGS} <= known
    assert not [name for name in known if f"`{name}`" not in settings]
    assert not named - known - kit - makes - patch - set(OTHER_VARIABLES)
    assert set(OTHER_VARIABLES) - {"NO_COLOR"} <= named


# Commands.


def test_every_command_and_option_in_a_page_is_there():
    """The parser accepts each `otel-tbot COMMAND --option` that a page shows."""
    parsers = reference.find_commands()
    code = "\n".join([*re.findall(r"`([^`\n]+)`", ALL), *(e.text for e in EXAMPLES if e.run[:1] != ("output",))])
    shown = re.findall(r"(?<!--namespace )(?<!-n )(?<![/-])\botel-tbot ([a-z]+)\b(.*)", code)
    unknown = []
    for command, rest in shown:
        if command not in parsers:
            unknown.append(command)
            continue
        options = set(re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest.partition(" -- ")[0].partition(" && ")[0]))
        unknown += [f"{command} {option}" for option in options - reference.find_options(parsers[command])]

    assert {"run", "demo", "bridge", "emit", "preview", "doctor"} == set(parsers)
    assert not unknown


def test_every_command_is_in_a_page_beside_the_reference():
    """Each command is in a page, not only in its help."""
    text = "\n".join(page.text for name, page in PAGES.items() if name != "docs/reference/commands.md")

    assert not [command for command in reference.find_commands() if f"otel-tbot {command}" not in text]


def test_every_exit_status_is_documented_and_no_other():
    """The reference lists the statuses of the errors, of the launcher, and of success."""

    def find_classes(base):
        return {base}.union(*(find_classes(child) for child in base.__subclasses__()))

    launcher = ast.parse((ROOT / "otel_tbot" / "launcher.py").read_text(encoding="utf-8"))
    returned = {
        node.args[0].value
        for node in ast.walk(launcher)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "_CommandError"
        and isinstance(node.args[0], ast.Constant)
    }
    returned |= {error.exit_status for error in find_classes(errors.OtelTbotError)} | {0}
    documented = re.findall(r"^\| (\d+) \|", PAGES["docs/reference/commands.md"].text, re.MULTILINE)

    assert {126, 127} <= returned
    assert sorted(returned) == [int(status) for status in documented]


# The library, the bridge, the collector kit, make.


def test_every_entry_point_is_documented_and_no_other():
    """The reference of the Python API lists the name and the group of each."""
    section = PAGES["docs/reference/python-api.md"].text.partition("## Plug-ins\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section, re.MULTILINE))

    assert {(name, group) for group, points in PROJECT["entry-points"].items() for name in points} == rows


def test_every_extra_is_documented_and_no_other():
    """The page on installing lists each extra."""
    section = PAGES["docs/how-to/install.md"].text.partition("## Extras\n")[2].partition("\n## ")[0]

    assert set(PROJECT["optional-dependencies"]) == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_only_promised_names_are_imported_in_examples():
    """Examples import only public names, and the bridge's application."""
    imported = re.findall(r"^from otel_tbot import (.+)$", ALL, re.MULTILINE)

    assert imported
    assert {name for names in imported for name in names.split(", ")} <= set(otel_tbot.__all__)
    assert not re.findall(r"^from otel_tbot\.|^import otel_tbot\.", ALL, re.MULTILINE)
    assert set(re.findall(r"\botel_tbot\.[a-z_]+:\w+", ALL)) == {"otel_tbot.bridge:app"}


def test_every_metric_of_the_bridge_is_documented_and_no_other():
    """Pages name the bridge's metrics as the code does."""
    named = set(re.findall(r"`(otel_tbot\.bridge\.[a-z.]+\.[a-z]+)`", ALL))

    assert set(METRICS) == named


def test_every_field_of_an_event_has_an_attribute():
    """`TbotStart` takes one argument for each attribute, named as the reference says, and no other."""
    arguments = set(inspect.signature(otel_tbot.TbotStart).parameters)

    assert {
        attribute.key.removeprefix("tbot.").replace("session.id", "session_id") for attribute in ATTRIBUTES
    } == arguments


def test_every_make_target_is_documented_and_no_other():
    """Each `make x` in a page is a target, and the contributors' table shows each target for people."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, re.MULTILINE))
    shown = set(re.findall(r"`make ([a-z-]+)`", PAGES["CONTRIBUTING.md"].text))
    parts = {"lint", "types", "docs-check", "reporter"}  # parts of check and test

    assert phony - parts == shown
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)\b", ALL, re.MULTILINE)) <= phony


def test_every_promise_names_tests_that_exist_and_every_test_of_the_proof_is_named():
    """docs/privacy.md names each test of `make proof`, and no other."""
    named = set(re.findall(r"`(test_\w+)`", PAGES["docs/privacy.md"].text))
    defined = [
        name
        for path in (ROOT / "tests" / "proof").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]

    assert sorted(defined) == sorted(named)


def test_every_file_of_the_collector_kit_is_documented():
    """The reference lists each configuration."""
    listed = set(re.findall(r"\]\(../../collector-config/([\w.-]+)\)", PAGES["docs/reference/collector-kit.md"].text))

    assert {path.name for path in (ROOT / "collector-config").glob("*.yaml")} == listed


def test_architecture_names_every_module_on_one_screen():
    """The page names each module, and has at most 40 lines."""
    text = PAGES["docs/explanation/architecture.md"].text
    modules = {name.rpartition(".")[2] for name in list_modules()} - {"", "__main__", "_version"}

    assert not [module for module in modules if not re.search(rf"\b{module}\b", text)]
    assert 40 >= text.count("\n")


# Links.


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    """Each link is a file of the repository, with the heading that it names, or a public page over https."""
    page = PAGES[name]
    broken = []
    for link in page.links():
        if "://" in link:
            broken += [] if link.startswith("https://") else [link]
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        relative = str(target.relative_to(ROOT))
        if not target.exists() or (anchor and anchor not in PAGES[relative].anchors()):
            broken.append(link)

    assert not broken


def test_every_page_is_in_the_index():
    """docs/README.md links to each page below docs/."""
    index = PAGES["docs/README.md"]
    linked = {str((index.path.parent / link.partition("#")[0]).resolve().relative_to(ROOT)) for link in index.links()}

    assert {name for name in PAGES if name.startswith("docs/")} - {"docs/README.md"} <= linked


def test_prose_has_one_sentence_a_line():
    """Outside tables and lists, so that a change of one sentence is a change of one line."""
    lines = [
        (page.name, line)
        for page in PAGES.values()
        for line in page.prose().splitlines()
        if re.match(r"[A-Z]", line) and re.search(r"[a-z`)]\. [A-Z]", line)
    ]

    assert not lines


def test_the_site_indents_what_a_numbered_item_contains():
    """Python's Markdown asks for four spaces; a block outside a list stays as it is."""
    page = "1. Do:\n\n   ```sh\n   a\n   ```\n\n```yaml\n   b\n```\n- c\n  d\n"

    assert "1. Do:\n\n    ```sh\n    a\n    ```\n\n```yaml\n   b\n```\n- c\n  d\n" == to_site(page)


# The repository's text files.


def test_text_files_end_in_one_newline_and_have_no_trailing_space():
    """Of every tracked text file, except those that other projects wrote."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    kinds = (".md", ".py", ".yaml", ".yml", ".toml", ".txt", ".json", ".sh", ".go", ".service", "Makefile")
    foreign = ("otel_tbot/tbot/prehog/", "go/")
    paths = [ROOT / name for name in names if name.endswith(kinds) and not name.startswith(foreign)]
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths if path.exists() and path.stat().st_size}

    assert len(texts) > len(PAGES)
    assert not [name for name, text in texts.items() if not text.endswith("\n") or text.endswith("\n\n")]
    assert not [name for name, text in texts.items() if re.search(r"[ \t]$", text, re.MULTILINE)]
