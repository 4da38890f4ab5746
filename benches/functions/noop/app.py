"""The function that the restore benchmark calls: it does nothing."""


def handler(event, context):
    return event
