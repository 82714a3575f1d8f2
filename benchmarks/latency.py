"""An endpoint as far away as one in the same region: a proxy that holds back every call."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from urllib.parse import urlsplit


@contextmanager
def delayed(endpoint: str, seconds: float) -> Iterator[str]:
    """The URL of a proxy, in a process of its own, whose calls reach ``endpoint`` later."""
    command = [sys.executable, "-m", "benchmarks.latency", urlsplit(endpoint).netloc, str(seconds)]
    with Popen(command, stdout=PIPE, text=True) as proxy:
        assert proxy.stdout
        try:
            yield f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
        finally:
            proxy.terminate()


async def serve(host: str, port: str, seconds: float) -> None:
    """Pass connections on to a server; what clients send arrives there after some seconds."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            _copy(reader, far_writer, seconds), _copy(far_reader, writer, 0), return_exceptions=True
        )

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Everything in order; what arrives close behind waits no second time."""
    loop, due = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def deliver() -> None:
        while True:
            when, data = await due.get()
            await asyncio.sleep(max(0.0, when - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    while data := await reader.read(1 << 16):
        due.put_nowait((loop.time() + seconds, data))
    due.put_nowait((loop.time(), b""))
    await delivery


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1].split(":"), float(sys.argv[2])))
