"""Recordings of single connections: when, what is in them and what is not, how long, where."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.harness import Recorder, TestClient, World
from tests.real_relay import PATIENCE, Setup, eventually, exchange
from tests.relay_view import relay_end
from zrc_relay.core.codes import Role
from zrc_relay.qlogs import MAX_AT_ONCE, MAX_SECONDS, MAX_WANTED, WANTED_SECONDS, QlogRefused, Recordings
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.qlog import Trace

PAYLOAD = b"what nobody but the two ends should read"


class RecordedWorld(World):
    """A relay that can record, into a directory."""

    def __init__(self, directory: Path | None, *, max_bytes: int = 4 * 1024 * 1024) -> None:
        super().__init__()
        self.writes: list[Callable[[], Any]] = []
        self.writing: Deferred[Any] | None = None
        self.recordings = Recordings(
            self.recorder, directory, now=self.now, wall=self.wall, run=self._run, max_bytes=max_bytes,
        )
        vars(self.relay)["_observer"] = self.recordings
        self.recordings.find = self.endpoint.find

    def _run(self, function: Callable[[], Any]) -> Deferred[Any]:
        return maybeDeferred(function) if self.writing is None else self.writing

    @property
    def key(self) -> tuple[bytes, bytes]:
        token = self.token()
        return token.device_id, token.allocation_id

    def is_recorded(self, client: TestClient) -> bool:
        return vars(relay_end(self, client).quic)["_quic_logger"] is not None


class QlogCase(SynchronousTestCase):
    """A directory, and what is in it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute() / "qlog"

    def files(self) -> list[Path]:
        return sorted(self.directory.iterdir()) if self.directory.exists() else []

    def recording(self) -> dict[str, Any]:
        (path,) = self.files()
        found: dict[str, Any] = json.loads(path.read_text())
        return found


class RequestTests(QlogCase):
    """Issue "logs": qlog on demand, for an allocation's next connection and no other."""

    def test_the_next_connection_is_recorded_and_no_other_before_or_after(self) -> None:
        world = RecordedWorld(self.directory)
        device, peer = world.pair()
        world.recordings.request(world.key)
        world.run(1.0)
        self.assertEqual(world.recordings.running, 0)
        newcomer = world.client(Role.PEER)
        world.run(0.5)
        later = world.client(Role.PEER)
        world.run(0.5)
        self.assertEqual([world.is_recorded(client) for client in (device, peer, newcomer, later)], [False, False, True, False])
        self.assertEqual(world.recordings.running, 1)

    def test_an_allocation_that_is_not_there_yet_is_recorded_when_it_comes(self) -> None:
        world = RecordedWorld(self.directory)
        world.recordings.request(world.key)
        other = world.client(Role.DEVICE, world.token(allocation_id=b"another one....."))
        world.run(0.5)
        device = world.client(Role.DEVICE)
        world.run(0.5)
        self.assertEqual([world.is_recorded(client) for client in (other, device)], [False, True])

    def test_events_go_on_to_who_heard_them_before(self) -> None:
        world = RecordedWorld(self.directory)
        world.recordings.request(world.key)
        world.pair()
        self.assertEqual(len(world.recorder.named("session.bound")), 2)

    def test_without_a_directory_none_can_be_asked_for(self) -> None:
        world = RecordedWorld(None)
        with self.assertRaises(QlogRefused):
            world.recordings.request(world.key)

    def test_a_request_is_forgotten_after_a_while(self) -> None:
        world = RecordedWorld(self.directory)
        world.recordings.request(world.key)
        world.clock.advance(WANTED_SECONDS)
        world.recordings.sweep()
        world.pair(world.token())
        self.assertEqual(world.recordings.running, 0)

    def test_requests_are_bounded_and_the_same_one_may_be_repeated(self) -> None:
        world = RecordedWorld(self.directory)
        for number in range(MAX_WANTED):
            world.recordings.request((bytes(32), number.to_bytes(16, "big")))
        world.recordings.request((bytes(32), bytes(16)))
        with self.assertRaises(QlogRefused):
            world.recordings.request(world.key)

    def test_only_so_many_run_at_a_time_and_the_next_one_gets_its_turn(self) -> None:
        world = RecordedWorld(self.directory)
        for number in range(MAX_AT_ONCE + 1):
            token = world.token(allocation_id=number.to_bytes(16, "big"))
            world.recordings.request((token.device_id, token.allocation_id))
            world.client(Role.DEVICE, token)
            world.run(0.3)
        self.assertEqual(world.recordings.running, MAX_AT_ONCE)
        world.recordings.finish()
        world.client(Role.PEER, world.token(allocation_id=MAX_AT_ONCE.to_bytes(16, "big")))
        world.run(0.3)
        self.assertEqual(world.recordings.running, 1)


