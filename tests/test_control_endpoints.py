"""Endpoints of the configuration, and listening on them: TCP, TLS, UNIX sockets with owner and mode, bounded sites."""

from __future__ import annotations

import os
import pwd
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource

from tests.real_relay import PATIENCE, eventually, reactor
from tests.test_config_values import KindTestCase
from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.config_endpoints import ListenOn, SslEndpoint, StreamEndpoint, TcpEndpoint, UnixEndpoint, parse_endpoint
from zrc_relay.config_values import OrNone
from zrc_relay.control import site as sites
from zrc_relay.control.endpoints import ListenError, SiteService

BASE = Path("/etc/zrc-relay")


class NotationTests(KindTestCase):
    """R8: an endpoint is understood, or refused with what is wrong with it, when the configuration is read."""

    def test_tcp(self) -> None:
        loopback = TcpEndpoint(9433, "127.0.0.1")
        self.assert_parses(ListenOn(), loopback, "tcp:9433:interface=127.0.0.1", " tcp:port=9433:interface=127.0.0.1 ")
        self.assert_parses(ListenOn(), TcpEndpoint(0), "tcp:0")
        for text in ("tcp:1:interface=[::1]", "tcp:1:interface=\\:\\:1", "tcp:1:interface=0\\:\\:1"):
            self.assert_parses(ListenOn(), TcpEndpoint(1, "::1"), text)

    def test_ssl_reads_the_certificate_from_the_key_s_file_unless_told(self) -> None:
        key, certificate = BASE / "k.pem", Path("/c.pem")
        self.assert_parses(ListenOn(), SslEndpoint(1, key, key), "ssl:1:privateKey=k.pem")
        self.assert_parses(
            ListenOn(), SslEndpoint(1, key, certificate, "::"), "ssl:1:privateKey=k.pem:certKey=/c.pem:interface=[::]"
        )

    def test_unix(self) -> None:
        self.assert_parses(ListenOn(), UnixEndpoint(Path("/run/a.sock")), "unix:/run/a.sock", "unix:address=/run/a.sock:mode=600")
        self.assert_parses(
            ListenOn(), UnixEndpoint(BASE / "a:b.sock", 0o660, "relay", "4"),
            "unix:a\\:b.sock:mode=0660:owner=relay:group=4",
        )

    def test_slips_are_noticed(self) -> None:
        for wrong, texts in {
            "not understood": ("", "9433", "/run/x.sock", "tcp:1\\"),
            'begins with "tpc", which is none of tcp, ssl, unix': ("tpc:9433",),
            "where the port belongs": ("tcp:", "tcp:127.0.0.1:9433", "tcp:http", "tcp:65536", "tcp:٣", "ssl:-1:privateKey=k"),
            "where a name=value belongs": ("tcp:1:127.0.0.1", "tcp:1:interface=[::1", "tcp:1:interface=::1"),
            'unknown argument "interfaces"; tcp: takes interface, port': ("tcp:1:interfaces=127.0.0.1",),
            "has port twice": ("tcp:1:port=2",),
            "has no port": ("tcp:interface=127.0.0.1",),
            "has no address": ("unix:mode=600",),
            "has no privateKey=": ("ssl:1:certKey=c.pem",),
            "where an IP address of this host belongs": (
                "tcp:1:interface=localhost", "tcp:1:interface=[::1x]", "tcp:1:interface=", "tcp:1:interface=[]",
            ),
            "where a mode such as 600 belongs": ("unix:/x:mode=8", "unix:/x:mode=rw", "unix:/x:mode=7777"),
            "has an empty owner": ("unix:/x:owner=",),
            "has a path that is empty": ("unix:", "ssl:1:privateKey="),
            "has a zero byte": ("unix:/x\0y",),
            "a path of 108 bytes; a socket's may have 107": ("unix:/" + "x" * 107,),
        }.items():
            self.assert_refuses(ListenOn(), wrong, *texts)
        self.assert_refuses(ListenOn(), "wrong type", 9433)

    def test_plain_tcp_that_other_hosts_reach_is_refused_where_it_must_be_private(self) -> None:
        private = ListenOn(is_private=True)
        for text in ("tcp:1", "tcp:1:interface=0.0.0.0", "tcp:1:interface=10.1.1.1", "tcp:1:interface=[::]"):
            self.assert_refuses(private, "plain TCP that other hosts can reach", text)
        for text in ("tcp:1:interface=127.0.0.9", "tcp:1:interface=[::1]", "unix:/x", "ssl:1:privateKey=k"):
            private.parse(text, BASE)

    def test_off(self) -> None:
        self.assert_parses(OrNone(ListenOn()), None, "off")

    @given(st.one_of(
        st.builds(TcpEndpoint, st.integers(0, 65535), st.sampled_from(("", "127.0.0.1", "::1", "::"))),
        st.builds(
            UnixEndpoint, st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60).map(BASE.joinpath),
            st.integers(0, 0o777), st.sampled_from((None, "relay", "0")), st.sampled_from((None, "a:b")),
        ),
        st.builds(SslEndpoint, st.just(1), st.just(BASE / "a]:[\\b"), st.just(BASE / "c"), st.sampled_from(("", "::1"))),
    ))
    def test_writing_and_reading_gives_the_same(self, endpoint: StreamEndpoint) -> None:
        self.assertEqual(parse_endpoint(str(endpoint), Path("/elsewhere")), endpoint)


