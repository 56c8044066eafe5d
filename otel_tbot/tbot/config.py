"""tbot's configuration: a file, tbot's variables and flags go in, a `TbotStart` comes out.

Only counts, the run mode and the join method are taken. No other value of a file is kept, logged or repeated.
Destinations are counted by the telemetry page's words, "associated with the … Service", whichever source names them.
Source: Teleport, tbot's configuration reference (v1, v2), CLI reference of `tbot start`, "Telemetry" page.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from otel_tbot.errors import TbotConfigError
from otel_tbot.event import OTHER, TbotStart, to_join_type
from otel_tbot.tbot.yaml_nodes import MAX_CONFIG_BYTES, Node, parse_yaml

CONFIG_PATH_VARIABLE: Final = "TBOT_CONFIG_PATH"
CONFIG_VARIABLE: Final = "TBOT_CONFIG"
TOKEN_VARIABLE: Final = "TELEPORT_BOT_TOKEN"  # noqa: S105  # its name
HELPER_VARIABLE: Final = "_TBOT_TELEMETRY_HELPER"
HELPER_VERSION_VARIABLE: Final = "_TBOT_TELEMETRY_HELPER_VERSION"


DATABASE: Final = "database"
KUBERNETES: Final = "kubernetes"
APPLICATION: Final = "application"

# The types of outputs and services that the telemetry page names a service for; every other is a destination of none.
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

# Subcommands of `tbot start` that are other names of a type, and those that add no destination.
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

_JOIN_URI_PARTS: Final = ("tbot", "address kind", "method")
_ADDRESS_KINDS: Final = ("proxy", "auth")
_JOIN_URI_RULE: Final = "no join URI; write tbot+proxy+METHOD://TOKEN@HOST:PORT, or auth for proxy"

_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
# As gopkg.in/yaml.v3, with which tbot reads, takes them for a field that is a boolean.
_BOOLEANS: Final = dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"), True) | (
    dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"), False)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TbotConfig:
    """What a configuration says of the event: run mode, join method ("" unknown), one service a destination."""

    is_one_shot: bool = False
    join_type: str = ""
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFlags:
    """What tbot's flags say of the event; `has_token` that there is one, which is not kept.

    `is_one_shot` is None where neither --oneshot nor --no-oneshot is there. `subcommand` is that of `tbot start`.
    """

    config_path: str = ""
    is_one_shot: bool | None = None
    join_type: str = ""
    has_token: bool = False
    has_destination_dir: bool = False
    subcommand: str = ""


def read_event(
    flags: StartFlags, environ: Mapping[str, str], *, version: str = "", helper: str = "", helper_version: str = ""
) -> TbotStart:
    """The event of a tbot that is started with *flags* under *environ*; *version* and helper are what is known of them.

    Reads the file that --config or TBOT_CONFIG_PATH names, or what TBOT_CONFIG holds (base64).

    Raises:
        TbotConfigError: it cannot be read, or is no configuration of tbot.
    """
    config = apply_flags(_read_config(flags, environ), flags, has_token=bool(environ.get(TOKEN_VARIABLE)))
    return TbotStart(
        run_mode="one-shot" if config.is_one_shot else "daemon",
        version=version,
        join_type=config.join_type,
        helper=helper or environ.get(HELPER_VARIABLE, ""),
        helper_version=helper_version or environ.get(HELPER_VERSION_VARIABLE, ""),
        destinations_database=config.services.count(DATABASE),
        destinations_kubernetes=config.services.count(KUBERNETES),
        destinations_application=config.services.count(APPLICATION),
        destinations_other=config.services.count(OTHER),
    )


def apply_flags(config: TbotConfig, flags: StartFlags, *, has_token: bool = False) -> TbotConfig:
    """*config* with *flags* over it, as tbot puts them; *has_token* says that the environment holds one. Pure.

    A token or a join method replaces the whole onboarding section, --destination-dir all destinations by one identity
    output; a subcommand adds its own.
    """
    if flags.join_type or flags.has_token or has_token:
        config = replace(config, join_type=flags.join_type)
    if flags.is_one_shot is not None:
        config = replace(config, is_one_shot=flags.is_one_shot)
    if flags.has_destination_dir:
        config = replace(config, services=(OTHER,))
    if flags.subcommand not in _PLAIN_SUBCOMMANDS:
        kind = _SUBCOMMAND_ALIASES.get(flags.subcommand, flags.subcommand)
        config = replace(config, services=(*config.services, SERVICE_OF_TYPE.get(kind, OTHER)))
    return config


def parse_join_uri(uri: str, *, place: str, line: int = 0) -> str:
    """The join type that *uri* names; its token and host are dropped here. Pure.

    Raises:
        TbotConfigError: it is no join URI.
    """
    scheme, separator, rest = uri.partition("://")
    parts = scheme.lower().split("+", 2)
    if not (separator and len(parts) == len(_JOIN_URI_PARTS) and parts[0] == "tbot" and parts[1] in _ADDRESS_KINDS):
        raise TbotConfigError(place, _JOIN_URI_RULE, line=line)
    if not (parts[2] and "@" in rest):
        raise TbotConfigError(place, _JOIN_URI_RULE, line=line)
    method = parts[2].replace("-", "_")
    # tbot takes these without their underscore too.
    joined = {"boundkeypair": "bound_keypair", "azuredevops": "azure_devops"}
    joined |= {"terraformcloud": "terraform_cloud", "genericoidc": "generic_oidc"}
    return to_join_type(joined.get(method, method))


def parse_config(data: bytes, *, place: str) -> TbotConfig:
    """What the YAML in *data* says of the event; *place* names it in errors. Pure.

    An empty file is an empty configuration of version v1, as tbot has it.

    Raises:
        TbotConfigError: it is no configuration of tbot: where, which rule, what to do.
    """
    root = parse_yaml(data, place=place)
    if root is None:
        return TbotConfig()
    reader = _Reader(place)
    top = reader.read_map(root, "the file")
    version = reader.find_text(top, "version") or "v1"
    if version not in ("v1", "v2"):
        raise TbotConfigError(place, "version: must be v1 or v2", line=top["version"].line)
    services = list(reader.list_v2(top) if version == "v2" else reader.list_v1(top))
    join_type = ""
    if (onboarding := reader.find_map(top, "onboarding")) is not None:
        join_type = to_join_type(reader.find_text(onboarding, "join_method"))
    if uri := reader.find_text(top, "join_uri"):
        join_type = parse_join_uri(uri, place=place, line=top["join_uri"].line)
    return TbotConfig(is_one_shot=reader.find_boolean(top, "oneshot"), join_type=join_type, services=tuple(services))


def _read_config(flags: StartFlags, environ: Mapping[str, str]) -> TbotConfig:
    path = flags.config_path or environ.get(CONFIG_PATH_VARIABLE, "")
    encoded = environ.get(CONFIG_VARIABLE, "")
    if path and encoded:
        raise TbotConfigError(CONFIG_VARIABLE, f"set beside {CONFIG_PATH_VARIABLE} or --config; leave one of them")
    if encoded:
        try:
            data = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise TbotConfigError(CONFIG_VARIABLE, "not base64; encode the file, for example with `base64`") from None
        return parse_config(data, place=CONFIG_VARIABLE)
    if not path:
        return TbotConfig()
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is malformed"
        raise TbotConfigError(path, f"cannot be read ({reason}); check --config and {CONFIG_PATH_VARIABLE}") from None
    return parse_config(data, place=path)


class _Reader:
    """Reads the few fields that matter; names the field in errors, never its value."""

    def __init__(self, place: str) -> None:
        self._place = place

    def read_map(self, node: Node, name: str) -> dict[str, Node]:
        if node.entries is None:
            raise self._fault(node, f"{name}: must be a map")
        merged: dict[str, Node] = {}
        for key, value in node.entries:
            # A key that is no text is none of ours; `<<` adds what the map itself does not have.
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
            raise self._fault(node, f"{name}: must be a text")
        return node.text

    def find_boolean(self, fields: Mapping[str, Node], name: str) -> bool:
        node = self._find(fields, name)
        if node is None:
            return False
        if not node.is_plain or node.text not in _BOOLEANS:
            raise self._fault(node, f"{name}: must be true or false, without quotes")
        return _BOOLEANS[node.text]

    def list_maps(self, fields: Mapping[str, Node], name: str) -> Iterator[tuple[Node, dict[str, Node]]]:
        node = self._find(fields, name)
        if node is None:
            return
        if node.items is None:
            raise self._fault(node, f"{name}: must be a list")
        for item in node.items:
            yield item, self.read_map(item, f"an entry of {name}")

    def list_v2(self, top: Mapping[str, Node]) -> Iterator[str]:
        if "destinations" in top:
            raise self._fault(top["destinations"], "destinations: of v1, in a v2 file; write outputs")
        for name in ("outputs", "services"):
            for item, fields in self.list_maps(top, name):
                kind = self.find_text(fields, "type")
                if not kind:
                    raise self._fault(item, f"an entry of {name}: must have a type")
                yield SERVICE_OF_TYPE.get(kind, OTHER)

    def list_v1(self, top: Mapping[str, Node]) -> Iterator[str]:
        for name in ("outputs", "services"):
            if name in top:
                raise self._fault(top[name], f"{name}: of v2, in a v1 file; add `version: v2`")
        for item, fields in self.list_maps(top, "destinations"):
            found = [service for name, service in _V1_SERVICES.items() if self._is_given(fields, name)]
            if len(found) > 1:
                names = ", ".join(_V1_SERVICES)
                raise self._fault(item, f"an entry of destinations: must have one of {names} at most")
            yield found[0] if found else OTHER

    def _is_given(self, fields: Mapping[str, Node], name: str) -> bool:
        node = self._find(fields, name)
        return node is not None and node.text != ""

    def _find(self, fields: Mapping[str, Node], name: str) -> Node | None:
        """The node of *name*; None where it is missing or null, which tbot takes for the same."""
        node = fields.get(name)
        is_null = node is not None and node.text is not None and node.is_plain and node.text in _NULLS
        return None if is_null else node

    def _fault(self, node: Node, rule: str) -> TbotConfigError:
        return TbotConfigError(self._place, rule, line=node.line)
