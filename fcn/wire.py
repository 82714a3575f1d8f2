"""What a decoding process and its parent say to each other.

::

    ready     1 byte, once
    request   task, most pixels, seconds and bytes of memory allowed, length of the file; the file
    reply     kind, height, width, length of what follows: pixels, the values of a band (1, 2 or 4
              bytes of each), or the error's class and text
"""

import socket
import struct

READY = b"\1"
REQUEST = struct.Struct("<BQdQQ")
REPLY = struct.Struct("<BQQQ")

SIZE, DECODE, DECODE_LENIENT, DECODE_BAND = range(4)  # tasks
FOUND, TRUNCATED, FAILED = range(3)  # kinds of replies
PATIENCE = 10
"""Seconds by the clock for each second of processor time allowed: the machine may be busy."""


def receive(connection: socket.socket, length: int) -> bytearray:
    """Exactly ``length`` bytes, or none where the other side is gone.

    Raises:
        OSError: the connection broke.
    """
    data = bytearray(length)
    return data if receive_into(connection, memoryview(data)) else bytearray()


def receive_into(connection: socket.socket, target: memoryview) -> bool:
    """Fill ``target``; false where the other side is gone before it is full.

    Raises:
        OSError: the connection broke.
    """
    while target:
        count = connection.recv_into(target, len(target), socket.MSG_WAITALL)  # all in one call
        if not count:
            return False
        target = target[count:]
    return True
