"""Python processes forked from one that has imported the libraries.

``accelerate launch`` of two ranks starts three interpreters, each of which imports torch, transformers and datasets for
6 s of CPU time. :func:`python` returns a program that takes the same arguments as ``sys.executable`` (``-m`` or a
script), and runs them in a fork of a server that has imported these libraries. Arguments, environment, directory, open
files, network namespace, resource limits, parent, signals and exit codes are those of a new process; only variables
that a library reads while it is imported have no effect. Tests of these and of terminals use ``sys.executable``.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import multiprocessing
import os
import resource
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "accelerate.commands.launch",
    "datasets",
    "matplotlib",
    "numba",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",  # at the start of a W&B run
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "soundfile",
    "torch.distributed.run",
    "transformers.models.vits.modeling_vits",
    "transformers.models.vits.tokenization_vits",
    "vits_trainer.cli.train_vits",
    "wandb.sdk.launch.inputs.internal",
)
LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
PROGRAM = """import json, os, resource, signal, socket, sys
limits = {limit: resource.getrlimit(limit) for limit in json.loads(sys.argv[2])}
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
connection.connect(sys.argv[1])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: connection.send(str(number).encode()))
place = [os.getcwd(), list(limits.items()), sorted(os.sched_getaffinity(0))]
request = [os.getpid(), sys.argv[3:], dict(os.environ), *place]
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2, os.open("/proc/self/ns/net", os.O_RDONLY)])
code = int(connection.recv(64) or 1)
if code < 0:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def python() -> str:
    """Returns the path of the program. Starts the server at the first call; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="fork-server-"))
    (folder / "program.py").write_text(PROGRAM)
    words = [sys.executable, "-ISX", "utf8", str(folder / "program.py"), str(folder / "socket"), json.dumps(LIMITS)]
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, "-m", __name__, str(folder / "socket")], env=environment, cwd=ROOT)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.terminate)
    while not (folder / "socket").exists():
        assert server.poll() is None, "the fork server ended"
        time.sleep(0.05)
    return str(program)


def serve(path: str) -> None:
    """Forks once for each connection, until the process is terminated."""
    import torch

    from vits_trainer.models.alignment import search

    for library in LIBRARIES:
        __import__(library)
    one = torch.ones(1, dtype=torch.int64)
    search(torch.zeros(1, 1, 1), one, one)  # loads numba's compiled code
    # wandb's folder for media is removed at the end of the server, not of the first fork.
    media = sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP
    atexit.unregister(media.cleanup)
    media._finalizer.atexit = False
    # What a program starts with its own interpreter is forked, too, except workers of multiprocessing.
    multiprocessing.set_executable(sys.executable)
    sys.executable = str(Path(path).with_name("python"))
    gc.freeze()  # a collection of all imported objects at the end of each fork takes two seconds
    # The signals of a terminal's process group are for the programs, which pass them on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path + ".new")
        listener.listen(16)
        Path(path + ".new").rename(path)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                supervise(connection)
            connection.close()
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                os.wait()


def supervise(connection: socket.socket) -> None:
    """Runs the program's request in another fork, passes signals on, and returns the exit code. Does not return."""
    request, (*files, network), _, _ = socket.recv_fds(connection, 1 << 20, 4)
    process = os.fork()
    if process == 0:
        connection.close()
        enter_network(network)
        become(*json.loads(request), files)
    for file in (*files, network):
        os.close(file)
    ended = os.pidfd_open(process)
    while True:
        ready, _, _ = select.select([ended, connection], [], [])
        if ended in ready:
            _, status = os.waitpid(process, 0)
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(BrokenPipeError):  # the program was killed
                connection.send(str(code).encode())
            os._exit(0)
        number = connection.recv(64)
        os.kill(process, int(number) if number else signal.SIGKILL)


def enter_network(file: int) -> None:
    """Moves this process to the network namespace of ``file``, and closes it. Another namespace than its own: root."""
    if os.fstat(file).st_ino != Path("/proc/self/ns/net").stat().st_ino:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.setns(file, 0) == 0, os.strerror(ctypes.get_errno())
    os.close(file)


def adopt_parent_of(program: int) -> None:
    """Makes this process, but not its own forks, report the parent of process ``program`` as its parent."""
    parent_of, parent_here = psutil.Process.ppid, os.getppid
    stat = Path(f"/proc/{program}/stat")
    os.getppid = lambda: int(stat.read_text().rpartition(")")[2].split()[1])
    os.register_at_fork(after_in_child=lambda: setattr(os, "getppid", parent_here))
    psutil.Process.ppid = lambda process: os.getppid() if process.pid == os.getpid() else parent_of(process)


def become(
    program: int, words: list[str], variables: dict[str, str], directory: str, limits: list[list], cpus: list[int],
    files: list[int],
) -> None:  # fmt: skip
    """Runs ``python *words`` in this process, in the place of process ``program``. Does not return."""
    adopt_parent_of(program)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(directory)
    for limit, values in limits:
        resource.setrlimit(limit, tuple(values))
    os.sched_setaffinity(0, cpus)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.path[:] = [*filter(None, variables.get("PYTHONPATH", "").split(":")), *sys.path[1:]]
    words = words[1:] if words[0] == "-u" else words
    code: object = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, directory)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
    # What the interpreter does at its end, but for the release of all imported modules, which takes half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(sys.argv[1])