class Hello(Resource):
    """Says hello, and how long the body was."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def render_GET(self, request: Any) -> bytes:  # noqa: N802 - Twisted's name
        return b"hello " + str(len(request.content.read())).encode()

    render_POST = render_GET  # noqa: N815 - Twisted's name


class ListeningCase(TestCase):
    """Starts sites, and talks to them from threads."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.umask = os.umask(0)
        os.umask(self.umask)

    def listen(self, endpoint: StreamEndpoint) -> SiteService:
        service = SiteService("hello", endpoint, Hello(), reactor)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    @staticmethod
    def elsewhere(function: Callable[[], Any]) -> Deferred[Any]:
        return deferToThread(function)

    @staticmethod
    def ask(connected: socket.socket, request: bytes = b"GET / HTTP/1.0\r\n\r\n") -> bytes:
        """All that the site says to ``request``."""
        with connected:
            connected.settimeout(PATIENCE)
            connected.sendall(request)
            answer = b""
            while data := connected.recv(65536):
                answer += data
            return answer


class TcpTests(ListeningCase):
    """R7, R10.1: TCP and TLS endpoints serve; what cannot be had is one line."""

    def connect(self, service: SiteService, host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, service.port.getHost().port), timeout=PATIENCE)

    async def test_both_families(self) -> None:
        for host in ("127.0.0.1", "::1"):
            service = self.listen(TcpEndpoint(0, host))
            answer = await self.elsewhere(lambda: self.ask(self.connect(service, host)))  # noqa: B023 - awaited here
            self.assertIn(b"hello 0", answer)
            self.assertIn(b"Server: zrc-relay\r\n", answer)
            self.assertNotIn(b"Twisted", answer)

    async def test_a_port_that_is_taken_is_one_line(self) -> None:
        port = self.listen(TcpEndpoint(0, "127.0.0.1")).port.getHost().port
        with self.assertRaises(ListenError) as caught:
            self.listen(TcpEndpoint(port, "127.0.0.1"))
        self.assertEqual(
            str(caught.exception), f"hello: cannot listen on tcp:{port}:interface=127.0.0.1: Address already in use"
        )

    async def test_nothing_listens_after_the_end_and_nothing_stays_open(self) -> None:
        service = self.listen(TcpEndpoint(0, "127.0.0.1"))
        connected = await self.elsewhere(lambda: self.connect(service))
        self.addCleanup(connected.close)
        await eventually(lambda: service.site.connections == 1, "the connection")
        address = connected.getpeername()
        await service.stopService()
        self.assertRaises(ConnectionRefusedError, socket.create_connection, address, timeout=PATIENCE)
        await eventually(lambda: service.site.connections == 0, "the end of the connection")

    async def test_one_connection_too_many_is_closed_at_once(self) -> None:
        service = SiteService("hello", TcpEndpoint(0, "127.0.0.1"), Hello(), reactor)
        service.site = sites.BoundedSite(Hello(), reactor, max_connections=2)
        service.startService()
        self.addCleanup(service.stopService)
        held = [await self.elsewhere(lambda: self.connect(service)) for _ in range(2)]
        for one in held:
            self.addCleanup(one.close)
        await eventually(lambda: service.site.connections == 2, "two connections")
        refused = await self.elsewhere(lambda: self.connect(service))
        self.addCleanup(refused.close)
        self.assertEqual(await self.elsewhere(lambda: refused.recv(1)), b"")
        held[0].close()
        await eventually(lambda: service.site.connections == 1, "one of them gone")
        self.assertIn(b"hello", await self.elsewhere(lambda: self.ask(self.connect(service))))

    async def test_a_body_that_is_too_long_is_413_however_it_comes(self) -> None:
        service = self.listen(TcpEndpoint(0, "127.0.0.1"))
        size = sites.MAX_BODY + 1
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        for request in (
            head + b"Content-Length: %d\r\n\r\n" % size + bytes(size),
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n",
            head + b"Content-Length: %d\r\n\r\n" % (sites.MAX_DRAINED + 1),
        ):
            answer = await self.elsewhere(lambda: self.ask(self.connect(service), request))  # noqa: B023 - awaited here
            self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:100])
            self.assertTrue(answer.endswith(b'"status":413}'), answer)
        fits = head + b"Content-Length: %d\r\n\r\n" % (size - 1) + bytes(size - 1)
        self.assertIn(b"hello %d" % (size - 1), await self.elsewhere(lambda: self.ask(self.connect(service), fits)))

    def certificate(self) -> bytes:
        """Write a new certificate and its key; the certificate in DER."""
        certificate, key = make_self_signed(["localhost"])
        (self.directory / "key.pem").write_bytes(key)
        (self.directory / "cert.pem").write_bytes(certificate)
        return ssl.PEM_cert_to_DER_cert(certificate.decode())

    def tls(self) -> SslEndpoint:
        return SslEndpoint(0, self.directory / "key.pem", self.directory / "cert.pem", "127.0.0.1")

    async def test_tls_serves_the_certificate_and_a_new_one_after_a_reload(self) -> None:
        first = self.certificate()
        service = self.listen(self.tls())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def ask() -> tuple[bytes | None, bytes]:
            wrapped = context.wrap_socket(self.connect(service))
            return wrapped.getpeercert(binary_form=True), self.ask(wrapped)

        shown, answer = await self.elsewhere(ask)
        self.assertEqual(shown, first)
        self.assertIn(b"hello", answer)
        second = self.certificate()
        prepared = service.prepare_reload()
        self.assertEqual((await self.elsewhere(ask))[0], first)
        service.reload(prepared)
        self.assertEqual((await self.elsewhere(ask))[0], second)
        (self.directory / "key.pem").write_bytes(make_self_signed(["localhost"])[1])
        self.assertRaises(ListenError, service.prepare_reload)

    async def test_tls_below_1_2_is_refused(self) -> None:
        self.certificate()
        service = self.listen(self.tls())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises(ssl.SSLError):
            await self.elsewhere(lambda: context.wrap_socket(self.connect(service)))

    def test_files_that_cannot_be_used_are_one_line_each(self) -> None:
        self.certificate()
        key = self.directory / "key.pem"
        for name, content, wrong in (
            ("cert.pem", b"no PEM", "cert.pem holds no PEM certificate"),
            ("cert.pem", make_self_signed(["other"])[0], "are no key with its certificate"),
            ("key.pem", b"", "are no key with its certificate"),
        ):
            self.certificate()
            (self.directory / name).write_bytes(content)
            with self.assertRaises(ListenError) as caught:
                self.listen(self.tls())
            self.assertIn(wrong, str(caught.exception))
            self.assertEqual(len(str(caught.exception).splitlines()), 1)
        key.unlink()
        with self.assertRaises(ListenError) as caught:
            self.listen(self.tls())
        self.assertEqual(str(caught.exception), f"hello: cannot read {key}: No such file or directory")


