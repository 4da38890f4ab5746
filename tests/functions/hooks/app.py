"""Hooks around a snapshot, in the order in which they ran."""

import random

from snapshot_restore_py import register_after_restore, register_before_snapshot

ORDER = ["init"]
random.seed(1)


def note(what):
    ORDER.append(what)


def restored():
    # What this process draws is its own by now, already in a hook.
    ORDER.append({"random": random.random()})


register_before_snapshot(note, "before 1")
register_before_snapshot(note, "before 2")
register_after_restore(note, "after 1")
register_after_restore(restored)


def handler(event, context):
    return ORDER
