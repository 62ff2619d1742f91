"""STUN of a real relay, asked by programs and libraries that are not ours, and by ``zrc-relay ping --stun``."""

from __future__ import annotations

import json
import shutil
from typing import Any

from aioice import stun as aioice_stun
from twisted.internet.utils import getProcessOutputAndValue

from tests.cli_support import RelayCase, UdpProgram, reactor
from zrc_relay.cli.errors import Failure
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.ping import measure_stun
from zrc_relay.cli.processes import child_environment, cli_command

STUNCLIENT = shutil.which("turnutils_stunclient")
"""Of Debian's coturn."""


class LibraryTests(RelayCase):
    """PROTOCOL §8: aioice understands the answers."""

    async def ask(self, message: aioice_stun.Message) -> aioice_stun.Message:
        program = UdpProgram(self)
        program.send(bytes(message), self.relay.port)
        await program.has(1)
        self.port = program.port
        return aioice_stun.parse_message(program.got[0])

    def request(self) -> aioice_stun.Message:
        return aioice_stun.Message(
            message_method=aioice_stun.Method.BINDING, message_class=aioice_stun.Class.REQUEST, transaction_id=b"of its own.."
        )

    async def test_a_request(self) -> None:
        answer = await self.ask(self.request())
        self.assertEqual(answer.message_class, aioice_stun.Class.RESPONSE)
        self.assertEqual(answer.transaction_id, b"of its own..")
        self.assertEqual(dict(answer.attributes), {"XOR-MAPPED-ADDRESS": ("127.0.0.1", self.port)})

    async def test_a_request_with_a_fingerprint_and_what_software_it_is(self) -> None:
        request = self.request()
        request.attributes["SOFTWARE"] = "a test"
        request.add_fingerprint()
        answer = await self.ask(request)
        self.assertEqual(dict(answer.attributes), {"XOR-MAPPED-ADDRESS": ("127.0.0.1", self.port)})

    async def test_a_check_of_ice_is_for_somebody_else(self) -> None:
        request = self.request()
        request.attributes["PRIORITY"] = 7
        answer = await self.ask(request)
        self.assertEqual(answer.message_class, aioice_stun.Class.ERROR)
        self.assertEqual(answer.attributes["ERROR-CODE"], (420, "Unknown Attribute"))


class PingTests(RelayCase):
    """Issue "STUN Binding": ``zrc-relay ping --stun`` measures the way and shows our own address."""

    async def test_it_measures_and_tells_our_address(self) -> None:
        result = await measure_stun(reactor, self.relay, count=3)
        self.assertEqual((result.address.host, len(result.round_trips)), ("127.0.0.1", 3))
        self.assertGreater(min(result.round_trips), 0)
        self.assertEqual(self.service.relay.counters.stun_answered, 3)
        self.assertEqual(self.service.endpoint.connections, 0)

    async def test_silence_is_a_failure(self) -> None:
        silent = UdpProgram(self)
        with self.assertRaises(Failure) as caught:
            await measure_stun(reactor, HostPort("127.0.0.1", silent.port), count=1, timeout=0.2)
        self.assertIn("no answer to STUN", str(caught.exception))

    async def test_answers_of_others_do_not_count(self) -> None:
        echo = UdpProgram(self, echo=True)
        with self.assertRaises(Failure):
            await measure_stun(reactor, HostPort("127.0.0.1", echo.port), count=1, timeout=0.2)

    async def test_a_request_that_is_lost_is_repeated(self) -> None:
        deaf = UdpProgram(self)
        running = measure_stun(reactor, HostPort("127.0.0.1", deaf.port), count=1, timeout=1.0)
        waiting = deaf.has(2)
        with self.assertRaises(Failure):
            await running
        await waiting
        self.assertNotEqual(deaf.got[0], deaf.got[1], "each try is a transaction of its own")

    async def test_the_real_command_prints_json_and_text(self) -> None:
        shown: dict[str, Any] = {}
        for form in ("--json", "--timeout=9s"):
            command, *arguments = cli_command("ping", str(self.relay), "--stun", "--count", "2", form)
            output, errors, status = await getProcessOutputAndValue(command, arguments, env=child_environment())
            self.assertEqual((status, errors), (0, b""))
            if form == "--json":
                shown = json.loads(output)
            else:
                self.assertRegex(output.decode(), r"our address +127\.0\.0\.1:\d+")
        self.assertEqual((shown["relay"], len(shown["round_trips_ms"])), (str(self.relay), 2))
        self.assertRegex(shown["address"], r"127\.0\.0\.1:\d+")


if STUNCLIENT is not None:
    PROGRAM: str = STUNCLIENT

    class ProgramTests(RelayCase):
        """PROTOCOL §8: coturn's client understands the answers."""

        async def test_it_learns_its_address(self) -> None:
            arguments = ["-p", str(self.relay.port), "127.0.0.1"]
            output, errors, status = await getProcessOutputAndValue(PROGRAM, arguments)
            text = (output + errors).decode(errors="replace")
            self.assertEqual(status, 0, text)
            self.assertRegex(text, r"UDP reflexive addr: 127\.0\.0\.1:\d+")
