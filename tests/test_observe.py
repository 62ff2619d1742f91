"""The observe endpoint over real HTTP, what is healthy and ready, and the vital signs of the process."""

from __future__ import annotations

import gc
import http.client
import json
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.harness import World
from tests.real_relay import PATIENCE, Setup, exchange
from tests.watching import ACCEPT_OPENMETRICS, Watched, samples
from zrc_relay.core.counters import Counters
from zrc_relay.core.histogram import LATELY, Histogram, Sizes, Waits, Worst
from zrc_relay.engine import StartError
from zrc_relay.front import Front
from zrc_relay.metrics.exposition import OPENMETRICS, TEXT
from zrc_relay.metrics.vitals import LAG_INTERVAL, Bandwidth, Collections, LoopLag, Vitals


class Answer:
    """What a server said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def document(self) -> Any:
        """Its JSON."""
        return json.loads(self.body)


def ask(port: int, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Answer:
    """Ask a server on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers or {}, body=body)
        return Answer(connection.getresponse())
    finally:
        connection.close()


class HttpCase(TestCase):
    """A relay with its observe endpoint on real sockets."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        self.setup = Setup(self, settings={"drain_timeout": "10s"})
        self.service = self.start()
        self.addCleanup(self.service.stop_draining)

    def start(self) -> Front:
        """The relay."""
        return self.setup.front()

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        await self.setup.ready()
        site = self.service.watch.site
        if site is None:
            self.fail("there is no observe endpoint")
        port = site.port.getHost().port
        answer: Answer = await deferToThread(ask, port, method, path, headers)
        return answer

    async def values(self) -> dict[str, float]:
        return dict(samples(parse_text((await self.ask("/metrics")).body.decode())))


class EndpointTests(HttpCase):
    """R7.1, R7.2, R9.5: /health, /ready and /metrics over HTTP."""

    async def test_health_and_readiness_of_a_relay_that_serves(self) -> None:
        health = await self.ask("/health")
        self.assertEqual((health.status, health.headers["content-type"]), (200, "application/json"))
        self.assertEqual(health.document, {"status": "ok", "reasons": [], "warnings": []})
        ready = await self.ask("/ready")
        self.assertEqual((ready.status, ready.document), (200, {"ready": True, "reasons": []}))
        self.assertEqual(ready.headers["cache-control"], "no-store")

    async def test_a_relay_that_drains_is_healthy_and_not_ready(self) -> None:
        await self.setup.pair()
        drained = self.service.drain()
        ready = await self.ask("/ready")
        self.assertEqual((ready.status, ready.document), (503, {"ready": False, "reasons": ["the relay drains"]}))
        self.assertEqual((await self.ask("/health")).status, 200)
        values = await self.values()
        self.assertEqual((values["zrc_relay_ready"], values["zrc_relay_draining"]), (0, 1))
        self.service.stop_draining()
        await drained

    async def test_a_refused_reload_is_counted_and_a_warning_until_one_is_done(self) -> None:
        keys = self.setup.made.directory / "devices.toml"
        good = keys.read_text(encoding="utf-8")
        keys.write_text("no TOML", encoding="utf-8")
        await self.service.reload()
        health = await self.ask("/health")
        self.assertEqual((health.status, len(health.document["warnings"])), (200, 1))
        self.assertIn("the last reload was refused", health.document["warnings"][0])
        keys.write_text(good, encoding="utf-8")
        await self.service.reload()
        self.assertEqual((await self.ask("/health")).document["warnings"], [])
        values = await self.values()
        outcomes = [values[f'zrc_relay_reloads_total{{outcome="{outcome}"}}'] for outcome in ("done", "refused")]
        self.assertEqual(outcomes, [1, 1])

    async def test_metrics_of_real_traffic_in_both_formats(self) -> None:
        device, peer = await self.setup.pair()
        await exchange(device, peer)
        answer = await self.ask("/metrics")
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, TEXT))
        values = dict(samples(parse_text(answer.body.decode())))
        self.assertEqual(values['zrc_relay_active_allocations{state="active"}'], 1)
        self.assertEqual(values['zrc_relay_connections{state="established"}'], 2)
        self.assertGreaterEqual(values["zrc_relay_forwarded_packets_total"], 2)
        self.assertGreater(values["zrc_relay_udp_reads_total"], 0)
        received = values["zrc_relay_udp_received_packets_total"]
        self.assertEqual(values["zrc_relay_udp_batch_packets_sum"], received)
        self.assertGreater(values["zrc_relay_udp_received_bytes_total"], 2 * 1200)
        self.assertGreater(values["zrc_relay_udp_send_packets_sum"], 4)
        self.assertGreaterEqual(values["zrc_relay_udp_send_packets_sum"], values["zrc_relay_udp_send_packets_count"])
        self.assertGreater(values["zrc_relay_udp_sent_bytes_total"], 1200)
        self.assertIn("process_resident_memory_bytes", values)
        other = await self.ask("/metrics", accept=ACCEPT_OPENMETRICS)
        self.assertEqual((other.status, other.headers["content-type"]), (200, OPENMETRICS))
        self.assertEqual(other.headers["vary"], "accept")
        again = dict(samples(parse_openmetrics(other.body.decode())))
        self.assertEqual(again['zrc_relay_active_allocations{state="active"}'], 1)

    async def test_the_event_loop_is_measured(self) -> None:
        async def is_measured() -> bool:
            return (await self.values())["zrc_relay_event_loop_lag_seconds_count"] > 2

        while not await is_measured():
            pass
        self.assertLess((await self.values())["zrc_relay_event_loop_lag_last_seconds"], PATIENCE)

    async def test_head_has_the_headers_and_no_body(self) -> None:
        for path in ("/health", "/ready", "/metrics"):
            answer = await self.ask(path, "HEAD")
            self.assertEqual((answer.status, answer.body), (200, b""), path)
            self.assertGreater(int(answer.headers["content-length"]), 10)
        head, whole = await self.ask("/health", "HEAD"), await self.ask("/health")
        self.assertEqual(int(head.headers["content-length"]), len(whole.body))

    async def test_what_is_not_there_is_404_and_other_methods_are_405(self) -> None:
        for path in ("/", "/metrics/", "/healthz", "/metrics/x", "/health//", "/admin/stats", "/health%2f", "/%00"):
            self.assertEqual((await self.ask(path)).status, 404, path)
        for path in ("/%ff", "/health/%c3%28"):
            answer = await self.ask(path)
            self.assertEqual((answer.status, answer.document["detail"]), (400, "the path is not UTF-8"), path)
        self.assertEqual((await self.ask("/health?x=%ff&y=1", host="[nonsense]:99999")).status, 200)
        missing = await self.ask("/nothing")
        self.assertEqual((missing.status, missing.headers["content-type"]), (404, "application/problem+json"))
        self.assertEqual((missing.document["status"], missing.document["title"]), (404, "Not Found"))
        for path in ("/health", "/ready", "/metrics"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                answer = await self.ask(path, method)
                self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD"), (method, path))
                self.assertEqual(answer.document["status"], 405)

    async def test_an_error_of_ours_is_500_logged_and_tells_nothing(self) -> None:
        def fail(_: str) -> tuple[bytes, str]:
            msg = "a secret"
            raise ZeroDivisionError(msg)

        self.patch(self.service.watch.exposition, "render", fail)
        answer = await self.ask("/metrics")
        self.assertEqual((answer.status, answer.headers["content-type"]), (500, "application/problem+json"))
        self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((await self.ask("/health")).status, 200)

    async def test_two_scrapers_and_a_connection_that_is_kept(self) -> None:
        site = self.service.watch.site
        port = site.port.getHost().port if site is not None else 0

        def several() -> list[int]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            found = []
            for path in ("/metrics", "/health", "/nothing", "/metrics"):
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                found.append(response.status)
            connection.close()
            return found

        first, second = deferToThread(several), deferToThread(several)
        self.assertEqual((await first, await second), ([200, 200, 404, 200], [200, 200, 404, 200]))

    async def test_nothing_answers_when_the_relay_has_stopped(self) -> None:
        site = self.service.watch.site
        port = site.port.getHost().port if site is not None else 0
        await self.service.stopService()
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


class SocketTests(HttpCase):
    """R7.1: a process without a socket says so. That of a worker is never without: its parent holds them."""

    def start(self) -> Front:
        self.alone = self.setup.service()
        return self.alone

    async def test_a_relay_without_a_socket_is_not_healthy(self) -> None:
        await self.alone.quic.stopService()
        health = await self.ask("/health")
        self.assertEqual(health.status, 503)
        self.assertEqual(health.document["status"], "failing")
        self.assertEqual(health.document["reasons"], ["no UDP socket is open"])
        ready = await self.ask("/ready")
        self.assertEqual((ready.status, ready.document["reasons"]), (503, ["no UDP socket is open"]))


class SettingTests(TestCase):
    """R8: observe_endpoint."""

    timeout = 2 * PATIENCE

    async def test_off_serves_it_nowhere_and_a_relay_runs_without(self) -> None:
        setup = Setup(self, settings={"observe_endpoint": "off"})
        service = setup.front()
        self.assertIsNone(service.watch.site)
        await setup.ready()
        self.assertTrue(service.ready)

    async def test_a_unix_socket(self) -> None:
        directory = tempfile.mkdtemp(prefix="observe-")  # sockets have short paths, and trial's directories may be long
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        path = Path(directory, "o")
        setup = Setup(self, settings={"observe_endpoint": f"unix:{path}:mode=600"})
        setup.front()
        await setup.ready()

        def get() -> bytes:
            with socket.socket(socket.AF_UNIX) as connected:
                connected.settimeout(PATIENCE)
                connected.connect(str(path))
                connected.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: connected.recv(65536), b""))

        self.assertIn(b'{"ready": true', await deferToThread(get))

    async def test_a_port_that_is_taken_keeps_the_relay_from_starting_with_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            setup = Setup(self, settings={"observe_endpoint": endpoint})
            service = setup.new_front(setup.load)
            with self.assertRaises(StartError) as caught:
                service.privilegedStartService()
            self.assertEqual(str(caught.exception), f"observe: cannot listen on {endpoint}: Address already in use")
            await service.stopService()


class HealthTests(SynchronousTestCase):
    """R7.1: what is a reason, what only a warning, and what is not ready."""

    def setUp(self) -> None:
        self.world = World()
        self.watched = Watched(self.world)

    def report(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        report = self.watched.watch.checks.report()
        return report.failures, report.warnings, report.unready

    def test_all_is_well(self) -> None:
        self.assertEqual(self.report(), ((), (), ()))
        report = self.watched.watch.checks.report()
        self.assertTrue(report.is_healthy and report.is_ready)

    def test_a_background_task_that_fails_is_a_reason_until_it_works_again(self) -> None:
        self.watched.task.is_failing = True
        self.assertEqual(self.report()[0], ("the background task chores fails",))
        self.assertFalse(self.watched.watch.checks.report().is_ready)
        self.watched.task.is_failing = False
        self.assertEqual(self.report()[0], ())

    def test_no_socket_is_a_reason_only_when_there_should_be_one(self) -> None:
        self.watched.ports.clear()
        self.assertEqual(self.report()[0], ("no UDP socket is open",))
        self.watched.is_ready = False
        self.assertEqual(self.report(), ((), (), ("the relay has not started",)))

    def test_the_certificate_s_end_is_announced_and_then_a_reason(self) -> None:
        end = self.world.credentials.configuration.certificate.not_valid_after_utc.timestamp()
        for left, failures, warnings in (
            (8 * 86400, (), ()), (1.5 * 86400, (), ("the certificate expires in 1.5 days",)),
            (0, ("the certificate has expired",), ()), (-86400, ("the certificate has expired",), ()),
        ):
            self.patch(self.world, "wall", lambda: end - left)  # noqa: B023 - used here
            self.watched = Watched(self.world)
            self.assertEqual(self.report()[:2], (failures, warnings), left)

    def test_a_log_that_cannot_be_written_and_a_refused_reload_are_warnings(self) -> None:
        self.watched.log.is_failing = self.watched.reloads.is_failing = True
        self.assertEqual(
            self.report(),
            ((), ("the last reload was refused: what the files say is not in force", "cannot write to /var/log/x"), ()),
        )

    def test_state_that_cannot_be_kept_is_a_warning_until_it_can(self) -> None:
        self.watched.state.problem = "the lists of networks cannot be kept: no space"
        self.assertEqual(self.report(), ((), ("the lists of networks cannot be kept: no space",), ()))
        self.watched.state.problem = None
        self.assertEqual(self.report(), ((), (), ()))

    def test_an_event_loop_that_was_late_is_a_warning_for_a_while(self) -> None:
        self.watched.watch.vitals.loop.waits.note(0.32, self.world.now())
        self.assertEqual(self.report(), ((), ("the event loop was 0.32 s late in the last half minute",), ()))
        self.world.run(31)
        self.assertEqual(self.report()[1], ())

    def test_draining(self) -> None:
        self.world.relay.drain(0)
        self.watched.is_ready = False
        self.assertEqual(self.report(), ((), (), ("the relay drains",)))


class VitalsTests(SynchronousTestCase):
    """R7.3-5: event loop lag, garbage collection pauses, bandwidth; each measured and not made up."""

    def setUp(self) -> None:
        self.clock = Clock()

    def test_a_loop_that_is_on_time_has_no_lag_and_a_busy_one_has(self) -> None:
        vitals = Vitals(self.clock, Counters(), self.clock.seconds)
        vitals.startService()
        self.addCleanup(vitals.stopService)
        for _ in range(10):
            self.clock.advance(LAG_INTERVAL)
        self.assertAlmostEqual(vitals.loop.waits.worst.at(self.clock.seconds()), 0.0)
        self.assertEqual(vitals.loop.waits.histogram.total, 9)
        self.clock.advance(LAG_INTERVAL + 0.25)  # something kept it for a quarter of a second
        self.assertAlmostEqual(vitals.loop.last, 0.25)
        self.assertAlmostEqual(vitals.loop.waits.worst.at(self.clock.seconds()), 0.25)
        self.clock.advance(LAG_INTERVAL)
        self.assertAlmostEqual(vitals.loop.last, 0.0)
        self.assertAlmostEqual(vitals.loop.waits.worst.at(self.clock.seconds()), 0.25)

    def test_a_pause_of_the_service_is_no_lag(self) -> None:
        vitals = Vitals(self.clock, Counters(), self.clock.seconds)
        vitals.startService()
        self.clock.advance(LAG_INTERVAL)
        vitals.stopService()
        self.clock.advance(100)
        vitals.startService()
        self.addCleanup(vitals.stopService)
        self.clock.advance(LAG_INTERVAL)
        self.clock.advance(LAG_INTERVAL)
        self.assertAlmostEqual(vitals.loop.waits.worst.at(self.clock.seconds()), 0.0)

    def test_the_first_tick_says_nothing(self) -> None:
        loop = LoopLag(self.clock.seconds)
        self.clock.advance(50)
        loop.tick()
        self.assertEqual(loop.waits.histogram.total, 0)

    def test_full_collections_are_timed_and_others_are_not(self) -> None:
        times = iter((10.0, 10.5))
        collections = Collections(lambda: 0.0)
        collections.start()
        collections.start()
        self.addCleanup(collections.stop)
        gc.collect(0)
        gc.collect(1)
        self.assertEqual(collections.waits.histogram.total, 0)
        self.patch(collections, "_now", lambda: next(times))
        gc.disable()
        self.addCleanup(gc.enable)
        gc.collect(2)
        self.assertEqual(collections.waits.histogram.total, 1)
        self.assertEqual(collections.waits.histogram.sum, 0.5)
        collections.stop()
        collections.stop()
        gc.collect(2)
        self.assertEqual(collections.waits.histogram.total, 1)

    def test_bandwidth_when_time_stands_still_is_what_it_was(self) -> None:
        counters = Counters()
        bandwidth = Bandwidth(counters, self.clock.seconds)
        counters.bytes_forwarded = 500
        self.clock.advance(0.5)
        bandwidth.tick()
        self.assertEqual(bandwidth.usage, 1000)
        counters.bytes_forwarded = 900
        bandwidth.tick()
        self.assertEqual(bandwidth.usage, 1000)
        self.clock.advance(1)
        bandwidth.tick()
        self.assertEqual(bandwidth.usage, 400)


class HistogramTests(SynchronousTestCase):
    """R7.3: distributions, and the worst of late."""

    def test_a_value_counts_up_to_its_bound(self) -> None:
        histogram = Histogram((1.0, 2.0))
        for value in (0.0, 1.0, 1.5, 2.0, 2.1, 99.0):
            histogram.observe(value)
        self.assertEqual((histogram.counts, histogram.sum, histogram.total), ([2, 2, 2], 105.6, 6))

    def test_sizes_fall_into_the_same_buckets_as_a_search_would_find(self) -> None:
        sizes, searched = Sizes(64), Histogram(Sizes(64).bounds)
        self.assertEqual(sizes.bounds, (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0))
        for size in range(1, 129):
            sizes.observe(size)
            searched.observe(size)
        self.assertEqual((sizes.counts, sizes.sum), (searched.counts, searched.sum))

    def test_the_worst_is_remembered_for_a_while_and_then_forgotten(self) -> None:
        worst = Worst(0.0)
        self.assertEqual(worst.at(0.0), 0.0)
        worst.note(3.0, 1.0)
        worst.note(1.0, 2.0)
        self.assertEqual(worst.at(1.0 + LATELY), 3.0)
        worst.note(2.0, 1.0 + LATELY)
        self.assertEqual(worst.at(1.0 + LATELY), 3.0)
        self.assertEqual(worst.at(1.0 + 2 * LATELY), 2.0)
        self.assertEqual(worst.at(1.0 + 4 * LATELY), 0.0)
        self.assertEqual(worst.at(1e9), 0.0)

    def test_waits_are_both(self) -> None:
        waits = Waits((1.0,), 0.0)
        waits.note(0.5, 1.0)
        waits.note(4.0, 1.0)
        self.assertEqual((waits.histogram.counts, waits.worst.at(2.0)), ([1, 1], 4.0))
