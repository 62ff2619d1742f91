"""What the relay answers, as ``zrc-relay ctl`` shows it to people: lines of names and values, and tables (R10).

Nothing is cut: ids are there to be copied. Texts that somebody else chose (notes, reasons, tiers) cannot command the terminal.
Bandwidths and volumes are rounded; ``--json`` has every digit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from zrc_relay.cli.console import console, print_fields, printable, size, span

NOTHING: Final = "-"
"""Stands in a table for what is not there."""
Answer = Mapping[str, Any]


def rate(bytes_per_second: float | None) -> str:
    """A bandwidth for people."""
    return "no limit" if bytes_per_second is None else f"{size(bytes_per_second)}/s"


def moment(text: str | None) -> str:
    """A moment of an answer, to the second, in UTC."""
    return "never" if text is None else printable(text)[:19].replace("T", " ")


def counted(counts: Mapping[str, int]) -> str:
    """Counts by cause, the largest first; those that are nothing are left out."""
    found = [f"{number} {printable(cause).replace('_', ' ')}" for cause, number in Counter(counts).most_common() if number]
    return ", ".join(found) or "none"


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A line of titles and one for each row, in columns as wide as what is longest in them."""
    lines = [tuple(printable(str(cell)) or NOTHING for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    screen = console()
    for style, line in [("bold", titles), *(("", line) for line in lines)]:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        screen.print(Text(text.rstrip(), style), soft_wrap=True)


def print_rest(page: Answer) -> None:
    """A last line where there is more than the page shows."""
    first, shown, total = page["offset"], len(page["items"]), page["total"]
    if shown < total:
        more = f"; --offset {first + shown} goes on" if first + shown < total else ""
        console().print(Text(f"{first + 1 if shown else first} to {first + shown} of {total}{more}", "dim"), soft_wrap=True)


def missing(page: Answer) -> list[str]:
    """A sentence for each worker whose rows a list does not have; a relay of an earlier version says nothing of that."""
    return [f"worker {index} does not answer; what it has is missing" for index in page.get("missing_workers", ())]


def short_names(items: Iterable[Answer]) -> list[str]:
    """How to name each of these allocations: by its id alone, where no other one here has the same."""
    listed = list(items)
    seen = Counter(item["allocation_id"] for item in listed)
    return [item["allocation_id"] if seen[item["allocation_id"]] == 1 else item["id"] for item in listed]


def allocations(page: Answer) -> None:
    """``list``."""
    print_table(
        ("ALLOCATION", "STATE", "TIER", "DEVICE", "PEER", "RATE", "CARRIED", "LAST ACTIVITY", "EXPIRES"),
        [
            (
                name, item["state"], item["tier"], item["device"]["address"] or NOTHING, item["peer"]["address"] or NOTHING,
                rate(item["bytes_per_second"]), size(item["bytes_transferred"]),
                moment(item["last_activity_at"]), moment(item["expires_at"]),
            )
            for name, item in zip(short_names(page["items"]), page["items"], strict=True)
        ],
    )
    print_rest(page)


def allocation(item: Answer) -> None:
    """``show``."""
    quota = "no quota" if item["quota_bytes"] is None else f"of {size(item['quota_bytes'])}"
    print_fields({
        "allocation": item["allocation_id"],
        "device id": item["device_id"] + (" (pinned)" if item["pinned"] else " (self-certified)"),
        "peer id": item["peer_id"],
        "state": item["state"],
        "tier": printable(item["tier"]) or "none, the defaults",
        "created": moment(item["created_at"]),
        "last activity": moment(item["last_activity_at"]),
        "expires": moment(item["expires_at"]),
        "carried": f"{size(item['bytes_transferred'])} ({quota})",
        "bandwidth": f"{rate(item['bytes_per_second'])} (limit: {rate(item['bandwidth_limit'])})",
        "device": _side(item["device"]),
        "peer": _side(item["peer"]),
    })
    if item["members"]:
        console().print()
        _connections(item["members"])


def _side(side: Answer) -> str:
    proof = "has proved its key" if side["proven"] else "has not proved its key"
    where = f"{side['address']} on connection {side['connection']}" if side["address"] else "not there"
    return f"{where}, {proof}; connections: {side['connections']}"


def connections(page: Answer) -> None:
    """``connections``."""
    _connections(page["items"])
    print_rest(page)


def _connections(items: Iterable[Answer]) -> None:
    print_table(
        ("CONNECTION", "ADDRESS", "RELAY'S ADDRESS", "STATE", "ROLE", "CURRENT", "ROUND TRIP", "SILENT", "ALLOCATION"),
        [
            (
                item["id"], item["address"], item["local_address"], item["state"], item["role"] or NOTHING,
                "yes" if item["current"] else "no",
                NOTHING if item["round_trip_seconds"] is None else f"{1000 * item['round_trip_seconds']:.1f} ms",
                span(item["silent_seconds"]), (item["allocation"] or NOTHING).rpartition(":")[2],
            )
            for item in items
        ],
    )


def termination(item: Answer) -> None:
    """``terminate``."""
    print_fields({
        "ended": item["id"],
        "reason": printable(item["reason"]),
        "had carried": size(item["bytes_transferred"]),
        "connections": f"{item['connections']} closed",
    })


def qlog(item: Answer) -> None:
    """``qlog``."""
    print_fields({"allocation": item["id"], "recording": f"its next connection, to a file in {printable(item['directory'])}"})


def stats(item: Answer) -> None:
    """``stats``."""
    held, traffic = item["allocations"], item["traffic"]
    print_fields({
        "relay": f"{item['relay_id']}, version {item['version']}, instance {item['instance_id']}",
        "state": f"{item['state']}, up {span(item['uptime_seconds'])} since {moment(item['started_at'])}",
        "allocations": (
            f"{held['current']} ({held['active']} active, {held['waiting']} waiting), at most {held['maximum']}, "
            f"peak {held['peak']}, created {held['created']}"
        ),
        "ended": counted(held["ended"]),
        "connections": f"{item['connections']['current']}, peak {item['connections']['peak']}",
        "handshakes": counted(item["connections"]["handshakes"]),
        "bandwidth": (
            f"{rate(traffic['bytes_per_second'])} in {traffic['packets_per_second']:.0f} packets/s, "
            f"peak {rate(traffic['peak_bytes_per_second'])}, average {rate(traffic['average_bytes_per_second'])}"
        ),
        "carried": f"{size(traffic['bytes'])} in {traffic['packets']} packets",
        "dropped": counted(item["dropped"]["packets"]),
        "refused": counted(item["refused"]),
        "limited": counted(item["limited"]),
    })
    workers = item.get("workers", ())  # a relay of an earlier version has none
    if workers:
        console().print()
        print_table(
            ("WORKER", "STATE", "PID", "UP", "ALLOCATIONS", "CONNECTIONS", "RATE", "PACKETS/S", "CPU", "LAG", "RESTARTS"),
            map(worker_cells, workers),
        )
    if item["top_talkers"]:
        console().print()
        print_table(("BUSIEST ALLOCATIONS", "RATE", "CARRIED"), [
            (each["id"], rate(each["bytes_per_second"]), size(each["bytes_transferred"])) for each in item["top_talkers"]
        ])


def worker_cells(item: Answer) -> tuple[str, ...]:
    """What is shown of a worker."""
    return (
        str(item["index"]), item["state"], str(item["pid"] or NOTHING), span(item["uptime_seconds"]), str(item["allocations"]),
        str(item["connections"]), rate(item["bytes_per_second"]), f"{item['packets_per_second']:.0f}",
        f"{item['cpu_share']:.0%}", f"{1000 * item['loop_lag_seconds']:.1f} ms", str(item["restarts"]),
    )


def networks(page: Answer) -> None:
    """``networks``."""
    print_table(("NETWORK", "ACCESS", "UNTIL", "SAID BY", "NOTE"), [
        (
            item["network"], item["access"], moment(item["until"]), "configuration" if item["configured"] else "run time",
            item["note"],
        )
        for item in page["items"]
    ])
    print_rest(page)


def network(item: Answer) -> None:
    """``block`` and ``allow``."""
    print_fields({
        "network": item["network"], "access": item["access"], "until": moment(item["until"]), "note": printable(item["note"]),
        **({"after a restart": _after_restart(item)} if "kept" in item else {}),  # an earlier version does not say
    })


def removed(item: Answer) -> None:
    """``unblock``."""
    said = {"allow": "allowed", "block": "blocked"}[item["access"]]
    again = "" if item.get("kept", True) else "; after a restart it may be so again, because the lists cannot be written"
    console().print(Text(f"{item['network']} is no longer {said}{again}"), soft_wrap=True)


def _after_restart(change: Answer) -> str:
    return "the same" if change["kept"] else "forgotten: there is no state_dir, or it cannot be written"


def keys(page: Answer) -> None:
    """``keys``."""
    print_table(("DEVICE", "PINNED", "TIER", "SAID BY", "NOTE"), [
        (item["device_id"], "yes" if item["pinned"] else "no", item["tier"], _source(item), item["note"])
        for item in page["items"]
    ])
    print_rest(page)


def key(change: Answer) -> None:
    """``pin`` and ``unpin``."""
    item = change["key"]
    print_fields({
        "device": item["device_id"],
        "pinned": "yes" if item["pinned"] else "no",
        "tier": printable(item["tier"]) or "none, the defaults",
        "note": printable(item["note"]) or NOTHING,
        "said by": _source(item),
        "after a restart": _after_restart(change),
        "ended with it": f"{change['ended']} allocations",
    })


def _source(item: Answer) -> str:
    return "run time" if item["source"] == "runtime" else "file"


def drain(item: Answer) -> None:
    """``drain``."""
    print_fields({
        "state": item["state"],
        "clients leave until": moment(item["deadline"]),
        "still there": f"{item['allocations']} allocations, {item['connections']} connections",
    })


def reload(item: Answer) -> None:
    """``reload``."""
    print_fields({
        "changed": ", ".join(map(printable, item["changed"])) or "nothing",
        "need a restart": ", ".join(map(printable, item["not_reloadable"])) or "nothing",
        "ended with their keys": f"{item['ended']} allocations",
    })
