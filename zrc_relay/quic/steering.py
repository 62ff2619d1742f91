"""One UDP port, several sockets: the kernel gives each packet to the worker that it is for (SO_REUSEPORT, socket(7)).

Theory of operation
-------------------
Sockets that share a port with SO_REUSEPORT are a group, in the order in which they were bound. A program in classic BPF that is
attached to the group is run on each UDP payload and says the number of the socket that gets it. The first byte tells what is what
(RFC 9443):

* a long header: by its byte 6, the first of the Destination Connection ID, which is the client's choice at first and then ours;
* a short header: by its byte 1, the first of a connection id of ours;
* channel data: by its byte 1, the first of the channel id, which is ours;
* STUN: by a byte of the transaction id, random, so that every worker has its share of them;
* anything else, and what is too short, goes to the first one, which drops it like any other rubbish.

The byte is taken modulo the number of sockets, so it says the same to the kernel as to ``core.routing``.

The group belongs to whoever keeps its sockets open, not to who reads them: while all of them are kept, a socket's number does not
change, and what arrives while its reader is away waits in its buffer. IPv4 and IPv6 sockets are groups of their own, as are those
of different addresses.

The first socket is bound **without** SO_REUSEPORT, and gets it then: so a port that somebody else has is an error, also when they
would share it, and no other relay can slip in between, or be slipped under.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import Final

from zrc_relay.quic.udp import prepare

SO_ATTACH_REUSEPORT_CBPF: Final = 51
"""asm-generic/socket.h; the socket module has no name for it."""

# linux/bpf_common.h
_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS; a load behind the end of the packet ends the program with 0
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_MODULO: Final = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_RETURN_RESULT: Final = 0x16  # BPF_RET | BPF_A
_INSTRUCTION: Final = struct.Struct("=HBBI")
_PROGRAM: Final = struct.Struct("@HP")  # struct sock_fprog: how many instructions, and where


class SteeringRefused(Exception):
    """The kernel does not take the program, so one worker is all that there can be; the text is the system's."""


def program(count: int) -> bytes:
    """The program that gives each packet to one of ``count`` sockets, as the kernel wants it."""
    instructions = (
        (_LOAD_BYTE, 0, 0, 0),
        (_JUMP_IF_AT_LEAST, 6, 0, 0x80),  # to "long header"
        (_JUMP_IF_AT_LEAST, 7, 0, 0x40),  # to "ours"
        (_JUMP_IF_EQUAL, 6, 0, 5),  # to "ours"
        (_JUMP_IF_AT_LEAST, 0, 1, 4),
        (_RETURN, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, 8),  # STUN: behind type, length and cookie comes the transaction id (RFC 8489 §5)
        (_JUMP, 0, 0, 3),
        (_LOAD_BYTE, 0, 0, 6),  # long header: behind first byte, version and length of the id
        (_JUMP, 0, 0, 1),
        (_LOAD_BYTE, 0, 0, 1),  # ours: behind the first byte
        (_MODULO, 0, 0, count),
        (_RETURN_RESULT, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def open_group(host: str, port: int, count: int) -> list[socket.socket]:
    """``count`` sockets on one port of the address ``host``, in the order of the workers that they are for.

    They are ready for ``UdpPort`` and closed on exec. Port 0 takes any free one. ``OSError`` when the address or the port cannot
    be had, ``SteeringRefused`` when the kernel does not steer; then nothing is left open.
    """
    first = open_single(host, port)
    group = [first]
    if count == 1:
        return group
    try:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(1, count):
            made = _make(host)
            group.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(first.getsockname())
        _attach(first, program(count))
    except BaseException:
        for made in group:
            made.close()
        raise
    return group


def open_single(host: str, port: int) -> socket.socket:
    """One socket that shares its port with nobody, likewise."""
    made = _make(host)
    try:
        made.bind(_resolve(host, port)[1])
    except BaseException:
        made.close()
        raise
    return made


def _make(host: str) -> socket.socket:
    made = socket.socket(_resolve(host, 0)[0], socket.SOCK_DGRAM)
    try:
        made.setblocking(False)  # noqa: FBT003 - the socket module's signature
        prepare(made, host)
    except BaseException:
        made.close()
        raise
    return made


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    return family, address


def _attach(member: socket.socket, instructions: bytes) -> None:
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    count = len(instructions) // _INSTRUCTION.size
    try:
        member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, _PROGRAM.pack(count, ctypes.addressof(buffer)))
    except OSError as error:
        raise SteeringRefused(os.strerror(error.errno) if error.errno else str(error)) from error
