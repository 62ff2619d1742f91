"""``zrc-relay demo``: a real relay, two real tunnels and real traffic, all on this machine, in a few seconds.

Theory of operation
-------------------
::

    client program -- UDP -- tunnel (peer) == QUIC == relay == QUIC == tunnel (device) -- UDP -- server program

The relay is ``twistd -n zrc-relay`` and the tunnels are ``zrc-relay tunnel``, each a process of its own, started on the files of
a ``dev-setup`` in a temporary directory; every port is of the kernel's choice and read from what the processes print. The two
programs (``demo_program``) run in this process, and encrypt end to end.

Whatever happens, the processes are ended and the directory is removed: all of them belong to one ``ExitStack``, and a signal is
held back while something is started or ended.
"""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import click
from nacl.secret import SecretBox
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from zrc_relay.cli.console import console, size
from zrc_relay.cli.demo_program import Client, Server, Tally, TrafficFailed
from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup
from zrc_relay.cli.errors import Failure
from zrc_relay.cli.params import amount
from zrc_relay.cli.processes import Child, ChildFailed, child_environment, cli_command, relay_command
from zrc_relay.config_units import Size

START_TIMEOUT: Final = 30.0
"""Seconds that a process gets to be ready; a second or two is usual."""
REQUESTS: Final = 1000
BULK: Final = "8 MB"
QUICK_REQUESTS: Final = 100
QUICK_BULK: Final = 500_000
SETTINGS: Final = {"drain_timeout": "0s", "log_format": "text"}
"""Beside those of a dev setup: at the end there is nobody whom the relay should wait for."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Lets SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt``; inside of ``held`` they wait until its end."""

    def __init__(self) -> None:
        self._before: list[object] = []
        self._depth = 0
        self._is_pending = False

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._received) for number in _SIGNALS]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def _received(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._depth:
            self._is_pending = True
        else:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._is_pending and not self._depth:
            raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Phase:
    """What one kind of traffic came to, both directions together."""

    name: str
    datagrams: int
    bytes: int
    lost: int
    seconds: float
    relay_cpu: float
    times: Sequence[float] = ()
    """Seconds from request to response; empty where there are none."""

    def row(self) -> tuple[str, ...]:
        """As a line of the table, under ``HEADINGS``."""
        p50, p99 = (f"{1000 * percentile(self.times, p):.2f}" if self.times else "-" for p in (50, 99))
        return (
            self.name,
            f"{self.datagrams:,}",
            size(self.bytes),
            f"{self.lost} ({self.lost / self.datagrams:.2%})",
            p50,
            p99,
            f"{size(self.bytes / self.seconds)}/s",
            f"{1e6 * self.relay_cpu / self.datagrams:.0f}",
        )


HEADINGS: Final = ("traffic", "datagrams", "bytes", "lost", "p50 ms", "p99 ms", "rate", "CPU \u00b5s")


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that is not below ``percent`` percent of ``values`` (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


@click.command()
@click.option("--requests", type=click.IntRange(1, 1_000_000), default=REQUESTS, show_default=True, help="Requests to make.")
@click.option(
    "--bulk", metavar="SIZE", type=amount(Size("1 B", "1 GB")), default=BULK, show_default=True, help="Bytes to transfer.",
)
@click.option("--quick", is_flag=True, help="Only 100 requests and 500 kB.")
def demo(requests: int, bulk: int, *, quick: bool) -> None:
    """Show a relay at work, on this machine.

    Starts a relay, connects a device and a peer with "zrc-relay tunnel", and sends a UDP program's traffic through them: requests
    with responses, then a bulk transfer, all of it encrypted end to end. Every byte is compared at the other end. Nothing is left
    behind. The exit status is 1 when anything went wrong.
    """
    if quick:
        requests, bulk = QUICK_REQUESTS, QUICK_BULK
    with Interrupts() as interrupts:
        _Demo(interrupts, console()).run(requests, bulk)


class _Demo:
    """One run."""

    def __init__(self, interrupts: Interrupts, screen: Console) -> None:
        self._interrupts = interrupts
        self._screen = screen
        self._children: list[Child] = []

    def run(self, requests: int, bulk: int) -> None:
        stack = ExitStack()
        try:
            self._run(stack, requests, bulk)
        except (ChildFailed, TrafficFailed) as error:
            raise Failure("\n".join([str(error), *self._tails()])) from error
        finally:
            with self._interrupts.held():
                stack.close()

    def _run(self, stack: ExitStack, requests: int, bulk: int) -> None:
        with self._interrupts.held():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zrc-relay-demo-")))
        made = make_dev_setup(directory / "setup", listen=["127.0.0.1"], port=0, tier="unlimited", settings=SETTINGS)
        self._step("certificate, keys, token and configuration made")
        relay, port = self._start_relay(stack, directory, made)
        key = os.urandom(SecretBox.KEY_SIZE)  # the programs' own; neither tunnels nor relay have it
        server = Server(key)
        server.start()
        stack.callback(server.stop)
        client_port = self._start_tunnels(stack, directory, made, port, server.port)
        client = Client(key, client_port, self._check)
        stack.callback(client.close)
        phases = [self._ask(client, server, relay, requests), self._transfer(client, server, relay, bulk)]
        forged = client.tally.forged + server.tally.forged
        if forged:
            msg = f"{forged} datagrams were changed on their way"
            raise TrafficFailed(msg)
        self._check()
        self._summarise(phases)

    # -- the actors

    def _start(self, stack: ExitStack, name: str, command: Sequence[str], directory: Path) -> Child:
        with self._interrupts.held():
            child = stack.enter_context(Child(name, command, directory, child_environment()))
        self._children.append(child)
        return child

    def _start_relay(self, stack: ExitStack, directory: Path, made: DevSetup) -> tuple[Child, int]:
        relay = self._start(stack, "relay", relay_command(made.config), directory)
        port = int(relay.wait_for(r"listening on UDP 127\.0\.0\.1:(\d+)\n", timeout=START_TIMEOUT)[1])
        self._step(f"relay: process {relay.pid}, UDP port {port}")
        return relay, port

    def _start_tunnels(self, stack: ExitStack, directory: Path, made: DevSetup, relay_port: int, server_port: int) -> int:
        common = (
            "tunnel", "--relay", f"127.0.0.1:{relay_port}", "--fingerprint", made.fingerprint.hex(), "--token", f"@{made.token}",
        )
        device = cli_command(*common, "--key", str(made.device_key), "--target", f"127.0.0.1:{server_port}")
        peer = cli_command(*common, "--key", str(made.peer_key), "--listen", "0")
        commands = {"device tunnel": device, "peer tunnel": peer}
        tunnels = [self._start(stack, name, command, directory) for name, command in commands.items()]
        for tunnel in tunnels:
            tunnel.wait_for(r"the (device|peer) (joined|is there)", timeout=START_TIMEOUT)
        client_port = int(tunnels[1].wait_for(r"local end on UDP 127\.0\.0\.1:(\d+)\n", timeout=START_TIMEOUT)[1])
        self._step(f"device and peer connected, processes {tunnels[0].pid} and {tunnels[1].pid}")
        return client_port

    def _check(self) -> None:
        for child in self._children:
            child.check()

    def _tails(self) -> Iterator[str]:
        for child in self._children:
            yield f"the last lines of the {child.name}:"
            yield from (f"  {line}" for line in child.tail.splitlines())

    # -- the traffic

    def _ask(self, client: Client, server: Server, relay: Child, requests: int) -> Phase:
        with self._measured(client, server, relay) as measured, self._progress("requests", requests) as progress:
            times = client.ask(requests, progress)
            measured.times = times
        self._step(f"{requests:,} requests, each response compared")
        return measured.phase("requests")

    def _transfer(self, client: Client, server: Server, relay: Child, bulk: int) -> Phase:
        data = os.urandom(bulk)
        expected = hashlib.sha256(data).digest()
        with self._measured(client, server, relay) as measured, self._progress("bulk", bulk) as progress:
            digest = client.transfer(data, progress)
        if digest != expected:
            msg = f"what arrived is not what was sent: SHA-256 {digest.hex()}, not {expected.hex()}"
            raise TrafficFailed(msg)
        self._step(f"{size(bulk)} transferred, SHA-256 {expected.hex()[:16]}... at both ends")
        return measured.phase("bulk")

    @contextmanager
    def _measured(self, client: Client, server: Server, relay: Child) -> Iterator[_Measurement]:
        measurement = _Measurement(client, server, relay)
        yield measurement
        measurement.finish()

    # -- what is shown

    def _step(self, text: str) -> None:
        self._screen.print(f"[green]ok[/]  {text}")

    @contextmanager
    def _progress(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        if not self._screen.is_terminal:
            yield self._progress_lines(name, total)
            return
        columns = (TextColumn("    {task.description:8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._screen, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.update(task, completed=done)

    def _progress_lines(self, name: str, total: int) -> Callable[[int], None]:
        shown = 0

        def progress(done: int) -> None:
            nonlocal shown
            quarter = 4 * done // total
            if quarter > shown:
                shown = quarter
                self._screen.print(f"    {name}: {25 * quarter} %")

        return progress

    def _summarise(self, phases: Sequence[Phase]) -> None:
        is_ascii = self._screen.options.ascii_only
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in HEADINGS:
            shown = heading.replace("\u00b5", "u") if is_ascii else heading
            table.add_column(shown, justify="left" if heading == HEADINGS[0] else "right", no_wrap=True)
        for phase in phases:
            table.add_row(*phase.row())
        self._screen.print("\nThrough the relay, both directions together:\n")
        self._screen.print(table)
        self._screen.print(
            "\np50, p99: from request to response, so twice through the relay and both tunnels.\n"
            "CPU: of the relay's process, for each datagram. What was lost was sent again.\n\n"
            "The programs encrypt end to end, with a key of their own: the relay has seen\nonly ciphertext. "
            "[green]Every byte arrived as it was sent.[/]"
        )


class _Measurement:
    """What a phase costs: tallies, time and the relay's CPU, as differences."""

    def __init__(self, client: Client, server: Server, relay: Child) -> None:
        self._client = client
        self._now = (client.tally, server.tally)
        self._before = (client.tally.copy(), server.tally.copy())
        self._relay = relay
        self._cpu = -relay.cpu_seconds()
        self._seconds = -time.monotonic()
        self.times: Sequence[float] = ()

    def finish(self) -> None:
        """The phase is over: wait for stragglers, and take stock."""
        self._seconds += time.monotonic()
        self._client.settle(lambda: self._lost() == 0)
        self._cpu += self._relay.cpu_seconds()

    def _difference(self, count: Callable[[Tally], int]) -> int:
        return sum(count(now) - count(before) for now, before in zip(self._now, self._before, strict=True))

    def _lost(self) -> int:
        return self._difference(lambda tally: tally.sent - tally.received)

    def phase(self, name: str) -> Phase:
        """The result."""
        return Phase(
            name,
            datagrams=self._difference(lambda tally: tally.sent),
            bytes=self._difference(lambda tally: tally.bytes),
            lost=self._lost(),
            seconds=self._seconds,
            relay_cpu=self._cpu,
            times=self.times,
        )
