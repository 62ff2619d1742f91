"""What workers are told to do together, without processes: reloads, keys and lists."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.crew_support import COUNT, CrewCase
from zrc_relay.core.cidr import Access, Entry, Network
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import key_id
from zrc_relay.workers.berth import State
from zrc_relay.workers.orders import Kind, Said, devices_of
from zrc_relay.workers.values import BadValue

NETWORK = Network.parse("192.0.2.0/24")
DEVICE, OTHER = (Device(bytes((number,)) * 32, tier="", note=f"number {number}") for number in (7, 8))
DEVICE_ID, OTHER_ID = (key_id(device.public_key) for device in (DEVICE, OTHER))


class ReloadTests(CrewCase):
    """R8, issue "all cores": SIGHUP reloads all or none."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def reload_keys(self, *devices: Device) -> Deferred[int]:
        """Put other device keys in force, and nothing else."""
        return self.crew.put_in_force(self.inputs, self.orders().settings, DeviceKeys(devices))

    def test_all_go_by_the_new_orders_and_what_ended_is_the_sum(self) -> None:
        self.first.ended, self.second.ended = 2, 3
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.assertEqual(self.successResultOf(reloading), 5)
        self.assertEqual(self.idle_timeouts(), [17.0, 17.0])
        base = self.crew.sockets.worker_port_base
        self.assertEqual(self.first.orders.settings.policy.worker_port_base if self.first.orders else None, base)

    def test_when_one_says_no_nobody_changes_anything(self) -> None:
        before = self.idle_timeouts()
        self.second.problem = "I cannot"
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.assertEqual(self.refused(reloading), "I cannot")
        self.assertEqual(self.idle_timeouts(), before)
        self.assertNotIn("commit", self.first.names() + self.second.names())
        self.first.die()
        self.processes.turn()
        self.assertEqual(self.idle_timeouts(), before, "nor does who comes later")

    def test_nobody_changes_before_everybody_has_said_yes(self) -> None:
        self.second.waits = {"prepare"}
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.assertEqual((self.first.names(), self.second.names()), (["begin", "prepare"],) * 2)
        self.assertNoResult(reloading)
        self.second.answer()
        self.processes.turn()
        self.successResultOf(reloading)
        self.assertEqual(self.idle_timeouts(), [17.0, 17.0])

    def test_one_that_dies_before_it_could_follow_comes_back_with_the_new_orders(self) -> None:
        self.second.waits = {"prepare"}
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.second.die()
        self.processes.run(1)
        self.successResultOf(reloading)
        self.assertEqual(self.idle_timeouts(), [17.0, 17.0])

    def test_one_that_was_replaced_in_the_middle_ends_up_with_them_too(self) -> None:
        self.second.waits = {"prepare"}
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.first.die()
        self.processes.turn()
        self.assertIs(self.at(0), self.spare)
        self.second.answer()
        self.processes.run(1)
        self.successResultOf(reloading)
        self.assertEqual(self.idle_timeouts(), [17.0, 17.0])
        self.assertFalse(self.spare.is_alive, "it began with the old ones")

    def test_its_keys_are_in_force_together_with_those_that_were_pinned_in_the_middle(self) -> None:
        ours = devices_of(self.inputs.device_keys)
        self.second.waits = {"prepare"}
        reloading = self.reload_keys(*ours, OTHER)
        self.processes.turn()
        self.crew.use_keys(DeviceKeys([*ours, DEVICE]))
        self.processes.turn()
        self.assertEqual((self.first.keys, self.second.keys), ((*ours, DEVICE),) * 2)
        self.second.answer()
        self.processes.turn()
        self.successResultOf(reloading)
        self.first.die()
        self.processes.turn()
        for index in range(COUNT):
            self.assertEqual(set(self.occupant(index).keys), {*ours, OTHER, DEVICE})

    def test_the_keys_of_one_that_is_refused_are_nowhere_in_force_then_or_later(self) -> None:
        before = devices_of(self.inputs.device_keys)
        self.second.problem = "I cannot"
        reloading = self.reload_keys(*before, OTHER)
        self.processes.turn()
        self.refused(reloading)
        self.first.die()
        self.processes.turn()
        self.assertEqual((self.occupant(0).keys, self.second.keys), (before, before))
        self.second.problem = ""
        self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.assertEqual(self.idle_timeouts(), [17.0, 17.0])
        self.assertEqual((self.occupant(0).keys, self.second.keys), (before, before))

    def test_one_that_fails_to_follow_is_replaced(self) -> None:
        self.second.fails, self.first.ended = {"commit"}, 1
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.processes.run(1)
        self.assertEqual(self.successResultOf(reloading), 1)
        self.assertIs(self.at(1), self.spare)
        self.assertEqual(self.idle_timeouts(), [17.0, 17.0])

    def test_settings_that_cannot_be_told_change_nothing(self) -> None:
        reloading = self.reload(idle_timeout=b"bytes where there is a number")
        self.processes.turn()
        self.failureResultOf(reloading, BadValue)
        self.assertTrue(self.first.is_alive and self.second.is_alive)
        self.assertNotIn("commit", self.first.names() + self.second.names())

    def test_one_that_fails_while_it_is_asked_says_no(self) -> None:
        before = self.idle_timeouts()
        self.second.fails = {"prepare"}
        reloading = self.reload(idle_timeout=17.0)
        self.processes.turn()
        self.assertIn("worker 1", self.refused(reloading))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.processes.run(1)
        self.assertEqual(self.idle_timeouts(), before)
        self.assertNotIn("commit", self.first.names())


