"""The table of settings, loading it, and what is generated from it."""

from __future__ import annotations

import operator
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.config import (
    CONFIG_VARIABLE,
    SETTINGS,
    Config,
    ConfigError,
    Problem,
    RequireProof,
    TrustModel,
    find_config,
    load_config,
    option_parameters,
)
from zrc_relay.config_endpoints import TcpEndpoint
from zrc_relay.config_external import Secret
from zrc_relay.config_reference import example_toml, reference_markdown
from zrc_relay.config_table import SECRETS
from zrc_relay.core.sources import Rate
from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier
from zrc_relay.logs.levels import LogFormat, LogLevel

Options = Mapping[str, str | None]

ROOT = Path(__file__).resolve().parent.parent
CWD = Path("/somewhere")

REQUIRED = {
    "quic_cert_path": "cert.pem",
    "quic_key_path": "key.pem",
    "relay_id": "00112233445566778899aabbccddeeff",
    "device_keys_path": "devices.toml",
}
"""A value, as text, for each setting that has no default."""

ANOTHER = {
    "listen_addr": "127.0.0.1, ::1", "listen_port": "5000", "relay_addr": "192.0.2.7", "relay_port": "443",
    "quic_cert_path": "/x/c.pem", "quic_key_path": "/x/k.pem", "relay_id": "ff" * 16,
    "device_keys_path": "/x/d.toml", "require_proof": "devices", "max_token_lifetime": "2d",
    "revoke_ends_sessions": "false", "allocation_timeout": "1h", "wait_timeout": "5s", "idle_timeout": "6s",
    "quic_idle_timeout": "40s", "handshake_timeout": "2s", "keepalive_interval": "7s", "max_allocations": "9",
    "max_connections_per_side": "2", "default_bandwidth_limit": "1 MB/s", "default_quota": "2 GB",
    "global_bandwidth_limit": "1 Gbit/s", "bandwidth_burst": "50ms", "stream_window": "64 KiB", "max_streams": "16",
    "max_pending_streams": "3", "egress_queue_bytes": "128 KiB", "egress_queue_age": "20ms", "base_udp_payload": "1250",
    "max_udp_payload": "1300", "channels": "false", "fast_path": "false", "gather_time": "0.2ms",
    "drain_timeout": "1s", "state_dir": "/x/state",
    "admin_endpoint": "unix:/x/admin.sock:mode=660", "admin_tokens_path": "/x/t.toml", "admin_unix_trust": "true",
    "audit_log": "/x/audit.log",
    "observe_endpoint": "unix:/x/observe.sock", "log_format": "text", "log_level": "warn", "qlog_dir": "/x/qlog",
    "security_log": "/x/security.log", "webhook_url": "https://abuse.example/in?tenant=1", "webhook_secret_path": "/x/secret",
    "webhook_ca_path": "/x/ca.pem", "bouncer_url": "http://127.0.0.1:8080", "bouncer_key_path": "/x/key",
    "bouncer_ca_path": "/x/ca.pem", "bouncer_interval": "1min",
    "trust": "self-certified", "self_certified_tier": "paid", "connection_rate": "5/s", "allocation_rate": "off",
    "rejoin_rate": "1000/h", "stun_rate": "2/s", "allow": "192.0.2.0/24, 2001:db8::1", "block": "203.0.113.9",
    "handshake_pressure": "0", "amplification_block": "1min",
    "workers": "auto", "worker_port_base": "6000", "worker_stall": "1min", "worker_affinity": "true",
}
"""For each setting a value that is right and is not its default."""

WRONG = {
    "listen_addr": "everywhere", "listen_port": "65536", "relay_addr": "::", "relay_port": "0", "quic_cert_path": "",
    "quic_key_path": "", "relay_id": "0123", "device_keys_path": "", "require_proof": "sometimes",
    "max_token_lifetime": "0s", "revoke_ends_sessions": "perhaps", "allocation_timeout": "0", "wait_timeout": "-1s",
    "idle_timeout": "20h", "quic_idle_timeout": "none", "handshake_timeout": "61s", "keepalive_interval": "500ms",
    "max_allocations": "0", "max_connections_per_side": "65", "default_bandwidth_limit": "0", "default_quota": "0",
    "global_bandwidth_limit": "10 Mb/s", "bandwidth_burst": "0", "stream_window": "15 KiB", "max_streams": "1",
    "max_pending_streams": "-1", "egress_queue_bytes": "65535", "egress_queue_age": "11s", "base_udp_payload": "1199",
    "max_udp_payload": "9000", "channels": "maybe", "fast_path": "perhaps", "gather_time": "1s",
    "drain_timeout": "soon", "state_dir": "",
    "admin_endpoint": "tcp:9434", "admin_tokens_path": "", "admin_unix_trust": "perhaps", "audit_log": "",
    "observe_endpoint": "tcp:65536", "log_format": "xml", "log_level": "loud", "qlog_dir": "",
    "security_log": "", "webhook_url": "http://abuse.example/", "webhook_secret_path": "", "webhook_ca_path": "",
    "bouncer_url": "https://engine.example/?x=1", "bouncer_key_path": "", "bouncer_ca_path": "", "bouncer_interval": "500ms",
    "trust": "everybody", "self_certified_tier": "Free", "connection_rate": "0/s", "allocation_rate": "10", "rejoin_rate": "-1/s",
    "stun_rate": "1/d", "allow": "192.0.2.1/24", "block": "everyone", "handshake_pressure": "1001", "amplification_block": "0s",
    "workers": "65", "worker_port_base": "0", "worker_stall": "100ms", "worker_affinity": "all",
}
"""For each setting a value just outside what is allowed, or of another kind."""


