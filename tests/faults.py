"""What goes wrong between processes: connections that are cut, networks that are pulled apart."""

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path


class CuttingProxy:
    """A TCP proxy to a port of this machine that, while `cutting`, cuts each connection after a random number of bytes.

    They are counted in both directions together, so that commands and replies alike break off in their middle.
    """

    def __init__(self, target_port: int, *, most_bytes: int, seed: int = 0) -> None:
        self.cutting, self.cuts = False, 0
        self._target_port, self._most_bytes = target_port, most_bytes
        self._random = random.Random(seed)  # noqa: S311
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        left = [self._random.randint(1, self._most_bytes)]
        ways = [
            asyncio.ensure_future(self._pass_on(reader, there_writer, left)),
            asyncio.ensure_future(self._pass_on(there_reader, writer, left)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, there_writer):
                end.close()  # what was passed on still arrives

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if self.cutting and len(chunk) >= left[0]:
                    self.cuts += 1
                    writer.write(chunk[: left[0] - 1])
                    return
                if self.cutting:
                    left[0] -= len(chunk)
                writer.write(chunk)
                await writer.drain()


class Network:
    """Hosts in network namespaces of their own, joined by a bridge in one more; this process reaches them all.

    Names and addresses are its own, and nothing of the machine's network is changed but for one veth device.
    """

    def __init__(self, *hosts: str) -> None:
        self._name = f"chaos{os.getpid()}"
        self._spaces = [f"{self._name}-{host}" for host in ("lan", *hosts)]
        self.address = {host: f"10.231.77.{number}" for number, host in enumerate(hosts, start=2)}
        try:
            for space in self._spaces:
                _ip("netns", "add", space)
                _ip("-n", space, "link", "set", "lo", "up")
            self._in_lan("link", "add", "bridge", "type", "bridge")
            self._in_lan("link", "set", "bridge", "up")
            self._plug_in("here", "10.231.77.1", self._name, [])
            for host, address in self.address.items():
                self._plug_in(host, address, "eth0", ["-n", f"{self._name}-{host}"])
        except BaseException:
            self.remove()
            raise

    def prefix(self, host: str) -> list[str]:
        """What to put before a command for it to run on a host."""
        return ["ip", "netns", "exec", f"{self._name}-{host}"]

    def cut(self, host: str) -> None:
        self._in_lan("link", "set", host, "down")

    def mend(self, host: str) -> None:
        self._in_lan("link", "set", host, "up")

    def remove(self) -> None:
        """Processes in the namespaces keep them alive: end those first."""
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def _plug_in(self, port: str, address: str, device: str, where: list[str]) -> None:
        space = where[1:] or [str(os.getpid())]
        self._in_lan("link", "add", port, "type", "veth", "peer", "name", device, "netns", *space)
        self._in_lan("link", "set", port, "master", "bridge", "up")
        _ip(*where, "addr", "add", f"{address}/24", "dev", device)
        _ip(*where, "link", "set", device, "up")

    def _in_lan(self, *arguments: str) -> None:
        _ip("-n", self._spaces[0], *arguments)


def why_no_network() -> str:
    """Why there can be no Network here; empty if there can."""
    if shutil.which("ip") is None:
        return "no `ip` (iproute2) on PATH"
    try:
        Network("probe").remove()
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.decode(errors='replace').strip()}"
    return ""


def peer_ports(process_ids: Iterable[int]) -> set[int]:
    """The TCP ports at the other end of the IPv4 connections that these processes have."""
    inodes = set()
    for process_id in process_ids:
        for descriptor in Path(f"/proc/{process_id}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[2].split(":")[1], 16) for row in rows if row[9] in inodes}


def resident_bytes(process_ids: Iterable[int]) -> int:
    """The memory that these processes have, what they share counted once."""
    return sum(_proportional_bytes(process_id) for process_id in process_ids)


def _proportional_bytes(process_id: int) -> int:
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
