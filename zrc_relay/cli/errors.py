"""How the command ends when something is wrong: one clear line on standard error, and a status (R8).

Theory of operation
-------------------
Commands raise; ``Program``, the group they all belong to, writes and exits. Status 2 is for what the user can mend by typing or
editing something else (``BadInput``, and click's own usage errors), 1 for what failed although it was asked for rightly
(``Failure``). A message of several lines is several problems, each written on a line of its own. A traceback is a bug of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from zrc_relay.cli.console import printable
from zrc_relay.client.errors import ChannelRefused, ConnectFailed, ConnectionLost, RelayError, UnknownCode

STATUS_INTERRUPTED: Final = 130
"""What shells report for a process that SIGINT ended."""
_UNTRUSTED: Final = ("self-signed", "self signed", "issuer certificate")
"""In what OpenSSL says of a certificate that leads to no authority that is trusted; its versions spell it differently."""
_NO_ARGUMENTS: Final[type[Exception] | tuple[()]] = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Failure(click.ClickException):
    """It was asked for rightly, and it failed; exit status 1."""

    exit_code = 1


class BadInput(click.ClickException):
    """What was typed, or a file that was named, cannot be used; exit status 2."""

    exit_code = 2


class EndedByRelay(Exception):
    """The relay ended the connection in peace, though we did not ask for it; the message says why."""


RELAY_TROUBLE: Final = (RelayError, UnknownCode, ConnectFailed, ConnectionLost, ChannelRefused, EndedByRelay)
"""What the client library raises when a relay cannot be reached, refuses, or goes away, and ``EndedByRelay``."""


def trouble(error: Exception, relay: object) -> Failure:
    """The failure to report for one of ``RELAY_TROUBLE`` with the relay at ``relay``."""
    match error:
        case RelayError() | UnknownCode():
            return Failure(f"{relay} says no: {printable(str(error))}")
        case ConnectFailed():
            return Failure(f"cannot connect to {relay}: {printable(str(error))}{_hint(str(error))}")
        case ChannelRefused():
            return Failure(f"no channel at {relay}: {printable(str(error))}")
        case ConnectionLost():
            return Failure(f"lost the connection to {relay}: {printable(str(error))}")
    return Failure(str(error))


def _hint(problem: str) -> str:
    """What to do about a certificate that nobody has signed whom this host trusts, as OpenSSL calls it; empty for the rest."""
    if not any(words in problem for words in _UNTRUSTED):
        return ""
    return "; --fingerprint trusts exactly the certificate that has it (check-config shows it on the relay's host)"


class Program(click.Group):
    """A group whose errors are lines that begin with the program's name, in place of click's usage and three lines."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        **extra: Any,
    ) -> Any:
        """Run the command line; exits unless ``standalone_mode`` is false."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            _complain(error)
            status = error.exit_code
        except click.Abort:
            status = STATUS_INTERRUPTED
        sys.exit(status if isinstance(status, int) else 0)


def complain(text: str) -> None:
    """Write ``text`` to standard error, each of its lines behind the program's name."""
    for line in text.splitlines():
        click.echo(f"zrc-relay: {line}", err=True)


def _complain(error: click.ClickException) -> None:
    if isinstance(error, _NO_ARGUMENTS):
        error.show()  # the help page
        return
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f" (see {error.ctx.command_path} --help)"
    complain(" ".join(error.format_message().split()) + hint if hint else error.format_message())
