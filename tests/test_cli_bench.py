"""``zrc-relay bench``, against a relay on loopback sockets."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace

from nacl.signing import SigningKey
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import RelayCase, UdpProgram, reactor, zrc_relay
from zrc_relay.cli.bench import BenchResult, Ends, choose_ends, measure
from zrc_relay.cli.bench_traffic import Direction, Plan, Tally
from zrc_relay.cli.errors import BadInput, Failure
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.processes import child_environment, cli_command
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken, key_id

PLAN = Plan(rate=100, size=300, seconds=0.3)


class MeasureTests(RelayCase):
    """Issue 4: an operator measures a relay of theirs: datagrams a second, loss, latency."""

    def setUp(self) -> None:
        super().setUp()
        self.device_key, self.peer_key = read_key(self.made.device_key), read_key(self.made.peer_key)
        self.ends = Ends(self.token, self.token, self.device_key, self.peer_key, is_ours=False)

    def minted(self) -> Ends:
        """Ends of a new allocation."""
        return choose_ends(None, None, self.device_key, self.peer_key, relay_id=self.made.relay_id, seconds=1)

    async def test_what_the_device_sends_is_counted_and_timed(self) -> None:
        result = await measure(reactor, self.relay, self.trust, self.ends, PLAN)
        self.assertEqual(list(result.directions), [Role.DEVICE])
        tally = result.directions[Role.DEVICE]
        self.assertEqual((tally.sent, tally.arrived, tally.wrong), (30, 30, 0))
        self.assertGreaterEqual(tally.seconds, 0.3 - 0.001)
        self.assertTrue(0 < tally.latency(0.5) <= tally.latency(1.0))
        self.assertEqual(self.service.relay.counters.packets_forwarded, 30)

    async def test_both_send_when_asked_to(self) -> None:
        result = await measure(reactor, self.relay, self.trust, self.ends, replace(PLAN, both=True))
        self.assertEqual({role: tally.arrived for role, tally in result.directions.items()}, {Role.DEVICE: 30, Role.PEER: 30})

    async def test_a_minted_allocation_is_released(self) -> None:
        await measure(reactor, self.relay, self.trust, self.minted(), PLAN)
        self.assertEqual(len(self.service.relay.table), 0)

    async def test_the_allocation_of_a_given_token_is_left_to_its_owner(self) -> None:
        await measure(reactor, self.relay, self.trust, self.ends, PLAN)
        self.assertEqual(len(self.service.relay.table), 1)

    async def test_device_and_peer_may_have_tokens_of_their_own(self) -> None:
        shorter = replace(self.token, expires_at=self.token.expires_at - 60).sign(self.device_key)
        ends = choose_ends(shorter, self.token, self.device_key, self.peer_key, relay_id=None, seconds=1)
        result = await measure(reactor, self.relay, self.trust, ends, PLAN)
        self.assertEqual(result.directions[Role.DEVICE].arrived, 30)

    async def test_what_the_bandwidth_limit_takes_is_lost_and_said(self) -> None:
        slow = replace(self.token, bandwidth_limit=2_000, allocation_id=os.urandom(16)).sign(self.device_key)
        plan = Plan(rate=200, size=1200, seconds=1.0)
        result = await measure(reactor, self.relay, self.trust, replace(self.ends, device_token=slow, peer_token=slow), plan)
        tally = result.directions[Role.DEVICE]
        self.assertLess(tally.arrived, tally.sent)
        self.assertGreater(result.dropped["at the relay (bandwidth)"], 0)

    async def test_a_quota_that_is_used_up_is_a_failure(self) -> None:
        small = replace(self.token, quota_bytes=2_000, allocation_id=os.urandom(16)).sign(self.device_key)
        with self.assertRaises(Failure) as caught:
            await measure(reactor, self.relay, self.trust, replace(self.ends, device_token=small, peer_token=small), PLAN)
        self.assertIn("quota", str(caught.exception).lower())

    async def test_without_the_keys_a_relay_that_wants_a_proof_says_no(self) -> None:
        with self.assertRaises(Failure) as caught:
            await measure(reactor, self.relay, self.trust, replace(self.ends, device_key=None), PLAN)
        self.assertIn("proof", str(caught.exception))

    async def test_silence_is_a_failure(self) -> None:
        silent = HostPort("127.0.0.1", UdpProgram(self).port)
        with self.assertRaises(Failure) as caught:
            await measure(reactor, silent, self.trust, self.ends, PLAN, timeout=0.1)
        self.assertIn("no answer", str(caught.exception))

    async def test_a_failure_leaves_no_connection_behind(self) -> None:
        with self.assertRaises(Failure):
            await measure(reactor, self.relay, self.trust, replace(self.ends, peer_key=None), PLAN)
        # The reactor is clean when the test ends, or trial says so.
        result = await measure(reactor, self.relay, self.trust, self.minted(), PLAN)
        self.assertEqual(result.directions[Role.DEVICE].arrived, 30)

    async def test_the_real_command_mints_and_prints_json(self) -> None:
        command, *arguments = cli_command(
            "bench", str(self.relay), "--fingerprint", self.made.fingerprint.hex(), "--relay-id", self.made.relay_id.hex(),
            "--device-key", str(self.made.device_key.resolve()), "--peer-key", str(self.made.peer_key.resolve()),
            "--duration", "300ms", "--rate", "100", "--both", "--json",
        )
        output, errors, status = await getProcessOutputAndValue(command, arguments, env=child_environment())
        self.assertEqual((status, errors), (0, b""))
        shown = json.loads(output)
        self.assertEqual(set(shown["directions"]), {"device", "peer"})
        for direction in shown["directions"].values():
            self.assertEqual((direction["sent"], direction["arrived"], direction["lost"]), (30, 30, 0))
            self.assertGreater(direction["p99_ms"], 0)

    async def test_the_real_command_takes_a_token_and_prints_lines(self) -> None:
        command, *arguments = cli_command(
            "bench", str(self.relay), "--insecure", "--token", f"@{self.made.token.resolve()}",
            "--device-key", str(self.made.device_key.resolve()), "--peer-key", str(self.made.peer_key.resolve()),
            "--duration", "200ms", "--rate", "50",
        )
        output, errors, status = await getProcessOutputAndValue(command, arguments, env=child_environment())
        self.assertEqual((status, errors), (0, b""))
        text = output.decode()
        self.assertRegex(text, r"device to peer +10 of 10 arrived, 0\.00 % lost, [0-9.]+ a second, [0-9.]+ Mbit/s")
        self.assertRegex(text, r"device to peer, latency +p50 [0-9.]+, p99 [0-9.]+, max [0-9.]+ ms")
        self.assertRegex(text, r"dropped +none")


class DirectionTests(SynchronousTestCase):
    """Issue 4 ("count what was delivered and verified"): only what is right, and new, counts."""

    def setUp(self) -> None:
        self.now = 1_000
        self.direction = Direction(40, lambda: self.now)

    def test_a_payload_has_the_size_that_was_asked_for(self) -> None:
        for size in (16, 17, 300, 1200):
            self.assertEqual({len(Direction(size, lambda: 0).make()) for _ in range(300)}, {size})

    def test_what_arrives_is_timed_by_its_number(self) -> None:
        first, second = self.direction.make(), self.direction.make()
        self.now += 2_000_000
        self.direction.take(second)
        self.now += 1_000_000
        self.direction.take(first)
        self.assertEqual(self.direction.tally.delays, {1: 0.002, 0: 0.003})

    def test_a_changed_byte_anywhere_is_wrong(self) -> None:
        payload = self.direction.make()
        for at in (0, 7, 16, 39):
            self.direction.take(payload[:at] + bytes((payload[at] ^ 1,)) + payload[at + 1 :])
        self.assertEqual((self.direction.tally.arrived, self.direction.tally.wrong), (0, 4))

    def test_a_second_arrival_a_shorter_one_and_a_strangers_are_wrong(self) -> None:
        payload = self.direction.make()
        other = Direction(40, lambda: 0)
        other.make()
        for arriving in (payload, payload, payload[:-1], b"", other.make()):
            self.direction.take(arriving)
        self.assertEqual((self.direction.tally.arrived, self.direction.tally.wrong), (1, 4))

    def test_figures(self) -> None:
        tally = Tally(sent=4, seconds=2.0, delays={0: 0.001, 1: 0.002, 3: 0.009})
        self.assertEqual((tally.lost, tally.per_second), (0.25, 1.5))
        self.assertEqual([tally.latency(fraction) for fraction in (0.0, 0.5, 1.0)], [0.001, 0.002, 0.009])

    def test_times_are_milliseconds_and_nothing_is_said_about_what_did_not_arrive(self) -> None:
        plan = Plan(rate=2, size=1000, seconds=2.0, both=True)
        tallies = {Role.DEVICE: Tally(sent=4, seconds=2.0, delays={0: 0.0015}), Role.PEER: Tally(sent=4, seconds=2.0)}
        result = BenchResult(HostPort("192.0.2.1", 4433), plan, tallies, Counter({"at the relay (bandwidth)": 3}))
        shown = json.loads(json.dumps(result.as_dict()))["directions"]
        self.assertEqual(shown["device"]["p50_ms"], 1.5)
        self.assertNotIn("p50_ms", shown["peer"])
        rows = result.as_rows()
        self.assertEqual(rows["device to peer"], "1 of 4 arrived, 75.00 % lost, 0.5 a second, 0.00 Mbit/s")
        self.assertNotIn("peer to device, latency", rows)
        self.assertEqual(rows["dropped"], "3 at the relay (bandwidth)")


class OptionTests(SynchronousTestCase):
    """R8: what was typed and does not go together is refused with a line that says what would be right."""

    def setUp(self) -> None:
        self.device, self.peer = SigningKey(bytes(32)), SigningKey(bytes([1]) * 32)
        self.token = RelayToken(
            relay_id=bytes(16), allocation_id=bytes(16), device_id=key_id(bytes(self.device.verify_key)),
            peer_id=key_id(bytes(self.peer.verify_key)), expires_at=2**40, bandwidth_limit=0, quota_bytes=0,
        ).sign(self.device)

    def test_a_token_is_minted_for_the_peer_and_lives_longer_than_the_measurement(self) -> None:
        ends = choose_ends(None, None, self.device, self.peer, relay_id=b"r" * 16, seconds=100)
        self.assertTrue(ends.device_token.is_signed_by(bytes(self.device.verify_key)))
        self.assertEqual((ends.device_token.relay_id, ends.device_token.peer_id), (b"r" * 16, self.token.peer_id))
        self.assertEqual(ends.peer_token, ends.device_token)
        again = choose_ends(None, None, self.device, self.peer, relay_id=b"r" * 16, seconds=3700)
        self.assertNotEqual(again.device_token.allocation_id, ends.device_token.allocation_id)
        self.assertGreater(again.device_token.expires_at, ends.device_token.expires_at + 3500)

    def test_without_a_token_all_of_what_mints_one_is_needed(self) -> None:
        for peer_token, device, peer, relay_id in (
            (None, None, None, None), (None, self.device, self.peer, None), (None, self.device, None, bytes(16)),
            (None, None, self.peer, bytes(16)), (self.token, self.device, self.peer, bytes(16)),
        ):
            with self.assertRaises(BadInput) as caught:
                choose_ends(None, peer_token, device, peer, relay_id=relay_id, seconds=1)
            self.assertIn("--relay-id, --device-key and --peer-key", str(caught.exception))

    def test_a_token_and_a_relay_id_exclude_each_other(self) -> None:
        with self.assertRaises(BadInput):
            choose_ends(self.token, None, None, None, relay_id=bytes(16), seconds=1)

    def test_tokens_of_two_allocations_do_not_meet(self) -> None:
        other = replace(self.token, allocation_id=b"x" * 16).sign(self.device)
        with self.assertRaises(BadInput) as caught:
            choose_ends(self.token, other, None, None, relay_id=None, seconds=1)
        self.assertIn("different allocations", str(caught.exception))

    def test_a_key_that_is_not_the_tokens_is_refused_before_anything_is_sent(self) -> None:
        for device, peer in ((self.peer, None), (None, self.device)):
            with self.assertRaises(BadInput) as caught:
                choose_ends(self.token, None, device, peer, relay_id=None, seconds=1)
            self.assertIn("not that of the token's", str(caught.exception))

    def test_the_command_says_in_one_line_what_is_missing(self) -> None:
        done = zrc_relay("bench", "127.0.0.1", "--insecure")
        self.assertEqual((done.exit_code, done.output.count("\n")), (2, 1), done.output)
        self.assertIn("give --token", done.output)

    def test_a_size_that_does_not_fit_a_packet_is_refused(self) -> None:
        for size in (15, 1201):
            self.assertEqual(zrc_relay("bench", "127.0.0.1", "--insecure", "--size", size).exit_code, 2)
