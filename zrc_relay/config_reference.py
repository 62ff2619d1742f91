"""What people read about the settings: the reference page and the example file, both made from the table (R8, R12)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from zrc_relay.config_table import (
    CONFIG_VARIABLE,
    ENVIRONMENT_PREFIX,
    LOG_LEVELS_TABLE,
    NOWHERE,
    SETTINGS,
    TIER_KEYS,
    TIERS_TABLE,
    Section,
    Setting,
)
from zrc_relay.config_values import quote
from zrc_relay.core.tiers import BUILT_IN_TIERS, DEFAULT_MAX_ALLOCATIONS, Tier
from zrc_relay.reloadable import RELOADABLE

_EXAMPLES = {
    "quic_cert_path": "cert.pem",
    "quic_key_path": "key.pem",
    "relay_id": "00112233445566778899aabbccddeeff",
    "device_keys_path": "devices.toml",
}
"""What the example file gives for each required setting."""

_INTRODUCTION = f"""\
# Configuration

This page is generated from the table of settings in `zrc_relay/config_table.py` by `make docs`.

A setting can be given on the command line (`twistd zrc-relay --listen-port 4433`), in the environment
(`{ENVIRONMENT_PREFIX}LISTEN_PORT=4433`) and in a TOML file (`listen_port = 4433`); an earlier one of these wins over a later
one, and all of them over the default. The file is named by `--config`, else by `{CONFIG_VARIABLE}`.

Everything is checked at the start. All problems are reported together, each with the setting, where it was given and what would
be right, and the relay does not start; the exit status is 2. Unknown settings, in the file or beginning with
`{ENVIRONMENT_PREFIX}`, are problems too.

`zrc-relay check-config` does only the checking. [`deploy/relay.example.toml`](../deploy/relay.example.toml) has every setting
with its default.

## How values are written

| kind | examples | without a unit |
|---|---|---|
| duration | `"100ms"`, `"30s"`, `"1.5min"` (or `m`), `"8h"`, `"30d"` | seconds |
| size | `"500 MB"`, `"1 GB"` (10⁹ bytes), `"1 GiB"` (2³⁰ bytes) | bytes |
| bandwidth | `"10 Mbit/s"`, `"1.25 MB/s"` (the same), `"1 MiB/s"` | bytes per second |
| rate | `"30/min"`, `"10/s"`, `"5/h"`: as many at once, and so many in that time | |
| addresses | `"192.0.2.1"`, `"0.0.0.0, ::"`; in TOML also `["0.0.0.0", "::"]` | |
| networks | `"192.0.2.0/24, 2001:db8::/32"`; in TOML also `["192.0.2.0/24", "203.0.113.9"]` | |
| yes or no | `true`, `false`; outside TOML also `yes`, `no`, `on`, `off`, `1`, `0` | |
| path | relative to the directory of the TOML file; given elsewhere, to the current directory | |

Where a setting may be `none`, `off` says the same. A cap of 0 is refused, so that nobody mistakes it for "no cap".
"""


_RELOAD_NOTES = """\
* Running connections keep the certificate that they have shown, and what was agreed on with them in the handshake (windows,
  streams, `quic_idle_timeout`, path MTU, `fast_path`, queues); new ones get the new one.
* Running allocations get the limits that their token and the tier of their device give them now, within seconds, and both sides
  are told. A quota that came down below what was used ends the allocation with its next byte. Absent sides are waited for as long
  as `wait_timeout` and `idle_timeout` say now. `allocation_timeout` and `max_token_lifetime` hold from the next token on.
* What sources have done so far counts under the new rates, event by event.
* `max_allocations` below what there is ends nothing; nobody new is let in until there are fewer.
* The contents of `device_keys_path`, `quic_cert_path` and `quic_key_path` are read again even if the settings did not change.
  Keys and networks that were added or taken away at run time stay so; for a network that the configuration speaks of it has the
  last word.
