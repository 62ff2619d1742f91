"""Writes what is generated from the table of settings: ``docs/configuration.md`` and ``deploy/relay.example.toml``.

Run by ``make docs``; a test checks that what is in the repository is what this writes.
"""

from __future__ import annotations

from pathlib import Path

from zrc_relay.config_reference import example_toml, reference_markdown

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write both files and say so."""
    for name, text in (("docs/configuration.md", reference_markdown()), ("deploy/relay.example.toml", example_toml())):
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
