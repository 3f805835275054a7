"""Commands that cost no start: each is forked from one program, which has imported everything and run nothing.

An import of torch and of what the first optimizer asks for takes longer than most commands that the tests run. A forked
command is what `python` would make of the same arguments: a process with its own streams, environment, folder, signals
and end, in which the module runs as the main program.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

COMMANDS = ("robustfast.train", "robustfast.evaluate", "robustfast.reproduce")
LARGEST = 1 << 17  # bytes of one request


class Warm:
    """The program that commands are forked from. Close it in the end."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Triton decides at import whether it interprets: it does not, so that commands can compile kernels.
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        # One thread: forked processes inherit no others, and would wait for them.
        environment["OMP_NUM_THREADS"] = "1"
        with theirs:
            self._program = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        assert self._channel.recv(16) == b"ready", "the program that commands are forked from did not start"

    def command(
        self, *argv: str | Path, env: dict[str, str] | None = None, cwd: str | Path | None = None
    ) -> Command:
        """Start what follows `python` on a command line: "-m", module, ... or "-c", code, ... or program, ..."""
        given = os.environ | {"OMP_NUM_THREADS": "1"} if env is None else env
        request = {"argv": [str(part) for part in argv], "env": dict(given), "cwd": str(cwd or Path.cwd())}
        return Command(self._channel, request)

    def run(self, *argv: str | Path, timeout: float = 600, **where: Any) -> subprocess.CompletedProcess[str]:
        """Start it and wait for its end."""
        with self.command(*argv, **where) as command:
            out, err = command.communicate(timeout)
        return subprocess.CompletedProcess(argv, command.returncode, out, err)

    def world(
        self, size: int, *argv: str | Path, timeout: float = 600
    ) -> list[subprocess.CompletedProcess[str]]:
        """One process for each rank of a world, with the variables that torchrun sets; they all come to their end."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": f"{size}", "LOCAL_WORLD_SIZE": f"{size}"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
        with contextlib.ExitStack() as stack:
            commands = [
                stack.enter_context(
                    self.command(*argv, env=os.environ | world | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"})
                )
                for rank in range(size)
            ]
            printed = [command.communicate(timeout) for command in commands]
        return [
            subprocess.CompletedProcess(argv, command.returncode, *streams)
            for command, streams in zip(commands, printed, strict=True)
        ]

    def close(self) -> None:
        """End the program; it has nothing to finish."""
        self._channel.close()
        self._program.kill()
        self._program.wait()


class Command:
    """A forked command, to be used like a `subprocess.Popen` whose streams are text pipes; killed with its block."""

    def __init__(self, channel: socket.socket, request: dict[str, Any]) -> None:
        (out, his_out), (err, his_err), (self._status, his_status) = (os.pipe() for _ in range(3))
        socket.send_fds(channel, [json.dumps(request).encode()], [his_out, his_err, his_status])
        for end in (his_out, his_err, his_status):
            os.close(end)
        self.stdout: TextIO = os.fdopen(out)
        self.stderr: TextIO = os.fdopen(err)
        self.returncode: int | None = None
        self._told = b""
        self.pid = int(self._line(None) or -1)

    def _line(self, timeout: float | None) -> bytes:
        """The next line about the process, without its end; empty where none comes in time."""
        while b"\n" not in self._told and select.select([self._status], [], [], timeout)[0]:
            said = os.read(self._status, 64)
            assert said, "whoever waits for the command was killed"
            self._told += said
        line, _, self._told = self._told.partition(b"\n")
        return line

    def poll(self) -> int | None:
        if self.returncode is None and (line := self._line(0)):
            self.returncode = int(line)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            line = self._line(timeout)
            if not line:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(line)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """The rest of what it prints on stdout and on stderr, and its end; one that takes longer is killed."""
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(self.stderr.read()))
        watch = threading.Timer(timeout, self.kill)
        reader.start()
        watch.start()
        out = self.stdout.read()
        reader.join()
        self.wait()
        watch.cancel()
        return out, printed[0]

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()
        os.close(self._status)


# In the program itself.


def serve(channel: socket.socket) -> list[str] | None:
    """Fork a process for each request. Comes back in each of them, with its arguments, and at the end with None."""
    while True:
        message, files, _, _ = socket.recv_fds(channel, LARGEST, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not message:
            return None
        # Between this program and the command stands one that waits for it and tells its end.
        if os.fork():
            for file in files:
                os.close(file)
            continue
        channel.close()
        out, err, status = files
        command = os.fork()
        if command:
            os.close(out)
            os.close(err)
            with contextlib.suppress(BrokenPipeError):
                os.write(status, f"{command}\n".encode())
                code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
                os.write(status, f"{code}\n".encode())
            os._exit(0)
        os.close(status)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        request = json.loads(message)
        os.environ.clear()
        os.environ.update(request["env"])
        time.tzset()
        os.chdir(request["cwd"])
        return request["argv"]


def be(argv: list[str]) -> None:
    """Run what follows `python` on a command line as the main program."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *rest = argv
    if kind == "-m":
        sys.argv, sys.path[:1] = rest, [os.getcwd(), *paths]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:1] = ["-c", *rest[1:]], ["", *paths]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:1] = argv, [str(Path(kind).parent), *paths]
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    for name in ("torch._dynamo", "torch.utils.tensorboard", *COMMANDS):
        importlib.import_module(name)
    # A command that runs as the main program is none that was imported before.
    for name in COMMANDS:
        package, _, module = name.rpartition(".")
        del sys.modules[name]
        delattr(sys.modules[package], module)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.sendall(b"ready")
    if argv := serve(channel):
        be(argv)


if __name__ == "__main__":
    main()
