"""Which form of the relay is installed: compiled, or the Python that it is written in (docs/compiled.md).

The modules on the way of a packet are compiled as one unit, all or none, and an extension is preferred to the source beside it.
So what one of them is loaded from tells for all. No module of the relay is loaded to find out, but the two packages around that
one.
"""

from __future__ import annotations

from enum import StrEnum
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec
from typing import Final

_ONE_OF_THEM: Final = "zrc_relay.quic.fastpath"


class Form(StrEnum):
    """A form, in the words that ``--version``, the log and ``zrc_relay_build_info`` have for it."""

    COMPILED = "compiled"
    PYTHON = "pure Python"


def form() -> Form:
    """The form that this process runs."""
    found = find_spec(_ONE_OF_THEM)
    return Form.COMPILED if found and isinstance(found.loader, ExtensionFileLoader) else Form.PYTHON