COMPANIONS: Mapping[str, Mapping[str, str]] = {
    "webhook_url": {"webhook_secret_path": "/x/secret"}, "bouncer_url": {"bouncer_key_path": "/x/key"},
    "admin_endpoint": {"admin_tokens_path": "/x/t.toml"},
}
"""Settings that others need beside them."""


class LoadingTestCase(SynchronousTestCase):
    """Helpers for loading from a scratch directory."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.path = self.directory / "relay.toml"

    def load(
        self, toml: str | bytes | None = None, environ: dict[str, str] | None = None, options: Options | None = None
    ) -> Config:
        """Load from a file with this content, if any, and these variables and options."""
        if toml is not None:
            self.path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        path = None if toml is None else self.path
        return load_config(path=path, environ=environ or {}, options=options or {}, cwd=CWD)

    def problems(
        self, toml: str | bytes | None = None, environ: dict[str, str] | None = None, options: Options | None = None
    ) -> list[Problem]:
        """The problems with these, of which there must be some."""
        error: ConfigError = self.assertRaises(ConfigError, self.load, toml, environ, options)
        return error.problems


def toml_of(values: dict[str, str]) -> str:
    """A TOML file with these settings, as text would give them."""
    return "".join(f"{name} = '{text}'\n" for name, text in values.items())


def variables_of(values: dict[str, str]) -> dict[str, str]:
    """The same as variables."""
    return {SETTINGS[name].variable: text for name, text in values.items()}


def options_of(values: dict[str, str]) -> dict[str, str | None]:
    """The same as options."""
    return {SETTINGS[name].option: text for name, text in values.items()}


class Table(LoadingTestCase):
    """R8: names and defaults, and the shape of the table they are in."""

    DEFAULTS: ClassVar[dict[str, object]] = {
        "listen_addr": ("0.0.0.0", "::"), "listen_port": 4433, "relay_addr": None, "relay_port": None,
        "require_proof": RequireProof.ALWAYS, "max_token_lifetime": 86400.0, "revoke_ends_sessions": True,
        "allocation_timeout": 28800.0, "wait_timeout": 60.0, "idle_timeout": 30.0, "quic_idle_timeout": 30.0,
        "handshake_timeout": 5.0, "keepalive_interval": 15.0, "max_allocations": 1000, "max_connections_per_side": 4,
        "default_bandwidth_limit": 1_250_000, "default_quota": 10**9, "global_bandwidth_limit": None, "bandwidth_burst": 0.1,
        "stream_window": 262144, "max_streams": 32, "max_pending_streams": 64, "egress_queue_bytes": 262144,
        "egress_queue_age": 0.1, "base_udp_payload": 1232, "max_udp_payload": 1452, "channels": True, "fast_path": True,
        "gather_time": 0.0001,
        "drain_timeout": 30.0,
        "observe_endpoint": TcpEndpoint(9433, "127.0.0.1"),
        "admin_endpoint": None, "admin_tokens_path": None, "admin_unix_trust": False, "audit_log": None,
        "log_format": LogFormat.AUTO, "log_level": LogLevel.INFO, "qlog_dir": None, "log_levels": {},
        "state_dir": None, "security_log": None, "webhook_url": None,
        "webhook_secret_path": None, "webhook_ca_path": None, "bouncer_url": None, "bouncer_key_path": None,
        "bouncer_ca_path": None, "bouncer_interval": 10.0, "webhook_secret": None, "bouncer_key": None, "tiers": BUILT_IN_TIERS,
        "trust": TrustModel.PINNED, "self_certified_tier": "free", "connection_rate": Rate(30, 60),
        "allocation_rate": Rate(10, 60), "rejoin_rate": Rate(100, 60), "stun_rate": Rate(60, 60),
        "allow": (), "block": (), "handshake_pressure": 64,
        "amplification_block": 600.0, "workers": 1, "worker_port_base": None, "worker_stall": 5.0, "worker_affinity": False,
    }

    def test_defaults(self) -> None:
        config = self.load(toml_of(REQUIRED))
        self.assertEqual({name: getattr(config, name) for name in self.DEFAULTS}, self.DEFAULTS)
        self.assertEqual({*self.DEFAULTS, *REQUIRED}, {item.name for item in fields(Config)})

    def test_what_is_required(self) -> None:
        self.assertEqual({name for name, setting in SETTINGS.items() if setting.is_required}, set(REQUIRED))

    def test_every_field_but_the_secrets_and_the_tables_is_a_setting(self) -> None:
        self.assertEqual([*SETTINGS, *SECRETS, "tiers", "log_levels"], [item.name for item in fields(Config)])

    def test_values_have_the_type_that_the_field_says(self) -> None:
        hints = typing.get_type_hints(Config)
        config = self.load(toml_of({**REQUIRED, **ANOTHER}))
        for name in SETTINGS:
            hint = hints[name]
            types = [typing.get_origin(part) or part for part in typing.get_args(hint) or (hint,)]
            allowed = (tuple,) if typing.get_origin(hint) is tuple else tuple(types)
            self.assertIsInstance(getattr(config, name), allowed, name)

    def test_names_of_variables_and_options(self) -> None:
        setting = SETTINGS["relay_port"]
        self.assertEqual((setting.variable, setting.option), ("ZRC_RELAY_RELAY_PORT", "relay-port"))

    def test_no_setting_takes_the_name_that_names_the_file(self) -> None:
        self.assertNotIn(CONFIG_VARIABLE, [setting.variable for setting in SETTINGS.values()])

    def test_the_help_is_a_sentence(self) -> None:
        for setting in SETTINGS.values():
            self.assertTrue(setting.help.endswith(".") and "\n" not in setting.help, setting.name)

    def test_a_configuration_cannot_be_changed(self) -> None:
        config = self.load(toml_of(REQUIRED))
        self.assertRaises(FrozenInstanceError, setattr, config, "listen_port", 1)
        self.assertRaises(TypeError, operator.setitem, config.tiers, "free", None)

    def test_equal_settings_make_equal_configurations(self) -> None:
        first, second = self.load(toml_of(REQUIRED)), self.load(toml_of(REQUIRED))
        self.assertEqual((first, hash(first)), (second, hash(second)))
        self.assertNotEqual(first, replace(first, listen_port=1))

    def test_the_default_tier(self) -> None:
        config = self.load(toml_of(REQUIRED))
        self.assertEqual(config.default_tier(), Tier("", 1_250_000, 10**9, 10))
        config = self.load(toml_of({**REQUIRED, "default_bandwidth_limit": "none", "default_quota": "1 MB"}))
        self.assertEqual(config.default_tier(), Tier("", None, 10**6, 10))

    def test_who_must_prove(self) -> None:
        who = {proof: (proof.of_devices, proof.of_peers) for proof in RequireProof}
        self.assertEqual(who, {
            RequireProof.ALWAYS: (True, True), RequireProof.NEVER: (False, False), RequireProof.DEVICES: (True, False),
            RequireProof.PEERS: (False, True),
        })


class Sources(LoadingTestCase):
    """R8: every setting from every source; command line > environment > TOML > default."""

    def test_every_setting_can_be_given_in_each_source(self) -> None:
        self.assertEqual(set(ANOTHER), set(SETTINGS))
        default = self.load(toml_of(REQUIRED))
        for name, text in ANOTHER.items():
            expected = SETTINGS[name].kind.parse(text, CWD)
            self.assertNotEqual(getattr(default, name), expected, name)
            rest = {other: value for other, value in {**REQUIRED, **COMPANIONS.get(name, {})}.items() if other != name}
            for config in (
                self.load(toml_of({**rest, name: text})),
                self.load(toml_of(rest), environ=variables_of({name: text})),
                self.load(toml_of(rest), options=options_of({name: text})),
                self.load(toml_of(rest), options={name: text}),
            ):
                self.assertEqual(getattr(config, name), expected, name)

    def test_the_command_line_wins_over_the_environment_over_toml(self) -> None:
        for name, text in ANOTHER.items():
            last = SETTINGS[name].default or REQUIRED[name]
            expected = SETTINGS[name].kind.parse(text, CWD)
            rest = {**REQUIRED, **COMPANIONS.get(name, {})}
            toml, environ, options = ({**rest, name: last}, {name: last}, {name: text})
            config = self.load(toml_of(toml), variables_of(environ), options_of(options))
            self.assertEqual(getattr(config, name), expected, name)
            config = self.load(toml_of(toml), variables_of({name: text}))
            self.assertEqual(getattr(config, name), expected, name)

    def test_without_a_file(self) -> None:
        config = self.load(environ=variables_of(REQUIRED))
        self.assertEqual(config.relay_id, bytes.fromhex(REQUIRED["relay_id"]))

    def test_native_toml_values(self) -> None:
        config = self.load(
            toml_of(REQUIRED)
            + "listen_addr = ['127.0.0.1', '::1']\nlisten_port = 0\nwait_timeout = 90\negress_queue_age = 0.25\n"
            + "default_quota = 5000\nglobal_bandwidth_limit = 1_000_000\nrevoke_ends_sessions = false\n"
        )
        self.assertEqual(config.listen_addr, ("127.0.0.1", "::1"))
        self.assertEqual((config.listen_port, config.wait_timeout, config.egress_queue_age), (0, 90.0, 0.25))
        self.assertEqual((config.default_quota, config.global_bandwidth_limit, config.revoke_ends_sessions), (5000, 10**6, False))

    def test_none_takes_back_what_the_file_says(self) -> None:
        toml = toml_of({**REQUIRED, "relay_addr": "192.0.2.1", "state_dir": "state", "default_quota": "5 MB"})
        config = self.load(toml, options={"relay-addr": "none", "state-dir": "none", "default-quota": "off"})
        self.assertEqual((config.relay_addr, config.state_dir, config.default_quota), (None, None, None))

    def test_options_that_were_not_given_are_no_options(self) -> None:
        config = self.load(toml_of(REQUIRED), options={"listen-port": None, "config": "elsewhere.toml"})
        self.assertEqual(config.listen_port, 4433)

    def test_paths_in_the_file_start_at_the_file_and_others_at_the_current_directory(self) -> None:
        toml = toml_of({**REQUIRED, "device_keys_path": "/abs/devices.toml"})
        config = self.load(toml, variables_of({"quic_key_path": "k.pem"}), {"state-dir": "../state"})
        self.assertEqual(config.quic_cert_path, self.directory / "cert.pem")
        self.assertEqual(config.device_keys_path, Path("/abs/devices.toml"))
        self.assertEqual(config.quic_key_path, CWD / "k.pem")
        self.assertEqual(config.state_dir, CWD / "../state")

    def test_a_relative_file_is_looked_for_in_the_current_directory(self) -> None:
        self.path.write_text(toml_of(REQUIRED))
        config = load_config(path=Path("relay.toml"), environ={}, options={}, cwd=self.directory)
        self.assertEqual(config.quic_cert_path, self.directory / "cert.pem")

    def test_the_current_directory_is_the_process_own_unless_told(self) -> None:
        config = load_config(path=None, environ=variables_of(REQUIRED), options={})
        self.assertEqual(config.quic_cert_path, Path.cwd() / "cert.pem")

    def test_variables_that_are_not_ours_are_left_alone(self) -> None:
        environ = {**variables_of(REQUIRED), "HOME": "/", "ZRC_OTHER": "x", "zrc_relay_x": "x", CONFIG_VARIABLE: "relay.toml"}
        self.assertEqual(self.load(environ=environ).listen_port, 4433)

    def test_variables_that_kubernetes_makes_for_a_service_of_our_name_are_left_alone(self) -> None:
        links = {
            "ZRC_RELAY_SERVICE_HOST": "10.0.0.1", "ZRC_RELAY_SERVICE_PORT": "4433", "ZRC_RELAY_SERVICE_PORT_QUIC": "4433",
            "ZRC_RELAY_PORT": "udp://10.0.0.1:4433", "ZRC_RELAY_PORT_4433_UDP": "udp://10.0.0.1:4433",
            "ZRC_RELAY_PORT_4433_UDP_PROTO": "udp", "ZRC_RELAY_PORT_4433_UDP_PORT": "4433",
            "ZRC_RELAY_PORT_4433_UDP_ADDR": "10.0.0.1", "ZRC_RELAY_ADMIN_SERVICE_HOST": "10.0.0.2",
            "ZRC_RELAY_ADMIN_PORT": "tcp://10.0.0.2:80",
        }
        self.assertEqual(self.load(environ={**variables_of(REQUIRED), **links}), self.load(environ=variables_of(REQUIRED)))

    def test_a_port_that_somebody_set_is_not_mistaken_for_one_of_those(self) -> None:
        [problem] = self.problems(environ={**variables_of(REQUIRED), "ZRC_RELAY_PORT": "4433"})
        self.assertEqual(problem.setting, "ZRC_RELAY_PORT")


class LogLevels(LoadingTestCase):
    """R8, issue "logs": levels by namespace are a table of the TOML file."""

    def test_a_table_of_namespaces(self) -> None:
        config = self.load(toml_of(REQUIRED) + '[log_levels]\n"zrc_relay.quic" = "debug"\ntwisted = "ERROR"\n')
        self.assertEqual(config.log_levels, {"zrc_relay.quic": LogLevel.DEBUG, "twisted": LogLevel.ERROR})

    def test_every_problem_is_named(self) -> None:
        problems = self.problems(
            toml_of(REQUIRED) + '[log_levels]\nx = "loud"\n"no namespace" = "info"\nzrc_relay.quic = "info"\nlisten_port = 1\n'
        )
        self.assertEqual({problem.setting: problem.right for problem in problems}, {
            'log_levels."x"': 'must be "debug", "info", "warn", "error" or "critical"',
            'log_levels."no namespace"': 'must be the name of a module, such as "zrc_relay.quic"',
            'log_levels."zrc_relay"': "put the namespace in quotation marks",
            'log_levels."listen_port"': "move it above the first [table]",
        })

    def test_it_is_a_table(self) -> None:
        [problem] = self.problems('log_levels = "debug"\n' + toml_of(REQUIRED))
        self.assertEqual(problem.right, "write a [log_levels] table of namespaces and levels")

    def test_the_table_cannot_come_from_elsewhere(self) -> None:
        [problem] = self.problems(toml_of(REQUIRED), environ={"ZRC_RELAY_LOG_LEVELS": "debug"})
        self.assertEqual(problem.right, "did you mean ZRC_RELAY_LOG_LEVEL?")


class Tiers(LoadingTestCase):
    """R8: tiers are built in, changeable and extensible."""

    def tiers(self, toml: str) -> dict[str, Tier]:
        """The tiers with these tables."""
        return dict(self.load(toml_of(REQUIRED) + toml).tiers)

    def test_a_table_changes_what_it_names_and_nothing_else(self) -> None:
        tiers = self.tiers("[tiers.free]\nquota = '1 GB'\n")
        self.assertEqual(tiers, {**BUILT_IN_TIERS, "free": Tier("free", 625_000, 10**9, 10)})

    def test_all_keys(self) -> None:
        tiers = self.tiers("[tiers.paid]\nbandwidth_limit = '1 MB/s'\nquota = 5000\nallocations = 'none'\n")
        self.assertEqual(tiers["paid"], Tier("paid", 10**6, 5000, None))

    def test_none_takes_a_cap_away(self) -> None:
        tiers = self.tiers("[tiers.free]\nbandwidth_limit = 'none'\nquota = 'off'\n")
        self.assertEqual(tiers["free"], Tier("free", None, None, 10))

    def test_a_new_tier_begins_with_what_a_device_without_one_has(self) -> None:
        tiers = self.tiers("default_quota = '3 GB'\n[tiers.gold-2]\nbandwidth_limit = '1 Gbit/s'\n[tiers.plain]\n")
        self.assertEqual(set(tiers), {*BUILT_IN_TIERS, "gold-2", "plain"})
        self.assertEqual(tiers["gold-2"], Tier("gold-2", 125_000_000, 3 * 10**9, 10))
        self.assertEqual(tiers["plain"], Tier("plain", 1_250_000, 3 * 10**9, 10))

    def test_defaults_given_elsewhere_count_too(self) -> None:
        config = self.load(toml_of(REQUIRED) + "[tiers.plain]\n", options={"default-quota": "7 GB"})
        self.assertEqual(config.tiers["plain"].quota, 7 * 10**9)

    def test_every_problem_is_named(self) -> None:
        problems = self.problems(
            toml_of(REQUIRED)
            + "[tiers]\nflat = 5\n[tiers.free]\nquota = 0\nallocations = 1.5\nbandwidth = '1 MB/s'\nlisten_port = 1\nzzz = 1\n"
            "[tiers.'No Name']\nquota = '1 B'\n"
        )
        self.assertEqual({problem.setting: problem.right for problem in problems}, {
            "tiers.flat": "write [tiers.flat] with bandwidth_limit, quota, allocations",
            "tiers.free.quota": 'must be a size from "1 kB" to "1 EB" (a plain number is bytes), or "none"',
            "tiers.free.allocations": 'must be a whole number from 1 to 1000000, or "none"',
            "tiers.free.bandwidth": "did you mean bandwidth_limit?",
            "tiers.free.listen_port": "move it above the first [table]",
            "tiers.free.zzz": "remove it",
            "tiers.No Name": "must be 1 to 32 of a-z, 0-9, - and _, and begin with a letter or digit",
            "tiers.No Name.quota": 'must be a size from "1 kB" to "1 EB" (a plain number is bytes), or "none"',
        })
        self.assertEqual({problem.source for problem in problems}, {str(self.path)})

    def test_tiers_must_be_tables(self) -> None:
        [problem] = self.problems(toml_of(REQUIRED) + "tiers = 'free'\n")
        self.assertEqual((problem.setting, problem.wrong), ("tiers", '"free" is no table'))

    def test_only_the_file_can_hold_them(self) -> None:
        problems = self.problems(toml_of(REQUIRED), {"ZRC_RELAY_TIERS": "free"}, {"tiers": "free"})
        self.assertEqual([problem.wrong for problem in problems], ["unknown variable", "unknown setting"])


class Problems(LoadingTestCase):
    """R8: every problem at once, each naming setting, source and what would be right."""

    def test_a_wrong_value_of_every_setting_in_each_source(self) -> None:
        self.assertEqual(set(WRONG), set(SETTINGS))
        for source, problems in (
            (lambda _: str(self.path), self.problems(toml_of(WRONG))),
            (lambda setting: f"variable {setting.variable}", self.problems(environ=variables_of(WRONG))),
            (lambda setting: f"option --{setting.option}", self.problems(options=options_of(WRONG))),
        ):
            self.assertEqual(
                [(problem.setting, problem.source, problem.right) for problem in problems],
                [(name, source(SETTINGS[name]), f"must be {SETTINGS[name].kind.expected}") for name in WRONG],
            )
            for problem in problems:
                self.assertIn(WRONG[problem.setting], problem.wrong)

    def test_everything_that_is_missing_is_listed(self) -> None:
        problems = self.problems("listen_port = 1\n")
        self.assertEqual([problem.setting for problem in problems], list(REQUIRED))
        self.assertEqual(problems[2], Problem(
            "relay_id", "not given", "required",
            f"set it in {self.path}, as ZRC_RELAY_RELAY_ID or as --relay-id to 32 hex digits",
        ))

    def test_missing_without_a_file(self) -> None:
        self.assertIn("set it in a TOML file, as", self.problems()[0].right)

    def test_wrong_is_not_missing_as_well(self) -> None:
        problems = self.problems(toml_of({**REQUIRED, "relay_id": "12"}))
        self.assertEqual([problem.setting for problem in problems], ["relay_id"])

    def test_a_wrong_value_is_a_problem_even_when_another_source_wins(self) -> None:
        [problem] = self.problems(toml_of({**REQUIRED, "listen_port": "x"}), options={"listen-port": "1"})
        self.assertEqual((problem.setting, problem.source), ("listen_port", str(self.path)))

    def test_all_sources_and_sorts_of_problem_together(self) -> None:
        problems = self.problems("listen_prot = 1\nmax_streams = 'x'\n", {"ZRC_RELAY_X": "1"}, {"drain-timeout": "x"})
        self.assertEqual(
            [problem.setting for problem in problems],
            ["listen_prot", "max_streams", "ZRC_RELAY_X", "drain_timeout", *REQUIRED],
        )

    def test_the_error_reads_as_one_line_for_each(self) -> None:
        error = self.assertRaises(ConfigError, self.load, toml_of({**REQUIRED, "listen_port": "x y"}))
        self.assertEqual(
            str(error), f'listen_port ({self.path}): "x y" is not understood; must be a whole number from 0 to 65535')
        self.assertEqual(len(str(self.assertRaises(ConfigError, self.load, toml_of(WRONG))).splitlines()), len(WRONG))

    def test_unknown_keys_with_a_guess_where_there_is_one(self) -> None:
        problems = self.problems(
            toml_of(REQUIRED) + "listen-port = 1\nidle_timout = '3s'\nxyzzy = 1\n[tier.free]\n[relay]\nid = 1\n")
        self.assertEqual([(problem.setting, problem.right) for problem in problems[:4]], [
            ("listen-port", "did you mean listen_port?"), ("idle_timout", "did you mean idle_timeout?"), ("xyzzy", "remove it"),
            ("tier", "did you mean tiers?"),
        ])
        self.assertEqual((problems[4].setting, problems[4].wrong), ("relay", "unknown setting"))

    def test_unknown_variables_with_a_guess_where_there_is_one(self) -> None:
        problems = self.problems(
            environ={**variables_of(REQUIRED), "ZRC_RELAY_LISTENPORT": "1", "ZRC_RELAY_": "", "ZRC_RELAY_CONFG": "x"})
        self.assertEqual([(problem.setting, problem.source, problem.right) for problem in problems], [
            ("ZRC_RELAY_LISTENPORT", "environment", "did you mean ZRC_RELAY_LISTEN_PORT?"),
            ("ZRC_RELAY_", "environment", "unset it"),
            ("ZRC_RELAY_CONFG", "environment", "did you mean ZRC_RELAY_CONFIG?"),
        ])

    def test_unknown_options(self) -> None:
        [problem] = self.problems(environ=variables_of(REQUIRED), options={"listen_prt": "1"})
        self.assertEqual((problem.source, problem.right), ("option --listen-prt", "did you mean listen_port?"))

    def test_values_that_contradict_each_other(self) -> None:
        toml = toml_of({**REQUIRED, "base_udp_payload": "1400"})
        problems = self.problems(toml, {"ZRC_RELAY_MAX_UDP_PAYLOAD": "1300"}, {"quic-idle-timeout": "15s"})
        self.assertEqual(problems, [
            Problem(
                "max_udp_payload", "variable ZRC_RELAY_MAX_UDP_PAYLOAD", "1300 is less than base_udp_payload",
                f"must be at least 1400 ({self.path})",
            ),
            Problem(
                "keepalive_interval", "default", "connections would die between two keepalives",
                "must be shorter than quic_idle_timeout, which is 15s (option --quic-idle-timeout)",
            ),
        ])

    def test_equal_payloads_do_not_contradict_each_other(self) -> None:
        config = self.load(toml_of({**REQUIRED, "base_udp_payload": "1400", "max_udp_payload": "1400"}))
        self.assertEqual(config.max_udp_payload, 1400)

    def test_a_value_that_is_wrong_contradicts_nothing(self) -> None:
        problems = self.problems(toml_of({**REQUIRED, "base_udp_payload": "9", "max_udp_payload": "1200"}))
        self.assertEqual([problem.setting for problem in problems], ["base_udp_payload"])


class Admission(LoadingTestCase):
    """R8, R6.1, R6.3: what is pinned, the lists of networks, and what of it contradicts what."""

    def test_the_key_file_is_required_only_where_keys_are_pinned(self) -> None:
        rest = {name: value for name, value in REQUIRED.items() if name != "device_keys_path"}
        self.assertIsNone(self.load(toml_of({**rest, "trust": "self-certified"})).device_keys_path)
        [problem] = self.problems(toml_of({**rest, "trust": "pinned"}))
        self.assertEqual((problem.setting, problem.wrong), ("device_keys_path", "required"))
        [problem] = self.problems(toml_of({**rest, "trust": "perhaps"}))
        self.assertEqual(problem.setting, "trust", "whether the other one is missing is not known")

    def test_keys_may_be_pinned_beside_self_certified_devices(self) -> None:
        self.assertIsNotNone(self.load(toml_of({**REQUIRED, "trust": "self-certified"})).device_keys_path)

    def test_a_tier_must_exist(self) -> None:
        own = "[tiers.guests]\n"
        self.assertEqual(self.load(toml_of({**REQUIRED, "self_certified_tier": "guests"}) + own).self_certified_tier, "guests")
        [problem] = self.problems(toml_of({**REQUIRED, "self_certified_tier": "guests"}))
        self.assertEqual(
            (problem.setting, problem.wrong, problem.right),
            ("self_certified_tier", 'there is no tier "guests"', "must be one of free, paid, unlimited"),
        )

    def test_no_network_is_in_both_lists(self) -> None:
        toml = toml_of({**REQUIRED, "allow": "192.0.2.0/24, 203.0.113.0/24", "block": "203.0.113.0/24"})
        [problem] = self.problems(toml)
        self.assertEqual((problem.setting, problem.wrong), ("block", "203.0.113.0/24 is allowed, too"))

    def test_a_network_in_another_one_of_the_other_list_is_fine(self) -> None:
        config = self.load(toml_of({**REQUIRED, "allow": "192.0.2.128/25", "block": "192.0.2.0/24"}))
        self.assertEqual((list(map(str, config.allow)), list(map(str, config.block))), (["192.0.2.128/25"], ["192.0.2.0/24"]))


class Workers(LoadingTestCase):
    """Issue "all cores": how many processes forward, and that there are ports for them."""

    def test_as_many_as_are_asked_for_and_for_auto_as_many_as_there_are_cpus(self) -> None:
        counts = {text: self.load(toml_of({**REQUIRED, "workers": text})).worker_count() for text in ("1", "3", "64")}
        self.assertEqual(counts, {"1": 1, "3": 3, "64": 64})
        for cpus in (1, 3, 64, 200):
            self.patch(os, "sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
            self.assertEqual(self.load(toml_of({**REQUIRED, "workers": "auto"})).worker_count(), min(cpus, 64))

    def test_their_ports_are_behind_the_shared_one_unless_they_are_given(self) -> None:
        config = self.load(toml_of({**REQUIRED, "workers": "4"}))
        self.assertEqual(config.first_worker_port(4433), 4434)
        config = self.load(toml_of({**REQUIRED, "workers": "4", "worker_port_base": "6000"}))
        self.assertEqual(config.first_worker_port(4433), 6000)

    def test_there_must_be_ports_for_all_of_them(self) -> None:
        for values, setting, wrong in (
            ({"listen_port": "65532"}, "listen_port", "there is no port 65536"),
            ({"worker_port_base": "65533"}, "worker_port_base", "there is no port 65536"),
            ({"worker_port_base": "65533", "listen_port": "0"}, "worker_port_base", "there is no port 65536"),
        ):
            [problem] = self.problems(toml_of({**REQUIRED, "workers": "4", **values}))
            self.assertEqual((problem.setting, problem.wrong), (setting, wrong))

    def test_none_of_them_is_the_shared_one(self) -> None:
        for base in (4430, 4433):
            [problem] = self.problems(toml_of({**REQUIRED, "workers": "4", "worker_port_base": str(base)}))
            self.assertEqual(
                (problem.setting, problem.wrong, problem.right),
                ("worker_port_base", "port 4433 would be one worker's and that of all",
                 f"must leave out listen_port (default) with 4 workers, {base} to {base + 3} as it is"),
            )
        for base in (4429, 4434):
            self.load(toml_of({**REQUIRED, "workers": "4", "worker_port_base": str(base)}))

    def test_nothing_of_it_matters_to_a_relay_that_is_one_process_or_takes_any_port(self) -> None:
        self.load(toml_of({**REQUIRED, "worker_port_base": "4433"}))
        self.load(toml_of({**REQUIRED, "listen_port": "65535"}))
        self.load(toml_of({**REQUIRED, "listen_port": "0", "workers": "auto"}))

    def test_auto_may_be_as_many_as_there_can_be(self) -> None:
        [problem] = self.problems(toml_of({**REQUIRED, "workers": "auto", "listen_port": "65500"}))
        self.assertEqual(problem.wrong, "there is no port 65564")


class Secrets(LoadingTestCase):
    """R6.6: secrets come from files or the environment, never from the command line, and nothing shows them."""

    SECRET = "correct-horse-battery-staple"  # noqa: S105 - made up for this test

    def test_a_variable_may_hold_one(self) -> None:
        environ = {"ZRC_RELAY_WEBHOOK_SECRET": f" {self.SECRET}\n", "ZRC_RELAY_BOUNCER_KEY": "k"}
        urls = {"webhook_url": "https://abuse.example/", "bouncer_url": "https://engine.example/"}
        config = self.load(toml_of({**REQUIRED, **urls}), environ)
        self.assertEqual(config.webhook_secret, Secret(self.SECRET.encode()))
        self.assertEqual(config.webhook_secret.reveal() if config.webhook_secret else None, self.SECRET.encode())
        self.assertEqual(config.bouncer_key, Secret(b"k"))

    def test_a_printed_configuration_does_not_show_it(self) -> None:
        config = self.load(toml_of(REQUIRED), {"ZRC_RELAY_WEBHOOK_SECRET": self.SECRET})
        self.assertNotIn(self.SECRET, f"{config} {config!r} {config.webhook_secret}")

    def test_the_command_line_and_the_file_take_none_and_say_what_does(self) -> None:
        toml = toml_of({**REQUIRED, "webhook_secret": self.SECRET})
        problems = self.problems(toml, options={"webhook-secret": self.SECRET, "bouncer_key": self.SECRET})
        right = "put it in a file that webhook_secret_path names, or in ZRC_RELAY_WEBHOOK_SECRET"
        self.assertEqual([(problem.setting, problem.right) for problem in problems], [
            ("webhook_secret", right), ("webhook_secret", right),
            ("bouncer_key", "put it in a file that bouncer_key_path names, or in ZRC_RELAY_BOUNCER_KEY"),
        ])
        self.assertNotIn(self.SECRET, "".join(map(str, problems)))

    def test_there_is_no_option_for_one(self) -> None:
        names = {row[0] for row in option_parameters()}
        self.assertIn("webhook-secret-path", names)
        self.assertEqual(names & {"webhook-secret", "bouncer-key"}, set())

    def test_a_variable_with_an_unusable_one_is_a_problem_that_does_not_quote_it(self) -> None:
        for text, wrong in (
            ("fifteen-bytes-x", "is 15 characters long"), ("x" * 513, "is 513 characters long"), (" ", "is empty"),
            ("two words, with blanks", "is not all printable ASCII without blanks"),
        ):
            [problem] = self.problems(toml_of(REQUIRED), {"ZRC_RELAY_WEBHOOK_SECRET": text})
            self.assertEqual((problem.setting, problem.source), ("webhook_secret", "variable ZRC_RELAY_WEBHOOK_SECRET"))
            self.assertEqual((problem.wrong, problem.right), (
                wrong, "must be 16 to 512 printable ASCII characters without blanks"))

    def test_a_url_needs_one(self) -> None:
        urls = {"webhook_url": "https://abuse.example/", "bouncer_url": "https://engine.example/"}
        problems = self.problems(toml_of({**REQUIRED, **urls}))
        self.assertEqual([(problem.setting, problem.right) for problem in problems], [
            ("webhook_url", "name a file with webhook_secret_path, or set ZRC_RELAY_WEBHOOK_SECRET"),
            ("bouncer_url", "name a file with bouncer_key_path, or set ZRC_RELAY_BOUNCER_KEY"),
        ])

    def test_two_sources_contradict_each_other(self) -> None:
        toml = toml_of({**REQUIRED, "bouncer_key_path": "key"})
        [problem] = self.problems(toml, {"ZRC_RELAY_BOUNCER_KEY": "k"})
        self.assertEqual(problem, Problem(
            "bouncer_key", "variable ZRC_RELAY_BOUNCER_KEY", "the secret is given twice",
            f"unset it or remove bouncer_key_path ({self.path})",
        ))

    def test_what_is_unusable_is_not_missing_as_well(self) -> None:
        toml = toml_of({**REQUIRED, "bouncer_url": "https://engine.example/"})
        problems = self.problems(toml, {"ZRC_RELAY_BOUNCER_KEY": ""})
        self.assertEqual([problem.setting for problem in problems], ["bouncer_key"])


class Files(LoadingTestCase):
    """R8: a file that cannot be used is a problem like any other."""

    def assert_unusable(self, content: bytes, wrong: str) -> None:
        """The file with ``content`` is refused, saying ``wrong``, and nothing is called missing that may be in it."""
        [problem] = self.problems(content)
        self.assertEqual((problem.setting, problem.source), ("config", str(self.path)))
        self.assertIn(wrong, problem.wrong)

    def test_no_such_file(self) -> None:
        error = self.assertRaises(ConfigError, load_config, path=self.path, environ={}, options={})
        wrong = "cannot be read: No such file or directory; name a TOML file that the relay may read"
        self.assertEqual(str(error), f"config ({self.path}): {wrong}")

    def test_a_directory(self) -> None:
        error = self.assertRaises(ConfigError, load_config, path=self.directory, environ={}, options={})
        self.assertIn("cannot be read: Is a directory", str(error))

    def test_not_toml(self) -> None:
        self.assert_unusable(b"listen_port = \n", "not TOML: Invalid value (at line 1, column 15)")

    def test_the_same_key_twice(self) -> None:
        self.assert_unusable(b"listen_port = 1\nlisten_port = 2\n", "not TOML: Cannot overwrite a value")

    def test_not_utf_8(self) -> None:
        self.assert_unusable(b"state_dir = '\xff'\n", "not TOML: 'utf-8' codec can't decode")

    def test_more_digits_than_python_reads(self) -> None:
        self.assert_unusable(b"listen_port = " + b"1" * 10_000, "not TOML: Exceeds the limit")

    def test_nested_beyond_measure(self) -> None:
        self.assert_unusable(b"listen_addr = " + b"[" * 100_000, "nested too deeply")

    def test_other_sources_are_checked_all_the_same(self) -> None:
        problems = self.problems(b"=", options={"listen-port": "x"})
        self.assertEqual([problem.setting for problem in problems], ["config", "listen_port"])

    @given(st.binary(max_size=200))
    def test_arbitrary_bytes_make_nothing_but_a_config_error(self, content: bytes) -> None:
        self.assertRaises(ConfigError, self.load, content)

    @given(st.dictionaries(
        st.sampled_from([*SETTINGS, "tiers", "x"]),
        st.recursive(st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="ascii"), max_size=9), st.lists),
        max_size=9,
    ))
    def test_arbitrary_values_make_a_configuration_or_a_config_error(self, values: dict[str, Any]) -> None:
        toml = "".join(f"{name} = {_toml(value)}\n" for name, value in {**REQUIRED, **values}.items())
        try:
            config = self.load(toml)
        except ConfigError as error:
            self.assertNotEqual(error.problems, [])
        else:
            # What was accepted is what would be written, and is accepted again as the same.
            again = "".join(f"{name} = {SETTINGS[name].kind.toml(getattr(config, name))}\n" for name in SETTINGS)
            self.assertEqual(self.load(again), config)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\u{ord(char):04x}" for char in value) + '"'
    return str(value).lower()


class FindingTheFile(SynchronousTestCase):
    """R8: ZRC_RELAY_CONFIG names the file, --config before it."""

    def test_the_option_wins(self) -> None:
        self.assertEqual(find_config({CONFIG_VARIABLE: "a.toml"}, "b.toml"), Path("b.toml"))

    def test_the_variable(self) -> None:
        self.assertEqual(find_config({CONFIG_VARIABLE: "a.toml"}), Path("a.toml"))

    def test_neither(self) -> None:
        self.assertIsNone(find_config({}))
        self.assertIsNone(find_config({CONFIG_VARIABLE: ""}, ""))


class _Options(usage.Options):
    optParameters: ClassVar[list[list[str | None]]] = option_parameters()


class CommandLine(LoadingTestCase):
    """R8: twistd's options are derived from the table."""

    def test_every_setting_can_be_given(self) -> None:
        options = _Options()
        options.parseOptions([argument for name, text in ANOTHER.items() for argument in (f"--{SETTINGS[name].option}", text)])
        config = self.load(options=options)
        self.assertEqual(config, self.load(environ=variables_of(ANOTHER)))

    def test_what_is_not_given_is_left_to_the_other_sources(self) -> None:
        options = _Options()
        options.parseOptions(["-c", "x.toml", "--listen-port=7"])
        self.assertEqual(options["config"], "x.toml")
        config = self.load(toml_of({**REQUIRED, "listen_port": "8", "max_streams": "9"}), options=options)
        self.assertEqual((config.listen_port, config.max_streams), (7, 9))

    def test_help_tells_every_default(self) -> None:
        text = " ".join(_Options().getUsage(width=1000).split())
        for setting in SETTINGS.values():
            note = "required" if setting.default is None else f"default: {setting.default}"
            if setting.name == "device_keys_path":
                note = "required unless trust is self-certified"
            self.assertIn(f"--{setting.option}= {setting.help} [{note}]", text)