class RecordingTests(QlogCase):
    """Issue "logs": a recording opens in qvis, holds what happened, and neither payload nor secrets (R3.2, R6.7)."""

    EVENTS: ClassVar[set[str]] = {
        "transport:packet_sent", "transport:packet_received", "transport:datagrams_received", "recovery:metrics_updated",
    }

    def record(self, *, max_bytes: int = 4 * 1024 * 1024, datagrams: int = 50) -> tuple[RecordedWorld, TestClient, TestClient]:
        """Device and peer, the peer recorded, talking."""
        world = RecordedWorld(self.directory, max_bytes=max_bytes)
        device = world.client(Role.DEVICE)
        world.run(0.5)
        world.recordings.request(world.key)
        peer = world.client(Role.PEER)
        world.run(0.5)
        for _ in range(datagrams):
            device.send(PAYLOAD)
            peer.send(PAYLOAD)
            world.run(0.02)
        return world, device, peer

    def test_its_structure_is_that_of_the_format(self) -> None:
        world, _, peer = self.record()
        name = relay_end(world, peer).name
        peer.close()
        world.run(5.0)
        recording = self.recording()
        self.assertEqual((recording["qlog_version"], recording["qlog_format"]), ("0.3", "JSON"))
        (trace,) = recording["traces"]
        self.assertEqual(trace["vantage_point"], {"name": "zrc-relay", "type": "server"})
        self.assertEqual(trace["common_fields"]["ODCID"], name)
        events = trace["events"]
        self.assertLessEqual(self.EVENTS, {event["name"] for event in events})
        for event in events:
            self.assertEqual(set(event), {"time", "name", "data"})
            self.assertIsInstance(event["time"], float)
        self.assertEqual([event["time"] for event in events], sorted(event["time"] for event in events))
        for event in events:
            if event["name"] in ("transport:packet_sent", "transport:packet_received"):
                self.assertIn("packet_number", event["data"]["header"])
                self.assertTrue(event["data"]["frames"], event)

    def test_it_holds_every_datagram_in_both_directions_the_answer_to_allocate_and_the_close(self) -> None:
        world, _, peer = self.record()
        peer.close()
        world.run(5.0)
        frames: dict[str, list[dict[str, Any]]] = {"transport:packet_sent": [], "transport:packet_received": []}
        for event in self.recording()["traces"][0]["events"]:
            if event["name"] in frames:
                frames[event["name"]] += event["data"]["frames"]
        for direction in frames.values():
            datagrams = [frame for frame in direction if frame["frame_type"] == "datagram"]
            self.assertEqual([frame["length"] for frame in datagrams], [len(PAYLOAD)] * 50)
        sent = [frame for frame in frames["transport:packet_sent"] if frame["frame_type"] == "stream" and frame["stream_id"] == 0]
        self.assertTrue(sent, "ALLOCATED")
        closes = [frame for frame in frames["transport:packet_received"] if frame["frame_type"] == "connection_close"]
        self.assertTrue(closes)

    def test_neither_payload_nor_tokens_nor_keys_nor_reset_tokens_are_in_it(self) -> None:
        world, _, peer = self.record()
        quic = relay_end(world, peer).quic
        resets = [cid.stateless_reset_token for cid in vars(quic)["_host_cids"]]
        token = world.token()
        peer.refresh(world.token(expires_at=token.expires_at + 60))
        world.run(1.0)
        peer.close()
        world.run(5.0)
        text = self.files()[0].read_text()
        self.assertNotIn("reset_token", text)
        secrets = [PAYLOAD, token.encode(), token.encode()[-64:], bytes(world.peer_key), bytes(world.device_key), *resets]
        for secret in secrets:
            self.assertNotIn(secret.hex(), text)
        self.assertNotIn(PAYLOAD.decode(), text)
        self.assertNotIn(token.to_text(), text)

    def test_frames_with_secrets_are_recorded_without_them(self) -> None:
        trace = Trace(b"12345678", wall=lambda: 0.0, limit=1000, on_end=lambda: None)
        told = trace.encode_new_connection_id_frame(b"cid", 0, 1, b"s" * 16)
        self.assertEqual(told["connection_id"], b"cid".hex())
        parameters = type("Parameters", (), {})()
        parameters.stateless_reset_token, parameters.max_ack_delay = b"s" * 16, 25
        for frame in (told, trace.encode_new_token_frame(b"s" * 16), trace.encode_transport_parameters("local", parameters)):
            self.assertNotIn((b"s" * 16).hex(), json.dumps(frame))

    def test_it_stops_at_its_bound_and_the_connection_goes_on(self) -> None:
        world, device, peer = self.record(max_bytes=5_000, datagrams=200)
        (path,) = self.files()
        self.assertLess(path.stat().st_size, 5_500)
        self.assertTrue(self.recording()["traces"][0]["events"])
        self.assertFalse(world.is_recorded(peer))
        self.assertEqual((world.recordings.running, len(peer.got), len(device.got)), (0, 200, 200))

    def test_it_stops_when_its_time_is_over(self) -> None:
        world, _, peer = self.record()
        vars(world.recordings)["_now"] = lambda: world.now() + MAX_SECONDS
        world.recordings.sweep()
        self.assertEqual((len(self.files()), world.is_recorded(peer)), (1, False))

    def test_a_connection_that_is_recorded_takes_the_general_way_and_afterwards_the_short_one_again(self) -> None:
        world, device, peer = self.record()
        end = relay_end(world, peer)
        self.assertIsNone(vars(end)["_fast"])
        world.recordings.finish()
        for _ in range(5):
            device.send(PAYLOAD)
            peer.send(PAYLOAD)
            world.run(0.1)
        self.assertEqual(vars(end)["_fast"] is not None, vars(end)["_may_be_fast"])
        self.assertEqual(len(peer.got), 55)

    def test_one_that_took_the_short_way_before_is_recorded_whole(self) -> None:
        world = World()
        device, peer = world.pair()
        for _ in range(5):
            device.send(PAYLOAD)
            peer.send(PAYLOAD)
            world.run(0.1)
        trace = Trace(b"12345678", wall=world.wall, limit=100_000, on_end=lambda: None)
        relay_end(world, peer).record(trace)
        for _ in range(5):
            device.send(PAYLOAD)
            peer.send(PAYLOAD)
            world.run(0.1)
        trace.end()
        self.assertEqual(trace.text().count('"frame_type":"datagram"'), 10)

    def test_what_was_recorded_of_a_connection_that_breaks_in_our_hands_is_written(self) -> None:
        world, _, peer = self.record()
        self.patch(relay_end(world, peer), "receive_batch", lambda *_: 1 // 0)
        peer.send(PAYLOAD)
        world.run(1.0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(self.files()), world.recordings.running), (1, 0))

    def test_events_that_are_completed_later_are_complete(self) -> None:
        trace = Trace(b"12345678", wall=lambda: 1.0, limit=100_000, on_end=lambda: None)
        frames: list[str] = []
        trace.log_event(category="a", event="b", data={"frames": frames})
        for number in range(200):
            trace.log_event(category="a", event="c", data={"number": number})
        frames.append("late")
        for number in range(400):
            trace.log_event(category="a", event="c", data={"number": number})
        trace.end()
        events = json.loads(trace.text())["traces"][0]["events"]
        self.assertEqual((events[0]["data"], len(events)), ({"frames": ["late"]}, 601))

    def test_nothing_is_kept_after_the_end_and_the_end_is_told_once(self) -> None:
        ends: list[None] = []
        trace = Trace(b"12345678", wall=lambda: 1.0, limit=100_000, on_end=lambda: ends.append(None))
        trace.log_event(category="a", event="b", data={})
        trace.end()
        trace.log_event(category="a", event="b", data={})
        trace.end()
        self.assertEqual((len(trace), len(ends), trace.is_complete), (1, 1, True))


