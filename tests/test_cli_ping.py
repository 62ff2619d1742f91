"""``zrc-relay ping``, against a relay on loopback sockets."""

from __future__ import annotations

import json
from dataclasses import replace

from twisted.internet.utils import getProcessOutputAndValue

from tests.cli_support import RelayCase, UdpProgram, reactor
from zrc_relay.cli.errors import Failure
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.ping import PingResult, as_dict, measure
from zrc_relay.cli.processes import child_environment, cli_command
from zrc_relay.core.wire import Address, RelayEntry


class PingTests(RelayCase):
    """Issue 2 and PROTOCOL §5 (RELAYS): a relay can be measured and asked for others without a token."""

    async def test_measures_as_many_round_trips_as_asked_for(self) -> None:
        result = await measure(reactor, self.relay, self.trust, count=3)
        self.assertEqual(len(result.round_trips), 3)
        for seconds in (result.handshake, *result.round_trips):
            self.assertGreater(seconds, 0)

    async def test_ends_before_the_relay_would_end_it(self) -> None:
        result = await measure(reactor, self.relay, self.trust, count=50, duration=0.0)
        self.assertEqual(len(result.round_trips), 1)

    async def test_lists_the_relay_itself(self) -> None:
        result = await measure(reactor, self.relay, self.trust, count=1)
        self.assertEqual([str(entry.address) for entry in result.relays], [str(self.relay)])
        self.assertEqual(result.relays[0].instance_id, self.service.relay.policy.instance_id)

    async def test_leaves_no_allocation_behind(self) -> None:
        await measure(reactor, self.relay, self.trust, count=1)
        self.assertEqual(len(self.service.relay.table), 0)

    async def test_an_untrusted_certificate_is_a_failure(self) -> None:
        for trust in (replace(self.trust, fingerprint=bytes(32)), replace(self.trust, fingerprint=None)):
            with self.assertRaises(Failure) as caught:
                await measure(reactor, self.relay, trust, count=1)
            self.assertIn(f"cannot connect to {self.relay}: ", str(caught.exception))

    async def test_a_self_signed_certificate_comes_with_what_to_do_about_it_and_others_do_not(self) -> None:
        for trust, is_hint in (
            (replace(self.trust, fingerprint=None), True),
            (replace(self.trust, fingerprint=bytes(32)), False),
            (replace(self.trust, fingerprint=None, ca_file=self.made.directory / "cert.pem", server_name="relay.example"), False),
        ):
            with self.assertRaises(Failure) as caught:
                await measure(reactor, self.relay, trust, count=1)
            self.assertEqual("--fingerprint" in str(caught.exception), is_hint, str(caught.exception))

    async def test_the_certificate_itself_will_do_as_authority_and_its_name_is_checked(self) -> None:
        trust = replace(self.trust, fingerprint=None, ca_file=self.made.directory / "cert.pem")
        await measure(reactor, self.relay, trust, count=1)
        with self.assertRaises(Failure):
            await measure(reactor, self.relay, replace(trust, server_name="relay.example"), count=1)

    async def test_silence_is_a_failure(self) -> None:
        silent = UdpProgram(self)
        with self.assertRaises(Failure) as caught:
            await measure(reactor, HostPort("127.0.0.1", silent.port), self.trust, count=1, timeout=0.1)
        self.assertIn("no answer", str(caught.exception))

    async def test_a_relay_that_falls_silent_is_a_failure(self) -> None:
        running = measure(reactor, self.relay, self.trust, count=50, timeout=0.5)
        reactor.callLater(0.3, self.service.quic.stopService)
        with self.assertRaises(Failure) as caught:
            await running
        self.assertRegex(str(caught.exception), "stopped answering|cannot connect")

    async def test_the_real_command_prints_json(self) -> None:
        command, *arguments = cli_command(
            "ping", str(self.relay), "--fingerprint", self.made.fingerprint.hex(), "--count", "2", "--json"
        )
        output, errors, status = await getProcessOutputAndValue(command, arguments, env=child_environment())
        self.assertEqual((status, errors), (0, b""))
        shown = json.loads(output)
        self.assertEqual((shown["relay"], len(shown["round_trips_ms"])), (str(self.relay), 2))
        self.assertEqual([entry["address"] for entry in shown["relays"]], [str(self.relay)])

    async def test_the_real_command_prints_a_table(self) -> None:
        command, *arguments = cli_command("ping", str(self.relay), "--insecure", "--count", "2")
        output, errors, status = await getProcessOutputAndValue(command, arguments, env=child_environment())
        self.assertEqual((status, errors), (0, b""))
        text = output.decode()
        self.assertRegex(text, r"handshake +[0-9.]+ ms")
        self.assertRegex(text, r"round trips +2, min/avg/max [0-9.]+/[0-9.]+/[0-9.]+ ms")
        self.assertRegex(text, rf"{self.relay} +{self.service.relay.policy.instance_id.hex()} +0 %")

    def test_times_are_milliseconds(self) -> None:
        entry = RelayEntry(bytes(8), Address("192.0.2.1", 4433), load=7, draining=True, region="r")
        shown = as_dict(self.relay, PingResult(0.25, (0.001, 0.002, 0.006), (entry,)))
        self.assertEqual([shown[f"{name}_ms"] for name in ("handshake", "min", "avg", "max")], [250.0, 1.0, 3.0, 6.0])
        self.assertEqual(
            shown["relays"],
            [{"instance_id": "00" * 8, "address": "192.0.2.1:4433", "load": 7, "draining": True, "region": "r"}],
        )
