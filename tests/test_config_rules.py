"""Settings that have rules of their own: tables, those that need each other, secrets, and whole files."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.config_support import REQUIRED, LoadingTestCase, toml_of
from zrc_relay.config import SETTINGS, ConfigError, Problem, load_config, option_parameters
from zrc_relay.config_external import Secret
from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier
from zrc_relay.logs.levels import LogLevel


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

    def test_what_the_package_was_built_with_may_stay_in_the_environment(self) -> None:
        self.assertEqual(self.load(toml_of(REQUIRED), {"ZRC_RELAY_COMPILE": "1"}), self.load(toml_of(REQUIRED)))
        [problem] = self.problems(toml_of(REQUIRED), {"ZRC_RELAY_COMPILED": "1"})
        self.assertEqual(problem.wrong, "unknown variable")


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
