"""How the settings of a relay are found and checked (R8). The table of them is in ``config_table``; this is the door to both.

Theory of operation
-------------------
Loading goes in steps, none of which stops at the first problem:

1. Collect what was given: the TOML file, then the environment, then the command line. Unknown names are problems.
2. Parse every given value, also those that another source overrides: a wrong line in a file is wrong whether it matters today or
   not. The strongest source wins: command line, environment, TOML, default.
3. Look for required settings that nobody gave, and for values that contradict each other.

``ConfigError`` carries all problems, each naming the setting, where its value came from and what would be right. Only the TOML
file is read here; whether the certificate and the key files can be used is found out by those who load them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from zrc_relay.config_endpoints import UnixEndpoint
from zrc_relay.config_external import MAX_SECRET, Secret
from zrc_relay.config_table import (
    CONFIG_VARIABLE,
    ENVIRONMENT_PREFIX,
    LOG_LEVELS_TABLE,
    NOWHERE,
    OTHER_VARIABLES,
    SECRETS,
    SETTINGS,
    TIER_KEYS,
    TIERS_TABLE,
    Config,
    RequireProof,
    SecretVariable,
    Section,
    Setting,
    TrustModel,
    option_parameters,
)
from zrc_relay.config_units import AUTO
from zrc_relay.config_values import MAX_PORT, NAMESPACE, TIER_NAME, quote, show
from zrc_relay.core.routing import MAX_WORKERS
from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier
from zrc_relay.logs.levels import LogLevel

__all__ = [
    "CONFIG_VARIABLE", "SETTINGS", "TIER_KEYS", "Config", "ConfigError", "Problem", "RequireProof", "Section",
    "Setting", "Tier", "TrustModel", "find_config", "load_config", "option_parameters",
]

_DEFAULTS: Final[Mapping[str, Any]] = {item.name: item.default for item in fields(Config) if item.default is not MISSING}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: with which setting, where it was given, what is wrong, and what would be right."""

    setting: str
    source: str
    wrong: str
    right: str

    def __str__(self) -> str:
        """On one line."""
        return f"{self.setting} ({self.source}): {self.wrong}; {self.right}"


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` holds everything that is wrong with it, at least one thing."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def find_config(environ: Mapping[str, str], option: str | None = None) -> Path | None:
    """The TOML file to read: the one the option ``--config`` names, else the one ``ZRC_RELAY_CONFIG`` names, else none."""
    name = option or environ.get(CONFIG_VARIABLE)
    return Path(name) if name else None


def load_config(
    *, path: Path | None, environ: Mapping[str, str], options: Mapping[str, str | None], cwd: Path | None = None,
) -> Config:
    """The settings that a TOML file, the environment and the command line make together.

    ``options`` may name settings with dashes or underscores, may hold None for what was not given, and ``config`` is passed over.
    Relative paths start at the directory of the TOML file, or, given elsewhere, at ``cwd`` (None: the process's). ``ConfigError``
    lists every problem.
    """
    loading = _Loading(cwd=(cwd or Path.cwd()).absolute())
    if path is not None:
        loading.read_toml(path)
    loading.read_environment(environ)
    loading.read_options(options)
    return loading.finish()


class _Loading:
    """One run of ``load_config``: what was understood so far, and the problems."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._toml = ""
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._tier_tables: dict[str, dict[str, int | None]] = {}
        self._log_levels: dict[str, LogLevel] = {}
        self._problems: list[Problem] = []
        self._unusable: set[str] = set()
        """Settings that were given, but wrongly: not missing, and not to be compared with others."""
        self._knows_everything_given = True

    def read_toml(self, path: Path) -> None:
        """Take in the file; called first, because later sources win."""
        self._toml = str(path)
        path = self._cwd / path
        try:
            document = tomllib.loads(path.read_bytes().decode())
        except OSError as error:
            self._refuse_file(f"cannot be read: {error.strerror or error}", "name a TOML file that the relay may read")
        except RecursionError:
            self._refuse_file("nested too deeply", "it must be TOML as the example file shows it")
        except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
            self._refuse_file(f"not TOML: {error}", "it must be TOML in UTF-8")
        else:
            for name, raw in document.items():
                if name == TIERS_TABLE:
                    self._read_tiers(raw)
                elif name == LOG_LEVELS_TABLE:
                    self._read_log_levels(raw)
                else:
                    known = [*SETTINGS, TIERS_TABLE, LOG_LEVELS_TABLE]
                    self._read(name, raw, source=self._toml, base=path.parent, known=known)

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Take in the variables that begin with the prefix."""
        known = {setting.variable: setting for setting in SETTINGS.values()}
        secrets = {secret.variable: secret for secret in SECRETS.values()}
        for variable, raw in environ.items():
            if variable in known:
                self._parse(known[variable], raw, f"variable {variable}", self._cwd)
            elif variable in secrets:
                self._parse_secret(secrets[variable], raw)
            elif variable == CONFIG_VARIABLE or variable in OTHER_VARIABLES or _is_service_link(variable, raw):
                continue
            elif variable.startswith(ENVIRONMENT_PREFIX):
                remedy = _remedy(variable, [*known, *secrets, CONFIG_VARIABLE], "unset it", prefix=ENVIRONMENT_PREFIX)
                self._problem(variable, "environment", "unknown variable", remedy)

    def read_options(self, options: Mapping[str, str | None]) -> None:
        """Take in the command line."""
        for option, raw in options.items():
            name = option.replace("-", "_")
            if raw is not None and name != "config":
                self._read(name, raw, source=f"option --{option.replace('_', '-')}", base=self._cwd, known=list(SETTINGS))

    def finish(self) -> Config:
        """The configuration; ``ConfigError`` if anything was or is wrong."""
        if self._knows_everything_given:
            for setting in SETTINGS.values():
                if setting.is_required and setting.name not in self._values and setting.name not in self._unusable:
                    self._miss(setting)
        self._compare()
        if self._problems:
            raise ConfigError(self._problems)
        config = Config(**self._values)
        default = config.default_tier()
        tiers = {
            name: _tier(name, BUILT_IN_TIERS.get(name, default), changes) for name, changes in self._tier_tables.items()
        }
        return Config(
            **self._values, tiers=MappingProxyType({**BUILT_IN_TIERS, **tiers}), log_levels=MappingProxyType(self._log_levels)
        )

    def _read(self, name: str, raw: object, *, source: str, base: Path, known: list[str]) -> None:
        setting = SETTINGS.get(name)
        if name in SECRETS:
            secret = SECRETS[name]
            right = f"put it in a file that {secret.path_setting} names, or in {secret.variable}"
            self._problem(name, source, "a secret does not belong here", right)
        elif setting is None:
            self._problem(name, source, "unknown setting", _remedy(name, known))
        else:
            self._parse(setting, raw, source, base)

    def _parse_secret(self, secret: SecretVariable, raw: str) -> None:
        source = f"variable {secret.variable}"
        try:
            self._values[secret.name] = Secret.parse(raw, secret.minimum)
            self._sources[secret.name] = source
        except ValueError as error:  # which does not quote it
            self._unusable.add(secret.name)
            right = f"must be {secret.minimum} to {MAX_SECRET} printable ASCII characters without blanks"
            self._problem(secret.name, source, str(error), right)

    def _parse(self, setting: Setting, raw: object, source: str, base: Path) -> None:
        try:
            self._values[setting.name] = setting.kind.parse(raw, base)
            self._sources[setting.name] = source
        except ValueError as error:
            self._unusable.add(setting.name)
            self._problem(setting.name, source, f"{show(raw)} {error}", f"must be {setting.kind.expected}")

    def _read_tiers(self, raw: object) -> None:
        if not isinstance(raw, dict):
            self._problem(TIERS_TABLE, self._toml, f"{show(raw)} is no table", "write a [tiers.<name>] table for each tier")
            return
        for name, table in raw.items():
            where = f"{TIERS_TABLE}.{name}"
            if not TIER_NAME.fullmatch(name):
                right = "must be 1 to 32 of a-z, 0-9, - and _, and begin with a letter or digit"
                self._problem(where, self._toml, "not a tier's name", right)
            if isinstance(table, dict):
                self._tier_tables[name] = self._read_tier(where, table)
            else:
                self._problem(where, self._toml, f"{show(table)} is no table", f"write [{where}] with {', '.join(TIER_KEYS)}")

    def _read_tier(self, where: str, table: Mapping[str, object]) -> dict[str, int | None]:
        changes: dict[str, int | None] = {}
        for key, raw in table.items():
            if key in SETTINGS:
                self._problem(f"{where}.{key}", self._toml, "a setting inside a table", "move it above the first [table]")
            elif key not in TIER_KEYS:
                self._problem(f"{where}.{key}", self._toml, "unknown key", _remedy(key, TIER_KEYS))
            else:
                field_name, kind, _ = TIER_KEYS[key]
                try:
                    changes[field_name] = kind.parse(raw, NOWHERE)
                except ValueError as error:
                    self._problem(f"{where}.{key}", self._toml, f"{show(raw)} {error}", f"must be {kind.expected}")
        return changes

    def _read_log_levels(self, raw: object) -> None:
        if not isinstance(raw, dict):
            right = f"write a [{LOG_LEVELS_TABLE}] table of namespaces and levels"
            self._problem(LOG_LEVELS_TABLE, self._toml, f"{show(raw)} is no table", right)
            return
        kind = SETTINGS["log_level"].kind
        for namespace, level in raw.items():
            where = f"{LOG_LEVELS_TABLE}.{quote(namespace)}"
            if namespace in SETTINGS:
                self._problem(where, self._toml, "a setting inside a table", "move it above the first [table]")
            elif not NAMESPACE.fullmatch(namespace):
                self._problem(where, self._toml, "not a namespace", 'must be the name of a module, such as "zrc_relay.quic"')
            elif isinstance(level, dict):
                self._problem(where, self._toml, "a table in the table", "put the namespace in quotation marks")
            else:
                try:
                    self._log_levels[namespace] = kind.parse(level, NOWHERE)
                except ValueError as error:
                    self._problem(where, self._toml, f"{show(level)} {error}", f"must be {kind.expected}")

    def _miss(self, setting: Setting) -> None:
        """A required setting was not given; there may be another one that makes it unnecessary."""
        if setting.unless is not None:
            other, value = setting.unless
            if other in self._unusable or self._values.get(other, _DEFAULTS[other]) == value:
                return
        in_file = f"in {self._toml}" if self._toml else "in a TOML file"
        self._problem(
            setting.name, "not given", "required",
            f"set it {in_file}, as {setting.variable} or as --{setting.option} to {setting.kind.expected}",
        )

    def _compare(self) -> None:
        """Find the values that are right by themselves and wrong together."""
        base, largest = self._pair("base_udp_payload", "max_udp_payload")
        if largest < base:
            self._problem(
                "max_udp_payload", self._source("max_udp_payload"), f"{largest} is less than base_udp_payload",
                f"must be at least {base} ({self._source('base_udp_payload')})",
            )
        keepalive, idle = self._pair("keepalive_interval", "quic_idle_timeout")
        if keepalive >= idle:
            text = SETTINGS["quic_idle_timeout"].kind.format(idle)
            self._problem(
                "keepalive_interval", self._source("keepalive_interval"), "connections would die between two keepalives",
                f"must be shorter than quic_idle_timeout, which is {text} ({self._source('quic_idle_timeout')})",
            )

        self._compare_workers()
        self._compare_admission()
        self._compare_admin()
        self._compare_secrets("webhook_url", "webhook_secret")
        self._compare_secrets("bouncer_url", "bouncer_key")

    def _compare_workers(self) -> None:
        """The ports of several workers, which are one behind the other, with the one that they share."""
        names = ("workers", "worker_port_base", "listen_port")
        if self._unusable & {*names}:
            return
        workers, base, shared = (self._values.get(name, _DEFAULTS[name]) for name in names)
        count = MAX_WORKERS if workers == AUTO else workers
        if count == 1 or (base is None and shared == 0):
            return
        name = "listen_port" if base is None else "worker_port_base"
        first = shared + 1 if base is None else base
        last = first + count - 1
        if last > MAX_PORT:
            right = f"must leave room for the ports of {count} workers, {first} to {last} as it is"
            self._problem(name, self._source(name), f"there is no port {last}", right)
        elif first <= shared <= last:
            right = f"must leave out listen_port ({self._source('listen_port')}) with {count} workers, {first} to {last} as it is"
            self._problem(name, self._source(name), f"port {shared} would be one worker's and that of all", right)

    def _compare_admission(self) -> None:
        """The lists of networks with each other, and a tier's name with the tiers there are."""
        both = sorted(set(self._values.get("allow", ())) & set(self._values.get("block", ())))
        if both:
            self._problem(
                "block", self._source("block"), f"{both[0]} is allowed, too",
                f"a network may be in one list only, and allow ({self._source('allow')}) has it",
            )
        tier = self._values.get("self_certified_tier")
        known = sorted({*BUILT_IN_TIERS, *self._tier_tables})
        if tier is not None and tier not in known:
            right = f"must be one of {', '.join(known)}"
            self._problem("self_certified_tier", self._source("self_certified_tier"), f"there is no tier {show(tier)}", right)

    def _compare_admin(self) -> None:
        """An admin endpoint that nobody could use is a slip."""
        if self._unusable & {"admin_endpoint", "admin_tokens_path", "admin_unix_trust"}:
            return
        endpoint = self._values.get("admin_endpoint")
        trusts_peers = self._values.get("admin_unix_trust", False)
        if trusts_peers and endpoint is not None and not isinstance(endpoint, UnixEndpoint):
            right = f"must be a unix: endpoint ({self._source('admin_endpoint')}), or admin_unix_trust false"
            self._problem("admin_unix_trust", self._source("admin_unix_trust"), "there is no UNIX socket", right)
        elif endpoint is not None and not trusts_peers and self._values.get("admin_tokens_path") is None:
            right = "name a file of tokens with admin_tokens_path, or set admin_unix_trust for a unix: endpoint"
            self._problem("admin_endpoint", self._source("admin_endpoint"), "nobody could use it", right)

    def _compare_secrets(self, url: str, name: str) -> None:
        """Exactly one source for the secret that goes with a URL."""
        secret = SECRETS[name]
        if self._unusable & {url, name, secret.path_setting}:
            return
        has_path = self._values.get(secret.path_setting) is not None
        if has_path and name in self._values:
            right = f"unset it or remove {secret.path_setting} ({self._source(secret.path_setting)})"
            self._problem(name, self._source(name), "the secret is given twice", right)
        elif self._values.get(url) is not None and not has_path and name not in self._values:
            right = f"name a file with {secret.path_setting}, or set {secret.variable}"
            self._problem(url, self._source(url), "there is no secret to go with it", right)

    def _pair(self, first: str, second: str) -> tuple[float, float]:
        """Both values; those that stand in the table if either is unusable, because they get along."""
        if self._unusable & {first, second}:
            return _DEFAULTS[first], _DEFAULTS[second]
        return self._values.get(first, _DEFAULTS[first]), self._values.get(second, _DEFAULTS[second])

    def _source(self, name: str) -> str:
        return self._sources.get(name, "default")

    def _refuse_file(self, wrong: str, right: str) -> None:
        self._knows_everything_given = False  # what seems to be missing may well be in the file
        self._problem("config", self._toml, wrong, right)

    def _problem(self, setting: str, source: str, wrong: str, right: str) -> None:
        self._problems.append(Problem(setting, source, wrong, right))


def _tier(name: str, base: Tier, changes: Mapping[str, int | None]) -> Tier:
    values = {"bandwidth_limit": base.bandwidth_limit, "quota": base.quota, "max_allocations": base.max_allocations, **changes}
    return Tier(name, **values)


def _remedy(name: str, known: Iterable[str], otherwise: str = "remove it", *, prefix: str = "") -> str:
    """A guess which of the ``known`` names was meant; what all of them begin with does not count as likeness."""
    candidates = [candidate.removeprefix(prefix) for candidate in known]
    close = difflib.get_close_matches(name.removeprefix(prefix).replace("-", "_"), candidates, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else otherwise


_SERVICE_LINK: Final = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)")


def _is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes put the variable there.

    It gives every container variables of the services near it, and those of a service called "zrc-relay" begin with our prefix.
    ``ZRC_RELAY_PORT=4433``, on the other hand, is somebody's mistake.
    """
    return _SERVICE_LINK.fullmatch(variable) is not None or (variable.endswith("_PORT") and "://" in value)