class Generated(LoadingTestCase):
    """R12, R8: the reference page and the example file come from the table."""

    def test_the_example_in_the_repository_is_current(self) -> None:
        self.assertEqual((ROOT / "deploy/relay.example.toml").read_text(encoding="utf-8"), example_toml(), "run make docs")

    def test_the_reference_in_the_repository_is_current(self) -> None:
        self.assertEqual((ROOT / "docs/configuration.md").read_text(encoding="utf-8"), reference_markdown(), "run make docs")

    def test_the_example_works_as_it_is(self) -> None:
        self.assertEqual(self.load(example_toml()), self.load(toml_of(REQUIRED)))

    def test_the_example_gives_every_setting_and_tier_with_its_default(self) -> None:
        text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", example_toml(), flags=re.MULTILINE)
        document = tomllib.loads(text)
        self.assertEqual(set(document), {*SETTINGS, "tiers", "log_levels"})
        self.assertEqual(set(document["tiers"]), set(BUILT_IN_TIERS))
        for table in document["tiers"].values():
            self.assertEqual(list(table), ["bandwidth_limit", "quota", "allocations"])
        self.assertEqual(self.load(text), self.load(toml_of(REQUIRED)))

    def test_the_example_writes_defaults_as_people_do(self) -> None:
        lines = example_toml().splitlines()
        for line in ('max_token_lifetime = "24h"', "listen_port = 4433", 'listen_addr = ["0.0.0.0", "::"]', 'quota = "500 MB"'):
            self.assertIn(f"#{line}", lines)

    def test_the_reference_tells_all_there_is_to_a_setting(self) -> None:
        page = reference_markdown()
        for setting in SETTINGS.values():
            entry = page.partition(f"### `{setting.name}`\n")[2].partition("\n#")[0]
            default = "Required" if setting.default is None else f"Default `{setting.default}`."
            for part in (setting.help, default, f"`{setting.variable}`", f"`--{setting.option}`"):
                self.assertIn(part, entry, setting.name)

    def test_the_reference_tells_the_tiers(self) -> None:
        self.assertIn("| `free` | 5 Mbit/s | 500 MB | 10 |", reference_markdown())
        self.assertIn("| `unlimited` | none | none | none |", reference_markdown())