class FileTests(QlogCase):
    """R6.7: files are the relay's alone, with names that nobody chooses freely."""

    def recorded(self, world: RecordedWorld) -> None:
        world.recordings.request(world.key)
        device = world.client(Role.DEVICE)
        world.run(0.5)
        device.close()
        world.run(5.0)

    def test_its_name_and_mode(self) -> None:
        world = RecordedWorld(self.directory)
        self.recorded(world)
        (path,) = self.files()
        self.assertRegex(path.name, r"^20270115T0800\d\dZ-[0-9a-f]{32}-[0-9a-f]{16,40}\.qlog$")
        self.assertIn(world.token().allocation_id.hex(), path.name)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)

    def test_a_directory_that_cannot_be_written_costs_the_recording_alone(self) -> None:
        self.directory.parent.mkdir()
        self.directory.write_text("a file")
        world = RecordedWorld(self.directory)
        self.recorded(world)
        self.assertEqual(world.recordings.running, 0)
        self.assertEqual(world.relay.counters.session_errors, 0)

    def test_the_end_of_the_relay_waits_for_what_is_being_written(self) -> None:
        world = RecordedWorld(self.directory)
        world.writing = Deferred()
        world.recordings.request(world.key)
        world.client(Role.DEVICE)
        world.run(0.5)
        finished = world.recordings.finish()
        self.assertNoResult(finished)
        fail(OSError("no room")).chainDeferred(world.writing)
        self.successResultOf(finished)
        self.successResultOf(Recordings(Recorder(), None, now=float, wall=float, run=maybeDeferred).finish())

    def test_a_connection_is_found_by_its_name(self) -> None:
        world = RecordedWorld(None)
        device, peer = world.pair()
        endpoint: Endpoint = world.endpoint
        for client in (device, peer):
            end = relay_end(world, client)
            self.assertIs(endpoint.find(end.name), end)
        self.assertIsNone(endpoint.find("00"))