class UnixTests(ListeningCase):
    """R10.7: a UNIX socket with its owner and mode, that takes nobody's place and leaves nothing behind."""

    def setUp(self) -> None:
        super().setUp()
        # sockets have short paths; trial's directories may be long
        self.home = Path.cwd()
        os.chdir(self.directory)
        self.addCleanup(os.chdir, self.home)
        self.path = Path("a.sock")

    def connect(self) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect("a.sock")
        return connected

    async def test_it_serves_with_its_mode_and_is_gone_at_the_end(self) -> None:
        for mode in (0o600, 0o660, 0o777):
            service = self.listen(UnixEndpoint(self.path, mode))
            status = self.path.stat()
            self.assertTrue(stat.S_ISSOCK(status.st_mode))
            self.assertEqual(stat.S_IMODE(status.st_mode), mode)
            self.assertIn(b"hello", await self.elsewhere(lambda: self.ask(self.connect())))
            await service.stopService()
            self.assertFalse(self.path.exists())

    async def test_nobody_else_may_connect_before_owner_and_mode_are_set(self) -> None:
        seen: list[int] = []
        chown, listen = os.chown, socket.socket.listen

        def record_chown(*arguments: Any, **keywords: Any) -> None:
            seen.append(stat.S_IMODE(self.path.stat().st_mode))
            chown(*arguments, **keywords)

        class Listening(socket.socket):
            def listen(self, *arguments: Any) -> None:
                seen.append(stat.S_IMODE(Path("a.sock").stat().st_mode))
                listen(self, *arguments)

        self.patch(os, "chown", record_chown)
        self.patch(socket, "socket", Listening)
        self.listen(UnixEndpoint(self.path, 0o666, str(os.getuid()), str(os.getgid())))
        self.assertEqual(seen, [0o600, 0o600])
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o666)

    async def test_owner_and_group(self) -> None:
        name = pwd.getpwuid(os.getuid()).pw_name
        self.listen(UnixEndpoint(self.path, 0o600, name, str(os.getgid())))
        status = self.path.stat()
        self.assertEqual((status.st_uid, status.st_gid), (os.getuid(), os.getgid()))

    async def test_an_unknown_owner_or_group_is_one_line_and_leaves_nothing(self) -> None:
        for endpoint, wrong in (
            (UnixEndpoint(self.path, owner="no-such-user"), "hello: there is no user no-such-user"),
            (UnixEndpoint(self.path, group="no-such-group"), "hello: there is no group no-such-group"),
        ):
            with self.assertRaises(ListenError) as caught:
                self.listen(endpoint)
            self.assertEqual(str(caught.exception), wrong)
            self.assertFalse(self.path.exists())

    async def test_an_owner_that_may_not_be_set_is_one_line_and_leaves_nothing(self) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "chown", refuse)
        with self.assertRaises(ListenError) as caught:
            self.listen(UnixEndpoint(self.path, owner="0"))
        self.assertEqual(str(caught.exception), "hello: cannot set owner and mode of a.sock: Operation not permitted")
        await eventually(lambda: not self.path.exists(), "the end of the socket")

    async def test_a_socket_that_was_left_behind_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind("a.sock")
        self.listen(UnixEndpoint(self.path))
        self.assertIn(b"hello", await self.elsewhere(lambda: self.ask(self.connect())))

    async def test_a_socket_that_somebody_listens_on_stays_his(self) -> None:
        self.listen(UnixEndpoint(self.path))
        with self.assertRaises(ListenError) as caught:
            self.listen(UnixEndpoint(self.path))
        self.assertIn("somebody listens on a.sock already", str(caught.exception))
        self.assertIn(b"hello", await self.elsewhere(lambda: self.ask(self.connect())))

    async def test_a_file_that_is_no_socket_is_not_touched(self) -> None:
        self.path.write_text("precious")
        with self.assertRaises(ListenError) as caught:
            self.listen(UnixEndpoint(self.path))
        self.assertEqual(str(caught.exception), "hello: a.sock is there already, and no socket")
        self.assertEqual(self.path.read_text(), "precious")

    async def test_a_directory_that_is_not_there_is_one_line(self) -> None:
        with self.assertRaises(ListenError) as caught:
            self.listen(UnixEndpoint(Path("none/a.sock")))
        self.assertEqual(str(caught.exception), "hello: cannot listen on unix:none/a.sock:mode=600: No such file or directory")

    async def test_what_took_its_place_is_not_removed_at_the_end(self) -> None:
        service = self.listen(UnixEndpoint(self.path))
        self.path.unlink()
        self.path.write_text("somebody else's")
        await service.stopService()
        self.assertEqual(self.path.read_text(), "somebody else's")

    async def test_a_socket_that_was_removed_is_no_error_at_the_end(self) -> None:
        service = self.listen(UnixEndpoint(self.path))
        self.path.unlink()
        await service.stopService()
        self.assertEqual(self.flushLoggedErrors(), [])


class RequestNameTests(SynchronousTestCase):
    """R6.9: the bounds of a site are what their names say."""

    def test_the_answer_to_too_much_is_complete(self) -> None:
        head, _, body = sites.TOO_LARGE.partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % len(body), head)