"""


def reference_markdown() -> str:
    """The page ``docs/configuration.md``."""
    return "\n".join([_INTRODUCTION, *_reference_sections(), *_reference_tiers(), *_reference_log_levels()]) + "\n"


def _reference_log_levels() -> Iterator[str]:
    yield "\n## Log levels\n"
    yield (
        f"A `[{LOG_LEVELS_TABLE}]` table, in the TOML file only, gives parts of the program a `log_level` of their own. A part "
        "is a Python package, module or class, in quotation marks because of the dots; the longest name that fits decides. "
        "[logs.md](logs.md) has every line that there is.\n"
    )
    yield f'```toml\n[{LOG_LEVELS_TABLE}]\n"zrc_relay.quic" = "debug"\n"twisted" = "warn"\n```\n'
    yield "## Reload\n"
    yield (
        "SIGHUP, or an administrator, makes the relay read everything again: the file, and the same variables and options as at "
        "the start. Either all of it is in order and holds from then on, or nothing is changed and the log says why. These "
        "settings take part; the others need a restart, and the log names those of them that were changed.\n"
    )
    yield ", ".join(f"`{name}`" for name in [*SETTINGS, TIERS_TABLE, LOG_LEVELS_TABLE] if name in RELOADABLE) + ".\n"
    yield _RELOAD_NOTES.rstrip()


def _reference_sections() -> Iterator[str]:
    for section in Section:
        yield f"## {section.value}\n"
        for setting in _settings_of(section):
            default = setting.default_note if setting.default is None else f"default `{setting.default}`"
            yield f"### `{setting.name}`\n"
            yield f"{setting.help}\n"
            yield f"{default[0].upper()}{default[1:]}. Must be {_as_code(setting.kind.expected)}.  "
            yield f"`{setting.variable}`, `--{setting.option}`\n"


def _reference_tiers() -> Iterator[str]:
    yield "## Tiers\n"
    yield (
        "What a token asks for is capped by the tier of its device; a token that asks for nothing gets the tier's own limits. "
        "Which tier a device has is said in the file of device keys.\n"
    )
    yield "| tier | " + " | ".join(f"`{key}`" for key in TIER_KEYS) + " |"
    yield "|---" * (len(TIER_KEYS) + 1) + "|"
    for tier in BUILT_IN_TIERS.values():
        yield f"| `{tier.name}` | " + " | ".join(_tier_texts(tier).values()) + " |"
    yield (
        f"| none | `default_bandwidth_limit` | `default_quota` | {DEFAULT_MAX_ALLOCATIONS} |\n"
        f"\nA `[{TIERS_TABLE}.<name>]` table, in the TOML file only, changes a tier or adds one. A key that it leaves out "
        "keeps its value in a tier that exists, and in a new one is that of a device without a tier.\n"
    )
    yield "| key | what | must be |"
    yield "|---|---|---|"
    for key, (_, kind, help_) in TIER_KEYS.items():
        yield f"| `{key}` | {help_} | {_as_code(kind.expected)} |"


def example_toml() -> str:
    """The file ``deploy/relay.example.toml``: the required settings with example values, everything else as comments.

    Removing the comment sign in front of every setting changes nothing, because what stands there is the default.
    """
    return "\n".join([
        "# Settings of a relay. Those with a comment sign in front show their default.",
        '# docs/configuration.md says how values are written; "zrc-relay check-config" checks a file.',
        *_example_sections(),
        *_example_tiers(),
    ]) + "\n"


def _example_sections() -> Iterator[str]:
    for section in Section:
        yield f"\n\n## {section.value}"
        for setting in _settings_of(section):
            yield ""
            yield from _comment(setting.help)
            yield from _comment(f"Must be {setting.kind.expected}.")
            if setting.default is None:
                yield f"{setting.name} = {_as_toml(setting, _EXAMPLES[setting.name])}"
            else:
                yield f"#{setting.name} = {_as_toml(setting, setting.default)}"


def _example_tiers() -> Iterator[str]:
    yield "\n\n## Tiers: what a token of a device in it may ask for"
    yield ""
    yield from _comment("These exist; a table changes one or adds another. Tables come after all other settings.")
    for tier in BUILT_IN_TIERS.values():
        yield f"\n#[{TIERS_TABLE}.{tier.name}]"
        for key, (name, kind, _) in TIER_KEYS.items():
            yield f"#{key} = {kind.toml(getattr(tier, name))}"
    yield "\n\n## Levels of parts of the log; what is not named has log_level"
    yield f"\n#[{LOG_LEVELS_TABLE}]"
    yield '#"zrc_relay" = "info"'


def _settings_of(section: Section) -> list[Setting]:
    return [setting for setting in SETTINGS.values() if setting.section is section]


def _as_toml(setting: Setting, text: str) -> str:
    """What ``text`` means as a TOML value; where that is a string, ``text`` itself: "24h" says more here than "1d"."""
    value = setting.kind.parse(text, NOWHERE)
    toml = setting.kind.toml(value)
    return quote(text) if toml == quote(setting.kind.format(value)) else toml


def _tier_texts(tier: Tier) -> dict[str, str]:
    return {key: kind.format(getattr(tier, name)) for key, (name, kind, _) in TIER_KEYS.items()}


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _as_code(text: str) -> str:
    """The text with what is quoted in it as code."""
    pieces = text.split('"')
    return "".join(f'`"{piece}"`' if number % 2 else piece for number, piece in enumerate(pieces))
