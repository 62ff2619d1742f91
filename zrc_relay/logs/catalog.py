"""Every line that the relay logs: its name, what it means, its level and its fields (R5.7).

Theory of operation
-------------------
A call such as ``_log.info("relay {relay_id} is ready", event="relay.ready", relay_id=...)`` names its event. The sentence may
change at any time, the name and the fields are what programs rely on. This table is both the documentation (``reference``) and
the filter: **a field that is not listed with its event is not written**, so that payload, keys and tokens cannot slip into a log
because somebody passed one field too many (R6.7). Tests compare the table with every call in the source, and with what a running
relay logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zrc_relay.logs.levels import LogLevel


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One kind of line. ``fields`` are all that it can have, in the order in which they are written."""

    meaning: str
    fields: tuple[str, ...] = ()
    level: LogLevel = LogLevel.INFO


_ALLOCATION: Final = ("device", "allocation")
_SOURCE: Final = ("source", "port", "cause", "validated")
_REFUSED: Final = ("code", "reason", "connection", "device", "allocation", "remote", "validated")
_WARN, _ERROR, _BUG, _DEBUG = LogLevel.WARN, LogLevel.ERROR, LogLevel.CRITICAL, LogLevel.DEBUG

EVENTS: Final[Mapping[str, LogEvent]] = MappingProxyType({
    "relay.ready": LogEvent("The relay serves.", ("relay_id", "form")),
    "relay.draining": LogEvent("Nobody new is let in; the relay waits for those who are there.", ("timeout",)),
    "relay.stopped": LogEvent("Every connection is closed."),
    "listen.udp": LogEvent("A UDP socket is bound.", ("address",)),
    "listen.ipv4_only": LogEvent("The host has no IPv6; `::` is passed over.", (), _WARN),
    "workers.no_steering": LogEvent(
        "The kernel takes no program that chooses a worker for each packet, so there is one worker only.", ("problem",), _WARN),
    "worker.ready": LogEvent("A worker forwards.", ("worker", "pid", "seconds")),
    "worker.gone": LogEvent("A worker has ended, and will be replaced.", ("worker", "pid", "reason", "seconds", "delay"), _ERROR),
    "worker.spare_gone": LogEvent(
        "The process that waits to take a worker's place has ended; another one is started.", ("reason", "delay"), _WARN),
    "worker.killed": LogEvent("A worker that does not do its work was killed.", ("worker", "pid", "problem"), _ERROR),
    "worker.output": LogEvent(
        "A worker wrote to its standard error, which it does when it cannot log.", ("worker", "text"), _ERROR),
    "worker.line": LogEvent("A line of a worker's log, where the log is not the relay's own.", ("text",)),
    "worker.untold": LogEvent("What a worker told could not be kept; this is an error of the program.", ("worker",), _BUG),
    "worker.lost_words": LogEvent("A worker had more events to tell than could wait.", ("worker", "lost"), _WARN),
    "listen.http": LogEvent("An HTTP endpoint is bound.", ("service", "endpoint")),
    "signal.drain": LogEvent("A signal asks the relay to stop in peace.", ("signal",)),
    "signal.stop": LogEvent("The same signal again: the relay stops at once.", ("signal",)),

    "allocation.created": LogEvent("A first connection made an allocation.", (*_ALLOCATION, "tier")),
    "allocation.refreshed": LogEvent("A newer token is in force.", (*_ALLOCATION, "expires_at")),
    "allocation.limits": LogEvent(
        "A reload gave a running allocation other limits; both sides are told.",
        (*_ALLOCATION, "tier", "bandwidth_limit", "quota")),
    "allocation.ended": LogEvent("An allocation is over.", (*_ALLOCATION, "reason", "bytes_transferred", "seconds")),
    "allocation.failed": LogEvent(
        "An allocation could not be ended as it should: an error in the relay; its connections are closed.",
        (*_ALLOCATION, "connections"), _BUG),
    "session.bound": LogEvent(
        "A connection joined its allocation.", (*_ALLOCATION, "role", "connection", "remote", "claimed")),
    "session.lost": LogEvent("A connection left its allocation, or is gone.", (*_ALLOCATION, "role", "connection")),
    "session.moved": LogEvent("A client's packets come from another address.", ("connection", *_ALLOCATION, "remote")),
    "session.redirected": LogEvent(
        "A client came to a worker that does not have its allocation, and was told where to go.",
        ("connection", "allocation", "remote", "address")),
    "session.refused": LogEvent("A client was refused something, or broke the protocol.", _REFUSED),
    "connection.failed": LogEvent(
        "The processing of a connection failed: an error in the relay; the connection is closed.",
        ("connection", *_ALLOCATION), _BUG),
    "connection.close_failed": LogEvent("And it could not even be closed in order.", ("connection",), _BUG),
    "packet.failed": LogEvent("A packet that belongs to no connection could not be dealt with: an error in the relay.", (), _BUG),
    "datagram.failed": LogEvent("A UDP datagram could not be dealt with: an error in the relay.", ("sender",), _BUG),
    "batch.failed": LogEvent("A batch of datagrams could not be finished: an error in the relay.", (), _BUG),

    "security.connection_rate": LogEvent("See the security events.", (*_SOURCE, *_REFUSED[:-1])),
    "security.allocation_rate": LogEvent("See the security events.", (*_SOURCE, *_REFUSED[:-1])),
    "security.rejoin_rate": LogEvent("See the security events.", (*_SOURCE, *_REFUSED[:-1])),
    "security.stun_rate": LogEvent("See the security events.", _SOURCE),
    "security.blocked": LogEvent("See the security events.", (*_SOURCE, *_REFUSED[:-1])),
    "security.amplification": LogEvent("See the security events.", _SOURCE),
    "security.handshake_pressure": LogEvent("See the security events.", _SOURCE),
    "security.retry_invalid": LogEvent("See the security events.", _SOURCE),
    "record.security": LogEvent("A record of the stream of security events, where that has no file of its own.", ("record",)),

    "reload.done": LogEvent("Settings, keys, lists and the certificate were read again.", ("changed", "not_reloadable", "ended")),
    "reload.restart_needed": LogEvent("A setting was changed that only a restart puts in force.", ("setting",), _WARN),
    "reload.failed": LogEvent("A reload could not be finished: an error in the relay.", (), _BUG),
    "reload.refused": LogEvent("Nothing was changed, for this reason; one line for each.", ("problem",), _ERROR),

    "qlog.requested": LogEvent("The next connection of an allocation will be recorded.", _ALLOCATION),
    "qlog.started": LogEvent("A connection is being recorded.", ("connection", *_ALLOCATION)),
    "qlog.written": LogEvent("A recording was written.", ("connection", *_ALLOCATION, "path", "events", "complete")),
    "qlog.failed": LogEvent("A recording could not be written.", ("connection", *_ALLOCATION, "problem"), _ERROR),

    "audit.record": LogEvent("A record of the audit log, where that has no file of its own.", ("record",)),
    "observe.failed": LogEvent(
        "A request to the observe endpoint could not be answered: an error in the relay.", ("path",), _BUG),
    "admin.failed": LogEvent(
        "A request to the admin endpoint could not be answered: an error in the relay.", ("action",), _BUG),
    "keys.not_saved": LogEvent(
        "Device keys that were pinned at run time could not be kept in `state_dir`.", ("problem",), _ERROR),
    "access.not_saved": LogEvent("The lists of networks could not be kept in `state_dir`.", ("problem",), _ERROR),
    "file.failed": LogEvent(
        "A line could not be appended to a file; lines are lost until it works again.", ("path", "problem"), _ERROR),
    "file.recovered": LogEvent("Lines can be appended again.", ("path", "failures")),
    "file.not_reopened": LogEvent("After a rotation the old file goes on.", ("path", "problem"), _ERROR),
    "task.failed": LogEvent("A background task failed; it goes on.", ("task",), _BUG),
    "external.warning": LogEvent("Something about an external system may not be as it was meant.", ("problem",), _WARN),
    "external.failed": LogEvent("An external system does not work; it is tried again.", ("what", "problem"), _ERROR),
    "external.recovered": LogEvent("It works again.", ("what", "failures")),
    "webhook.answer_invalid": LogEvent("The webhook's answer is not understood.", ("problem",), _WARN),
    "webhook.blocks": LogEvent("The webhook's answer named sources to block.", ("count",)),
    "bouncer.decisions": LogEvent("Decisions of the engine are followed.", ("decisions",)),
    "udp.no_gro": LogEvent("The kernel has no UDP_GRO; a read is one packet.", (), _DEBUG),
    "udp.no_gso": LogEvent("Kernel or interface have no UDP_SEGMENT; a send is one packet."),
    "udp.send_failed": LogEvent("A packet could not be sent.", ("to", "error"), _DEBUG),
})
"""Every kind of line by its name. Lines of the libraries have none: their ``event`` is ``other``."""

