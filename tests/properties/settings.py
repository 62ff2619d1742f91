"""How many cases each property is tried on, and how a state machine is run under trial.

``make test`` tries 300. The environment variable ``ZRC_RELAY_TEST_EXAMPLES`` says another number, for instance 5000 before a
release. It is taken out of the environment here, because programs under test would take it for a setting of the relay.

Hypothesis tells which case fails in the notes of the exception. Trial does not print notes, so ``explained`` puts them into the
message.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

VARIABLE: Final = "ZRC_RELAY_TEST_EXAMPLES"
EXAMPLES: Final = int(os.environ.pop(VARIABLE, "300"))
"""Cases for each property."""


def cases(*, steps: int = 50) -> settings:
    """The settings of a property: ``EXAMPLES`` cases; in those of a state machine at most ``steps`` rules each."""
    return settings(max_examples=EXAMPLES, stateful_step_count=steps)


@contextmanager
def explained() -> Iterator[None]:
    """Put the notes of an exception, which hold the failing case, where trial shows them."""
    try:
        yield
    except Exception as error:
        text = "\n\n".join(_describe(error))
        raise AssertionError(text) from error


def _describe(error: Exception) -> Iterator[str]:
    if isinstance(error, ExceptionGroup):
        for one in error.exceptions:
            yield from _describe(one)
        return
    where = traceback.extract_tb(error.__traceback__)[-8:]
    notes = getattr(error, "__notes__", ())
    yield "\n".join((f"{type(error).__name__}: {error}", *notes, "".join(traceback.format_list(where))))


class Machine(RuleBasedStateMachine):
    """A state machine that checks with ``case``, so that what fails says how."""

    case: Final = SynchronousTestCase()


class PropertyTestCase(SynchronousTestCase):
    """A test case whose tests are properties."""

    def run_machine(self, machine: type[Machine], *, steps: int) -> None:
        """Try ``EXAMPLES`` runs of ``machine``, each of at most ``steps`` rules."""
        with explained():
            run_state_machine_as_test(machine, settings=cases(steps=steps))
