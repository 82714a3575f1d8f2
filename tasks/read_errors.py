"""Why the bytes of an image could not be had."""


class ReadError(Exception):
    """An image whose bytes could not be had; of these `READ_ERRORS` are worth another run."""


class ObjectTooLarge(ReadError):
    """An object of more bytes than allowed."""


class ObjectVanished(ReadError):
    """An object that was listed and is gone."""


class ObjectChanged(ReadError):
    """An object of another size than was listed, or in a container that changed since."""


class ReadFailed(ReadError):
    """An object that its store would not give."""


class NoImageBytes(ReadError):
    """A row of a Parquet file without the bytes of an image."""


class DamagedContainer(ReadError):
    """An image in a part of a Parquet file that cannot be read."""


READ_ERRORS = tuple(error.__name__ for error in (ObjectVanished, ObjectChanged, ReadFailed))
"""Names of those that another run may not meet again."""


def too_large(found: str, max_bytes: int) -> ObjectTooLarge:
    """The reason of an object of ``found`` bytes where no more than ``max_bytes`` are read."""
    return ObjectTooLarge(f"{found} bytes; at most {max_bytes:,} are read: raise max_image_bytes")