FIELDS: Final[Mapping[str, str]] = MappingProxyType({
    "action": "What was asked for: an operation of the admin endpoint.",
    "address": "Address and port that are listened on, or that a client was sent to.",
    "allocation": "Id of the allocation, in hexadecimal; together with `device` it is unique.",
    "bandwidth_limit": "The limit in force, in bytes per second; absent for none.",
    "bytes_transferred": "What it has carried, in bytes, earlier lives included.",
    "cause": "What was done about it, in one word.",
    "changed": "The settings that have other values, or files with other contents, from now on.",
    "claimed": "The address that the client believes to have.",
    "code": "Name of the error code that the client was told (protocol, section 5).",
    "complete": "`false` when recording stopped because the file would have become too long.",
    "connection": "The connection: the first connection id that its client used, in hexadecimal.",
    "connections": "The connections that are closed.",
    "count": "How many.",
    "decisions": "How many decisions there are.",
    "delay": "Seconds until its successor is started.",
    "device": "Id of the device, in hexadecimal.",
    "ended": "How many allocations ended because their device's key is gone.",
    "endpoint": "Where is listened.",
    "error": "What the system says.",
    "events": "How many events were recorded.",
    "expires_at": "When the token in force expires, in Unix seconds.",
    "failures": "How many attempts, or lines, were lost.",
    "form": "`compiled` or `pure Python`: [which form](compiled.md) of the program runs.",
    "lost": "How many things.",
    "not_reloadable": "The settings that have other values in their sources and need a restart.",
    "path": "A file, or what a request asked for.",
    "pid": "The process.",
    "port": "UDP port of the source.",
    "problem": "What is wrong, in one line.",
    "quota": "The quota in force, in bytes; absent for none.",
    "reason": "Why, in a word or a sentence.",
    "record": "The record, an object with the fields of [a security event](security-events.md) or of [the audit log](admin.md).",
    "relay_id": "Id of the relay, in hexadecimal.",
    "remote": "Address and port of the client, validated.",
    "role": "`device` or `peer`.",
    "seconds": "How long it lived, or took to start.",
    "sender": "IP address of the sender.",
    "service": "Which one.",
    "setting": "Name of a setting.",
    "signal": "Name of the signal.",
    "source": "IP address of the source.",
    "task": "Name of the task.",
    "text": "What it wrote.",
    "tier": "Name of the tier; empty for a device without one.",
    "timeout": "Seconds.",
    "to": "IP address of the receiver.",
    "validated": "Whether the source has shown that it receives what is sent to its address.",
    "what": "Which external system.",
    "worker": "Which worker.",
})
"""What the fields mean."""

OTHER: Final = "other"
"""The event of lines that have no name of their own: those of the libraries."""
