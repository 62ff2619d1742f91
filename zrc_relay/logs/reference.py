"""The page about the log, made from the catalog."""

from __future__ import annotations

from collections.abc import Iterator

from zrc_relay.logs.catalog import EVENTS, FIELDS, OTHER
from zrc_relay.logs.rates import FAILURES_AT_ONCE, FAILURES_PER_SECOND, LINES_PER_SECOND

_INTRODUCTION = f"""\
# The log

This page is generated from the catalog of events in `zrc_relay/logs/catalog.py` by `make docs`.

The relay logs to the standard output, or where twistd's own options say: `--logfile FILE`, `--syslog`. A daemon that is told
nothing logs to `twistd.log`. On a terminal the lines are text for people; everywhere else each line is one JSON object
([`log_format`](configuration.md#log_format) says otherwise if need be):

```
2026-11-22T20:16:07.123Z info  [zrc_relay.service.RelayService] relay 00112233445566778899aabbccddeeff is ready (compiled)
```
```json
{{"time":"2026-11-22T20:16:07.123Z","level":"info","namespace":"zrc_relay.service.RelayService","event":"relay.ready", ... }}
```

Rotation: rename the file, then send SIGHUP; the relay goes on in a new one. (SIGHUP also reads the configuration again.) Whoever
gives twistd a `--logger` of their own replaces all of this.

## What every line has

| field | meaning |
|---|---|
| `time` | When, in UTC, RFC 3339 with milliseconds. |
| `level` | `debug`, `info`, `warn`, `error`, or `critical` for errors in the relay itself. |
| `namespace` | Where in the program it comes from; what `[log_levels]` goes by. |
| `event` | The kind of line, from the table below. It and the fields are what programs may rely on; sentences may change. |
| `message` | The line as a sentence, where the fields do not say everything. |
| `worker` | Which of the workers says it, where there are several processes. |
| `suppressed` | How many lines of this kind were not written before this one, being too many. |
| `traceback` | Where an error in the relay happened. |

Lines of Twisted and other libraries have `{OTHER}` as their event and no fields of their own.

**Rates.** Of each kind {LINES_PER_SECOND} lines a second are written, and of kinds with a traceback
{FAILURES_AT_ONCE} at once and then {FAILURES_PER_SECOND:g} a second; the rest is counted in `suppressed`. Neither a client nor a
fault can fill a disk.

**What is never in it.** Payload, keys and tokens. A field that is not listed with its event below is not written, whatever the
program passes; in the words of exceptions, what looks like bytes or a long secret is blacked out.

**Levels.** [`log_level`](configuration.md#log_level), and `[log_levels]` for parts of the program, can be changed by a reload.

## Which lines belong together

`connection` is the first connection id that a client used: every line about a connection has it. `device` and `allocation`
together name an allocation: every line about an allocation has both, and so has every line about a connection that is bound to
one. `session.bound` is where the two meet.

## At night

* `level` is `critical`: an error in the relay; it was kept to one connection or task. Report it, with the traceback.
* `reload.refused`: what was changed is not in force; the line says why.
* `external.failed`, `file.failed`, `access.not_saved`: something beside the relay needs help, a network, a disk, a permission.
* `session.refused` in numbers: see [the security events](security-events.md), which have the source of each.
"""


def logs_markdown() -> str:
    """The page ``docs/logs.md``."""
    return "\n".join([_INTRODUCTION, *_events(), *_fields()]) + "\n"


def _events() -> Iterator[str]:
    yield "## Events\n"
    yield "| event | level | meaning | fields |"
    yield "|---|---|---|---|"
    for name, event in EVENTS.items():
        yield f"| `{name}` | {event.level.value} | {event.meaning} | {', '.join(f'`{field}`' for field in event.fields)} |"
    yield ""


def _fields() -> Iterator[str]:
    yield "## Fields\n"
    yield "Those that mean nothing for a line are not there.\n"
    yield "| field | meaning |"
    yield "|---|---|"
    for field, meaning in FIELDS.items():
        yield f"| `{field}` | {meaning} |"
