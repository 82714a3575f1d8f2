"""Log records, among them some of mistaken calls."""

import logging

import pytest

from tasks.log_records import message_of


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("%d images", (3,), "3 images"),
        ("%d images", ("three",), "%d images ('three',)"),
        ("%d of %d", (3,), "%d of %d (3,)"),
        ("%(found)d", ({"lost": 1},), "%(found)d {'lost': 1}"),
        ("100 %", (), "100 %"),
    ],
)
def test_a_mistaken_log_call_is_shown_as_it_is(text: str, args: object, message: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, text, args, None)  # type: ignore[arg-type]
    assert message_of(record) == message
