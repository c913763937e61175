# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``python server.py SOCKET MODULE ...``: imports these modules, and forks a process for each command of the pages.

The imports take ten seconds or more, and the pages have some fifty commands. Each command imports this package itself,
so that the import has the effects that it has for users.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import tiny

INTERRUPTED = 130


def serve(path: str, preloaded: list[str]) -> None:
    """Fork a process for each connection, until the process that started the server is gone.

    Args:
        path (str): Socket that clients connect to.
        preloaded (list[str]): Modules to import first.
    """
    parent = os.getppid()
    for name in preloaded:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        # Clients wait for this file, so it must appear when they can connect.
        listener.bind(f"{path}.new")
        listener.listen()
        Path(f"{path}.new").rename(path)
        listener.settimeout(1)
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.setblocking(True)  # noqa: FBT003
                if os.fork() == 0:
                    listener.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    watch(connection)
                connection.close()


def watch(connection: socket.socket) -> None:
    """Run the command of a client and answer with its exit status; end it if the client ends first."""
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    message = b""
    while len(message) < int.from_bytes(header, "big"):
        message += connection.recv(1 << 16)
    process = os.fork()
    if process == 0:
        connection.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        work(json.loads(message))
    for descriptor in descriptors:
        os.close(descriptor)
    status: int | None = None
    while status is None:
        gone, _, _ = select.select([connection], [], [], 0.05)
        if gone:
            os.kill(process, signal.SIGTERM)
            time.sleep(1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os._exit(0)
        finished, code = os.waitpid(process, os.WNOHANG)
        if finished:
            status = os.waitstatus_to_exitcode(code)
    # A shell reports a signal as a number above 128.
    connection.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def work(request: dict[str, Any]) -> None:
    """Run a command in this process as if Python had started for it."""
    status = 1
    try:
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for number, mode in enumerate(("r", "w", "w"))
        )
        run(request["command"])
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
        else:
            status = int(end.code or 0)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:  # noqa: BLE001  # as Python itself does
        traceback.print_exc()
    finally:
        # Handlers of logging may hold those that Python started with.
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(status)


def run(command: list[str]) -> None:
    """Run a command line.

    Args:
        command (list[str]): ``anomalib`` or ``anomalib-ddpm-st`` with arguments, ``python`` with a script or one of
            ``-c`` and ``-m``, or ``blocks``, which reads blocks of a page from standard input.
    """
    name, *arguments = command
    tiny.install()
    sys.path[0] = ""
    if name == "blocks":
        run_blocks()
        return
    sys.argv = [name, *arguments]
    if name == "anomalib-ddpm-st":
        from anomalib_ddpm_st.cli import main as own_main

        own_main()
    elif name == "anomalib":
        from anomalib.cli.cli import main

        main()
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})  # noqa: S102
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def run_blocks() -> None:
    """Run blocks of Python or YAML in one namespace; after each, write to a file whether it passed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line in sys.stdin:
        block = json.loads(line)
        passed = True
        try:
            if block["language"] == "yaml":
                check_config(block["source"])
            else:
                # Numbers of lines as in the page.
                source = "\n" * block["line"] + block["source"]
                exec(compile(source, block["path"], "exec"), namespace)  # noqa: S102
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            passed = False
        sys.stdout.flush()
        sys.stderr.flush()
        partial = Path(f"{block['answer']}.new")
        partial.write_text("passed" if passed else "failed", encoding="utf-8")
        partial.rename(block["answer"])


def check_config(text: str) -> None:
    """Parse a config; what it says about model, data and callbacks must be arguments of these.

    Args:
        text (str): Config or a part of one.
    """
    import yaml

    config = yaml.safe_load(text)
    if not isinstance(config, dict):
        return
    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Callback

    import anomalib_ddpm_st  # noqa: F401

    parser = ArgumentParser(exit_on_error=False)
    kinds: dict[str, Any] = {"model": AnomalibModule, "data": AnomalibDataModule, "callback": Callback}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind)
    parts = [(name, config[name]) for name in ("model", "data") if isinstance(config.get(name), dict)]
    parts += [("callback", part) for part in (config.get("trainer") or {}).get("callbacks", ())]
    for name, part in parts:
        # ``size`` prints the part of a config without the name of the model.
        complete = {"class_path": "DdpmSt", **part} if name == "model" else part
        if "class_path" in complete:
            parser.parse_object({name: complete})


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
