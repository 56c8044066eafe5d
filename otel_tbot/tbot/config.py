"""Reads tbot's configuration, its variables and its flags into a `TbotStart`.

Takes only counts, the run mode and the join method; keeps, logs and repeats no other value of a file. Counts
destinations as the telemetry page defines them ("associated with the … Service"), for files and flags alike.
Source: Teleport, tbot's configuration reference (v1, v2), CLI reference of `tbot start`, "Telemetry" page.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from otel_tbot.consent import HELPER_VARIABLE, HELPER_VERSION_VARIABLE
from otel_tbot.errors import TbotConfigError
from otel_tbot.event import OTHER, JoinType, TbotStart, to_join_type
from otel_tbot.tbot.yaml_nodes import MAX_CONFIG_BYTES, Node, parse_yaml

CONFIG_PATH_VARIABLE: Final = "TBOT_CONFIG_PATH"
CONFIG_VARIABLE: Final = "TBOT_CONFIG"
TOKEN_VARIABLE: Final = "TELEPORT_BOT_TOKEN"  # noqa: S105  # the variable's name

DATABASE: Final = "database"
KUBERNETES: Final = "kubernetes"
APPLICATION: Final = "application"

# The types of outputs and services that belong to a service on the telemetry page; all other types count as "other".
SERVICE_OF_TYPE: Final = {
    "database": DATABASE,
    "database-tunnel": DATABASE,
    "kubernetes": KUBERNETES,
    "kubernetes/v2": KUBERNETES,
    "kubernetes/argo-cd": KUBERNETES,
    "application": APPLICATION,
    "application-tunnel": APPLICATION,
    "application-proxy": APPLICATION,
}
_V1_SERVICES: Final = {"database": DATABASE, "kubernetes_cluster": KUBERNETES, "app": APPLICATION}

# Subcommands of `tbot start`: other names of a type, those that add no destination, and those that add another one.
_SUBCOMMAND_ALIASES: Final = {
    "app": "application",
    "app-proxy": "application-proxy",
    "app-tunnel": "application-tunnel",
    "db": "database",
    "db-tunnel": "database-tunnel",
    "k8s": "kubernetes",
    "k8s/v2": "kubernetes/v2",
    "k8s/argo-cd": "kubernetes/argo-cd",
}
_PLAIN_SUBCOMMANDS: Final = frozenset(("", "legacy", "noop", "no-op"))
_OTHER_SUBCOMMANDS: Final = {
    "bot-api", "id", "identity", "spiffe-svid", "spiffe-workload-api", "ssh", "ssh-multiplexer",
    "workload-identity-api", "workload-identity-aws-roles-anywhere", "workload-identity-jwt", "workload-identity-x509",
}  # fmt: skip
KNOWN_SUBCOMMANDS: Final = {*SERVICE_OF_TYPE, *_SUBCOMMAND_ALIASES, *_PLAIN_SUBCOMMANDS, *_OTHER_SUBCOMMANDS} - {""}

_JOIN_URI_PARTS: Final = ("tbot", "address kind", "method")
_ADDRESS_KINDS: Final = ("proxy", "auth")
_JOIN_URI_RULE: Final = "not a join URI; write tbot+proxy+METHOD://TOKEN@HOST:PORT, or tbot+auth+…"

# "Teleport v18.4.1 git:v18.4.1-0-g0123456 go1.24.5"; the rule of the event drops the "v" and what follows the version.
_VERSION_LINE: Final = re.compile(r"\s*(?:Teleport\s+(?:[A-Za-z]+\s+)?)?(?=v?[0-9])")

# The spellings that gopkg.in/yaml.v3, with which tbot reads, accepts for a boolean field.
_BOOLEANS: Final = dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"), True) | (
    dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"), False)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TbotConfig:
    """The facts of a configuration: run mode, join method ("" if unknown), and one service name per destination."""

    is_one_shot: bool = False
    join_type: JoinType = ""
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFlags:
    """The flags of `tbot start` that change the event. Tokens, pins and folders are not kept, only that they were set.

    `config_string` is base64. `is_one_shot` is None without --oneshot and --no-oneshot. `subcommand` is "" if absent.
    """

    config_path: str = ""
    config_string: str = ""
    is_one_shot: bool | None = None
    join_type: JoinType = ""
    has_token: bool = False
    has_ca_pin: bool = False
    has_destination_dir: bool = False
    subcommand: str = ""


def read_event(
    flags: StartFlags, environ: Mapping[str, str], *, version: str = "", helper: str = "", helper_version: str = ""
) -> TbotStart:
    """Returns the event of a tbot that is started with *flags* under *environ*.

    Reads the file that --config or TBOT_CONFIG_PATH names, or decodes --config-string or TBOT_CONFIG (base64).
    *version* may be the line that `tbot version` prints. A *helper* that is not given comes from tbot's own variables.

    Raises:
        TbotConfigError: the configuration cannot be read or is invalid.
    """
    config = apply_flags(_read_config(flags, environ), flags, has_token=bool(environ.get(TOKEN_VARIABLE)))
    return TbotStart(
        run_mode="one-shot" if config.is_one_shot else "daemon",
        version=parse_version(version),
        join_type=config.join_type,
        helper=helper or environ.get(HELPER_VARIABLE, ""),
        helper_version=helper_version or environ.get(HELPER_VERSION_VARIABLE, ""),
        destinations_database=config.services.count(DATABASE),
        destinations_kubernetes=config.services.count(KUBERNETES),
        destinations_application=config.services.count(APPLICATION),
        destinations_other=config.services.count(OTHER),
    )


def parse_version(text: str) -> str:
    """Returns the version in *text*, which is one or the line that `tbot version` prints; else *text*. Pure."""
    found = _VERSION_LINE.match(text)
    return text[found.end() :] if found else text


def apply_flags(config: TbotConfig, flags: StartFlags, *, has_token: bool = False) -> TbotConfig:
    """Applies *flags* to *config* as tbot does; *has_token* means that the environment holds a token. Pure.

    A token, a CA pin or a join method replaces the whole onboarding section, --destination-dir all destinations
    by one identity output. A subcommand adds one destination.
    """
    if flags.join_type or flags.has_token or flags.has_ca_pin or has_token:
        config = replace(config, join_type=flags.join_type)
    if flags.is_one_shot is not None:
        config = replace(config, is_one_shot=flags.is_one_shot)
    if flags.has_destination_dir:
        config = replace(config, services=(OTHER,))
    if flags.subcommand not in _PLAIN_SUBCOMMANDS:
        kind = _SUBCOMMAND_ALIASES.get(flags.subcommand, flags.subcommand)
        config = replace(config, services=(*config.services, SERVICE_OF_TYPE.get(kind, OTHER)))
    return config


def parse_join_uri(uri: str, *, source: str, line: int = 0) -> JoinType:
    """Returns the join type in *uri*; drops its token and its host. *source* names it in errors. Pure.

    Raises:
        TbotConfigError: *uri* is not a join URI.
    """
    scheme, separator, rest = uri.partition("://")
    parts = scheme.lower().split("+", 2)
    if not (separator and len(parts) == len(_JOIN_URI_PARTS) and parts[0] == "tbot" and parts[1] in _ADDRESS_KINDS):
        raise TbotConfigError(source, _JOIN_URI_RULE, line=line)
    if not (parts[2] and "@" in rest):
        raise TbotConfigError(source, _JOIN_URI_RULE, line=line)
    method = parts[2].replace("-", "_")
    # tbot accepts these without the underscore too.
    joined = {"boundkeypair": "bound_keypair", "azuredevops": "azure_devops"}
    joined |= {"terraformcloud": "terraform_cloud", "genericoidc": "generic_oidc"}
    return to_join_type(joined.get(method, method))


def parse_config(data: bytes, *, source: str) -> TbotConfig:
    """Parses the YAML in *data*; *source* names it in errors. Pure.

    As in tbot, an empty file is an empty configuration of version v1.

    Raises:
        TbotConfigError: *data* is not a configuration of tbot; says where, which rule, and what to do.
    """
    root = parse_yaml(data, source=source)
    if root is None or root.is_null:
        return TbotConfig()
    reader = _Reader(source)
    top = reader.read_map(root, "the file")
    version = reader.find_text(top, "version") or "v1"
    if version not in ("v1", "v2"):
        raise TbotConfigError(source, "version: unknown; use v1 or v2", line=top["version"].line)
    services = list(reader.list_v2(top) if version == "v2" else reader.list_v1(top))
    join_type: JoinType = ""
    if (onboarding := reader.find_map(top, "onboarding")) is not None:
        join_type = to_join_type(reader.find_text(onboarding, "join_method"))
    if uri := reader.find_text(top, "join_uri"):
        join_type = parse_join_uri(uri, source=source, line=top["join_uri"].line)
    return TbotConfig(is_one_shot=reader.find_boolean(top, "oneshot"), join_type=join_type, services=tuple(services))


def _read_config(flags: StartFlags, environ: Mapping[str, str]) -> TbotConfig:
    path = flags.config_path or environ.get(CONFIG_PATH_VARIABLE, "")
    encoded_source = "--config-string" if flags.config_string else CONFIG_VARIABLE
    encoded = flags.config_string or environ.get(CONFIG_VARIABLE, "")
    path_source = "--config" if flags.config_path else CONFIG_PATH_VARIABLE
    if path and encoded:
        raise TbotConfigError(encoded_source, f"set together with {path_source}; remove one of them")
    if encoded:
        try:
            data = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise TbotConfigError(encoded_source, "not base64; encode the file, for example with `base64`") from None
        return parse_config(data, source=encoded_source)
    if not path:
        return TbotConfig()
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        # Not the path: it may be the configuration itself, by mistake.
        raise TbotConfigError(path_source, f"cannot be read ({reason}); check path and rights") from None
    return parse_config(data, source=path)


class _Reader:
    """Reads the few fields that matter; names the field in errors, never its value."""

    def __init__(self, source: str) -> None:
        self._source = source

    def read_map(self, node: Node, name: str) -> dict[str, Node]:
        if node.entries is None:
            raise self._error(node, f"{name}: must be a map")
        merged: dict[str, Node] = {}
        for key, value in node.entries:
            # Only text keys matter here; `<<` adds the entries that the map itself does not have.
            if key.text == "<<" and key.is_plain:
                for source in value.items if value.items is not None else [value]:
                    merged = self.read_map(source, f"{name}: <<") | merged
        return merged | {key.text: value for key, value in node.entries if key.text is not None}

    def find_map(self, fields: Mapping[str, Node], name: str) -> dict[str, Node] | None:
        node = self._find(fields, name)
        return None if node is None else self.read_map(node, name)

    def find_text(self, fields: Mapping[str, Node], name: str) -> str:
        node = self._find(fields, name)
        if node is None:
            return ""
        if node.text is None:
            raise self._error(node, f"{name}: must be a string")
        return node.text

    def find_boolean(self, fields: Mapping[str, Node], name: str) -> bool:
        node = self._find(fields, name)
        if node is None:
            return False
        if not node.is_plain or node.text not in _BOOLEANS:
            raise self._error(node, f"{name}: must be true or false, without quotes")
        return _BOOLEANS[node.text]

    def list_maps(self, fields: Mapping[str, Node], name: str) -> Iterator[tuple[Node, dict[str, Node]]]:
        node = self._find(fields, name)
        if node is None:
            return
        if node.items is None:
            raise self._error(node, f"{name}: must be a list")
        for item in node.items:
            yield item, self.read_map(item, f"an entry of {name}")

    def list_v2(self, top: Mapping[str, Node]) -> Iterator[str]:
        if "destinations" in top:
            raise self._error(top["destinations"], "destinations: not allowed in a v2 file; use outputs")
        for name in ("outputs", "services"):
            for item, fields in self.list_maps(top, name):
                kind = self.find_text(fields, "type")
                if not kind:
                    raise self._error(item, f"an entry of {name}: has no type; add one, such as `type: identity`")
                yield SERVICE_OF_TYPE.get(kind, OTHER)

    def list_v1(self, top: Mapping[str, Node]) -> Iterator[str]:
        for name in ("outputs", "services"):
            if name in top:
                raise self._error(top[name], f"{name}: not allowed in a v1 file; add `version: v2`")
        for item, fields in self.list_maps(top, "destinations"):
            found = [service for name, service in _V1_SERVICES.items() if self._is_given(fields, name)]
            if len(found) > 1:
                names = ", ".join(_V1_SERVICES)
                raise self._error(item, f"an entry of destinations: must have at most one of {names}; split it")
            yield found[0] if found else OTHER

    def _is_given(self, fields: Mapping[str, Node], name: str) -> bool:
        node = self._find(fields, name)
        return node is not None and node.text != ""

    def _find(self, fields: Mapping[str, Node], name: str) -> Node | None:
        """Returns the node of *name*; None if it is missing or null, which is the same to tbot."""
        node = fields.get(name)
        return None if node is None or node.is_null else node

    def _error(self, node: Node, rule: str) -> TbotConfigError:
        return TbotConfigError(self._source, rule, line=node.line)
