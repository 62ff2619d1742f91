"""The table of settings, loading it, and what is generated from it."""

from __future__ import annotations

import operator
import re
import tomllib
import typing
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import ClassVar

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from tests.config_support import ANOTHER, COMPANIONS, CWD, REQUIRED, WRONG, LoadingTestCase, options_of, toml_of, variables_of
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
from zrc_relay.config_reference import example_toml, reference_markdown
from zrc_relay.config_table import SECRETS
from zrc_relay.core.sources import Rate
from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier
from zrc_relay.logs.levels import LogFormat, LogLevel

ROOT = Path(__file__).resolve().parent.parent


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
        "gather_time": 0.00085,
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
