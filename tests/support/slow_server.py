"""A proxy in front of an HTTP server, which is as good or as bad as a file says.

    python -m tests.support.slow_server ADDRESS TARGET_PORT FILE

The file holds `good`; `busy`: each request is answered with 503; or `slow`: each takes SLOW_S
longer. Prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

SLOW_S = 0.5

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def main(address: str, target: int, mode_file: Path) -> None:
    async def handle(client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection(address, target)
        back = asyncio.create_task(forward(reader, answer))
        try:
            # A request that follows another on the connection comes after its answer.
            while data := await client.read(1 << 16):
                is_request = data.split(b" ", 1)[0] in (b"GET", b"PUT", b"HEAD", b"POST", b"DELETE")
                mode = mode_file.read_text()
                if is_request and mode == "busy":
                    answer.write(BUSY)
                    break
                if is_request and mode == "slow":
                    await asyncio.sleep(SLOW_S)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            writer.close()
            answer.close()

    server = await asyncio.start_server(handle, address, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
