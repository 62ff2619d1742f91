"""Writes what is generated from the tables of settings, log events and metrics: pages in ``docs``, ``deploy/relay.example.toml``.

Run by ``make docs``; tests check that what is in the repository is what this writes.
"""

from __future__ import annotations

from pathlib import Path

from zrc_relay.config_reference import example_toml, reference_markdown
from zrc_relay.logs.reference import logs_markdown
from zrc_relay.metrics.reference import with_tables

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the files and say so."""
    for name, text in (
        ("docs/configuration.md", reference_markdown()),
        ("docs/logs.md", logs_markdown()),
        ("docs/metrics.md", with_tables((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))),
        ("deploy/relay.example.toml", example_toml()),
    ):
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
