"""Limits of one process and limits of several: the tests of ``limits_behaviour`` on both."""

from __future__ import annotations

from tests import limits_behaviour as behaviour
from tests.limits_support import Memory
from zrc_relay.core.limits import LocalLimits


class Local:
    """One process, which counts for itself."""

    def turns(self) -> behaviour.Turns:
        """It is always its turn."""
        return behaviour.Turns([LocalLimits()])


class Shared:
    """Several processes that count in the same memory."""

    def turns(self) -> behaviour.Turns:
        """They take turns."""
        return behaviour.Turns(list(Memory(behaviour.WORKERS).limits))


class LocalSourcesTests(Local, behaviour.SourcesBehaviour):
    """R6.1: each source has its rate, in one process."""


class LocalBucketTests(Local, behaviour.BucketBehaviour):
    """R6.9: what all sources share, in one process."""


class LocalPlacesTests(Local, behaviour.PlacesBehaviour):
    """R4.4: places in all and for each device, in one process."""


class LocalBandwidthTests(Local, behaviour.BandwidthBehaviour):
    """R4.1: the bandwidth of all allocations, in one process."""


class LocalAdmissionTests(Local, behaviour.AdmissionBehaviour):
    """R6.1, R6.2: everything that is counted about sources, in one process."""


class LocalTableTests(Local, behaviour.TableBehaviour):
    """R4.4: tables of allocations, in one process."""


class LocalForwardingTests(Local, behaviour.ForwardingBehaviour):
    """R4.1, R4.3: what is forwarded within the global limit, in one process."""


class SharedSourcesTests(Shared, behaviour.SourcesBehaviour):
    """R6.1: each source has its rate, in several processes together."""


class SharedBucketTests(Shared, behaviour.BucketBehaviour):
    """R6.9: what all sources share, in several processes together."""


class SharedPlacesTests(Shared, behaviour.PlacesBehaviour):
    """R4.4: places in all and for each device, in several processes together."""


class SharedBandwidthTests(Shared, behaviour.BandwidthBehaviour):
    """R4.1: the bandwidth of all allocations, in several processes together."""


class SharedAdmissionTests(Shared, behaviour.AdmissionBehaviour):
    """R6.1, R6.2: everything that is counted about sources, in several processes together."""


class SharedTableTests(Shared, behaviour.TableBehaviour):
    """R4.4: tables of allocations, in several processes together."""


class SharedForwardingTests(Shared, behaviour.ForwardingBehaviour):
    """R4.1, R4.3: what is forwarded within the global limit, in several processes together."""