class TogetherTests(CrewCase):
    """R10, issue "all cores": keys and lists of run time are in force in every worker, also in one that comes later."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_keys_reach_all_and_who_comes_later(self) -> None:
        self.first.ended = 1
        ended = self.crew.use_keys(DeviceKeys([DEVICE]))
        self.processes.turn()
        self.assertEqual(self.successResultOf(ended), 1)
        self.assertEqual((self.first.keys, self.second.keys), ((DEVICE,), (DEVICE,)))
        self.first.die()
        self.processes.turn()
        self.assertEqual(self.spare.keys, (DEVICE,))

    def test_only_the_keys_that_have_changed_are_told(self) -> None:
        (ours,) = self.inputs.device_keys
        for devices in ([DEVICE], [DEVICE, OTHER], [DEVICE, OTHER], [OTHER]):
            self.crew.use_keys(DeviceKeys(devices))
            self.processes.turn()
        for worker in (self.first, self.second):
            told = [what for name, what in worker.heard if name == "keys"]
            self.assertEqual(told, [{ours: None, DEVICE_ID: DEVICE}, {OTHER_ID: OTHER}, {}, {DEVICE_ID: None}])
            self.assertEqual(worker.keys, (OTHER,))

    def test_keys_reach_one_that_is_starting(self) -> None:
        self.spare.waits = {"begin"}
        self.first.die()
        self.processes.turn()
        self.assertEqual(self.states(), [State.STARTING, State.READY])
        changed = self.crew.use_keys(DeviceKeys([DEVICE]))
        self.processes.turn()
        self.spare.answer()
        self.processes.turn()
        self.successResultOf(changed)
        self.assertEqual(self.spare.keys, (DEVICE,))

    def test_nobody_waits_for_one_that_is_dying(self) -> None:
        self.first.waits = {"keys"}
        changed = self.crew.use_keys(DeviceKeys([DEVICE]))
        self.processes.turn()
        self.assertNoResult(changed)
        self.first.die()
        self.assertEqual(self.successResultOf(changed), 0)

    def test_list_changes_of_one_moment_reach_all_together_and_in_order(self) -> None:
        self.lists.add(Entry(NETWORK, Access.BLOCK, note="x"), 0.0)
        self.lists.remove(NETWORK)
        self.lists.add(Entry(NETWORK, Access.BLOCK, note="y"), 0.0)
        self.processes.turn()
        for worker in (self.first, self.second):
            (changes,) = [what for name, what in worker.heard if name == "lists"]
            self.assertEqual([change.entry.note if change.entry else None for change in changes], ["x", None, "y"])

    def test_who_comes_later_begins_with_the_lists_as_they_are_then(self) -> None:
        entry = Entry(NETWORK, Access.BLOCK, note="x")
        self.lists.add(entry, 0.0)
        self.processes.turn()
        self.first.die()
        self.processes.turn()
        (beginning,) = [what for name, what in self.spare.heard if name == "begin"]
        self.assertEqual(beginning.entries, (entry,))

    def test_list_changes_reach_one_that_is_starting(self) -> None:
        self.spare.waits = {"begin"}
        self.first.die()
        self.processes.turn()
        self.lists.add(Entry(NETWORK, Access.BLOCK), 0.0)
        self.processes.turn()
        self.assertEqual(self.spare.names(), ["begin", "lists"])

    def test_what_a_worker_tells_comes_with_its_index(self) -> None:
        self.second.tell(Said(Kind.EVENT, "a", "{}"), Said(Kind.EVENT, "b", "{}"), lost=3)
        self.processes.turn()
        self.assertEqual(self.heard, [(1, "a", 3), (1, "b", 3)])

    def test_the_last_words_of_a_dead_one_are_heard(self) -> None:
        self.second.tell(Said(Kind.LINE, "info", "{}"))
        self.second.die(words_last=True)
        self.processes.turn()
        self.assertEqual(self.heard, [(1, "info", 0)])

    def test_an_error_with_what_was_told_ends_no_worker(self) -> None:
        self.listener_breaks = True
        told = self.second.tell(Said(Kind.EVENT, "a", "{}"))
        self.processes.turn()
        self.successResultOf(told)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(self.at(1), self.second)
