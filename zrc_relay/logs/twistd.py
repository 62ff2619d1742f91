"""The log of a relay that twistd runs: where its options say, in our form (R5.7).

Theory of operation
-------------------
twistd looks for a log observer in this order: ``--logger``; the ``ILogObserver`` component of the application; one of its own for
``--syslog``, ``--logfile`` or the standard output. The relay's is the second. It is made when the service gets its parent, the
application: that is the one moment which ``twistd zrc-relay`` and ``twistd -y relay.tac`` have in common, and it comes before the
log begins.

A component is made without knowing twistd's options, so ``requested_output`` reads them again from the command line, with
twistd's own table of options. ``--logfile`` is opened here, and opened again by name on SIGHUP. It is not rotated by size, as
twistd does with its own: a collector would lose what it has not read.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.scripts import twistd

from zrc_relay.linefile import LineFile
from zrc_relay.logs.observer import LogSettings, RelayLog
from zrc_relay.logs.outputs import FileOutput, Output, StreamOutput, SyslogOutput

DAEMON_FILE: Final = "twistd.log"
"""Where a daemon logs when nobody says where; twistd's own choice."""


def requested_output(arguments: Sequence[str]) -> Output:
    """Where the options among ``arguments``, the command line behind the program's name, want the log.

    ``OSError`` when the file cannot be opened. The standard output when it is no command line of twistd's.
    """
    table: Any = twistd.ServerOptions()  # type: ignore[attr-defined]  # it is the documented place
    try:
        given, _ = getopt.getopt(list(arguments), table.shortOpt, table.longOpt)
    except getopt.GetoptError:
        return StreamOutput(sys.stdout)
    options = {_long_name(table, name): value for name, value in given}
    if "syslog" in options:
        return SyslogOutput(options.get("prefix") or "zrc-relay")
    name = options.get("logfile")
    if name == "-" or (not name and "nodaemon" in options):
        return StreamOutput(sys.stdout)
    # A daemon changes its directory after the log was opened, and reopens by this name.
    return FileOutput(LineFile(Path(name or DAEMON_FILE).absolute()))


def install(
    parent: object, arguments: Sequence[str], settings: LogSettings, now: Callable[[], float]
) -> RelayLog | None:
    """Give ``parent`` a log, if it is an application that has none yet; ``OSError`` when its file cannot be opened."""
    if not isinstance(parent, Componentized) or parent.getComponent(ILogObserver, None) is not None:
        return None
    log = RelayLog(requested_output(arguments), settings, now)
    parent.setComponent(ILogObserver, log)
    return log


def _long_name(table: Any, option: str) -> str:
    name = option.lstrip("-")
    return str(table.synonyms.get(name, name))
