"""Log records of others, as they come."""

import logging


def message_of(record: logging.LogRecord) -> str:
    """What a record says; where its arguments do not fit its text, both as they are.

    A filter that raised would end the run for a mistake in a log call, which `logging` itself
    only reports.
    """
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {record.args}"
