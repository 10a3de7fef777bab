"""A long line: connections to a port are led to another one, late and at no more than a rate each.

    python -m benchmarks.line TO FROM LATENCY RATE

LATENCY is in seconds, from a question to its answer; RATE in bytes per second of what comes back on one connection.
"""

import asyncio
import sys
import time

PIECE = 2**16


async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float, rate: float) -> None:
    """All bytes of one direction, each piece so late, and together at no more than the rate."""
    free = 0.0
    try:
        while piece := await reader.read(PIECE):
            now = time.monotonic()
            free = max(now, free) + len(piece) / rate
            await asyncio.sleep(free - now + latency)
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main(to: int, at: int, latency: float, rate: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(lead(reader, back, latency, 1e12), lead(there, writer, 0.0, rate))

    async with await asyncio.start_server(connected, "127.0.0.1", at) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
