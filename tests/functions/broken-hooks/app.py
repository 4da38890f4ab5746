"""A hook that fails after every restore."""

from snapshot_restore_py import register_after_restore


def fail():
    raise RuntimeError("this hook fails")


register_after_restore(fail)


def handler(event, context):
    return "never"
