#!/usr/bin/env python3
"""uds ls beside ss and lsof: one socket with many connections, all of them listed.

    bench/ls.py [CONNECTIONS]

It prints medians of five runs: time, processor time, and the largest memory. A
shell starts the programs, because the kernel never counts less memory for a
program than for the process that has started it.
"""
import ctypes
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the shell's child becomes this process's
children = []


def start(work):
    """Starts a process that holds what work returns, and waits until it does."""
    done, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = work()
        os.write(ready, b"x")
        signal.pause()
        os._exit(len(held))
    children.append(pid)
    return done


def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


with tempfile.TemporaryDirectory() as directory:
    path, uds = directory + "/s", directory + "/uds"
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.run(["go", "build", "-trimpath", "-ldflags=-s -w", "-o", uds, "./cmd/uds"], check=True, cwd=top, env={**os.environ, "CGO_ENABLED": "0"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        server = start(lambda: [listener.accept() for _ in range(count)])
        clients = start(lambda: [connect() for _ in range(count)])
    try:
        os.read(clients, 1), os.read(server, 1)
        for command in [[uds, "ls"], [uds, "ls", path], [uds, "ls", "--format", "json"], ["ss", "-xap"], ["lsof", "-nU"]]:
            elapsed, used, memory = [], [], []
            for _ in range(5):
                begin = time.monotonic()
                shell = ["sh", "-c", 'out=$1; shift; "$@" >"$out" 2>"$out.err" & echo $!', "sh", directory + "/out", *command]
                pid = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)
                _, status, usage = os.wait4(pid, 0)
                elapsed.append(time.monotonic() - begin)
                with open(directory + "/out", "rb") as out:
                    assert status == 0 and path.encode() in out.read(), command
                used.append(usage.ru_utime + usage.ru_stime)
                memory.append(usage.ru_maxrss / 1024)
            print(f"{' '.join(command).replace(directory + '/', ''):24} {statistics.median(elapsed):6.2f} s  {statistics.median(used):6.2f} s  {max(memory):5.0f} MiB")
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