class ServiceTests(TestCase):
    """Issue "logs": the whole relay records, into ``qlog_dir``, which a reload may change."""

    timeout = 2 * PATIENCE

    async def test_a_connection_of_a_running_relay(self) -> None:
        setup = Setup(self, settings={"qlog_dir": "qlogs"})
        service = setup.service()
        device, peer = await setup.pair()
        key = setup.token.device_id, setup.token.allocation_id
        service.qlogs.request(key)
        newcomer = await setup.connect(Role.PEER)
        self.assertEqual(service.qlogs.running, 1)
        await exchange(device, newcomer)
        newcomer.relay.close()
        directory = setup.made.directory / "qlogs"
        await eventually(lambda: directory.exists() and any(each.stat().st_size for each in directory.iterdir()), "the file")
        await eventually(lambda: _loads(next(iter(directory.iterdir()))), "a whole file")
        self.assertFalse(peer.relay.is_closed)

    async def test_what_still_runs_is_written_when_the_relay_stops(self) -> None:
        setup = Setup(self, settings={"qlog_dir": "qlogs"})
        service = setup.service()
        service.qlogs.request((setup.token.device_id, setup.token.allocation_id))
        await setup.connect(Role.DEVICE)
        await service.stopService()
        (path,) = os.scandir(setup.made.directory / "qlogs")
        self.assertTrue(_loads(Path(path.path)))


def _loads(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text())["traces"])
    except ValueError:
        return False
