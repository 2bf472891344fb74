"""``xenvirt trace``: what a frontend and somebody's daemon say to each other."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from xenvirt import RelayMessage, RemoteDevice, Server
from xenvirt.errors import XenvirtError
from xenvirt.server import tell_ready

from .trace_formats import JsonTrace, PerfettoTrace, TextTrace, Trace
from .transport import Announced, number

SAMPLE_SECONDS = 0.1
"""How often kicks and calls are written out."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "trace",
        help="show what a vhost-user frontend and a daemon say to each other",
        description="Stands between any frontend and any daemon, and prints each message in words, until "
        "Ctrl-C. Start the daemon, then this, and give the frontend the socket of --listen. Memory, rings, "
        "kicks and calls go past it, unless they are to be counted.",
    )
    parser.add_argument("daemon", metavar="DAEMON_SOCKET", help="the path where the daemon listens")
    parser.add_argument(
        "--listen", metavar="SOCKET", required=True, help="make this Unix socket, for the frontend"
    )
    parser.add_argument(
        "--count",
        action="store_true",
        help="count kicks, calls and chains, by standing in the eventfds: each kick and call costs more then",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of text")
    parser.add_argument(
        "--perfetto",
        metavar="FILE",
        help="write a trace there, too, that ui.perfetto.dev and chrome://tracing open; with --count it has "
        "each kick and call",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="S",
        help="how long the daemon's socket is tried when a frontend comes (default 5)",
    )
    parser.add_argument(
        "--ready-fd",
        type=number(0, 1 << 20),
        metavar="N",
        help="write a newline there once the socket is open",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Traces until it is told to end."""
    if Path(arguments.daemon).absolute() == Path(arguments.listen).absolute():
        raise XenvirtError(f"{arguments.listen} is the daemon's socket; listen somewhere else")
    logging.basicConfig(level=logging.INFO, format="xenvirt: %(message)s")
    with ExitStack() as stack:
        traces: list[Trace] = [JsonTrace(sys.stdout) if arguments.json else TextTrace(sys.stdout)]
        if arguments.perfetto is not None:
            file = stack.enter_context(Path(arguments.perfetto).open("w", encoding="utf-8"))
            traces.append(PerfettoTrace(file, arguments.daemon))
        _trace(arguments, traces)
    return 0


def _trace(arguments: argparse.Namespace, traces: list[Trace]) -> None:
    errors: list[OSError] = []

    def told(message: RelayMessage) -> None:
        try:
            for trace in traces:
                trace.message(message)
        except OSError as error:  # a closed pipe, a full disk: there is nobody left to tell
            errors.append(error)
            server.stop()

    device = RemoteDevice(
        arguments.daemon,
        timeout=arguments.timeout,
        on_message=told,
        count=arguments.count,
        signals=arguments.count and arguments.perfetto is not None,
    )
    with Server() as server, server._stop_on_signals():
        relayed = server.add(device, Announced(arguments.listen))
        tell_ready(arguments.ready_fd)
        while not server.wait(SAMPLE_SECONDS):
            signals = relayed.take_signals()
            for trace in traces:
                trace.signals(signals)
    if errors:
        raise errors[0]
    signals = relayed.take_signals()
    for trace in traces:
        trace.signals(signals)
        trace.end(relayed.queue_counters if arguments.count else None)
