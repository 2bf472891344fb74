"""How ``xenvirt trace`` writes: as text, as a JSON object a line, and as a trace for Perfetto."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from xenvirt import RelayCounters, RelayMessage
from xenvirt.remote import Signal

ARROWS = {"frontend": "->", "daemon": "<-"}


class Trace(Protocol):
    """Takes down what passes, in the order in which it passes."""

    def message(self, message: RelayMessage) -> None:
        """A message passed."""

    def signals(self, signals: Sequence[Signal]) -> None:
        """Kicks and calls passed, some time ago."""

    def end(self, counters: Sequence[RelayCounters] | None) -> None:
        """Nothing more passes; None if nothing was counted."""


class TextTrace:
    """A line a message: seconds, who, what; at the end a table of what was counted."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def message(self, message: RelayMessage) -> None:
        reverse = "(reverse) " if message.channel == "reverse" else ""
        line = f"{message.time:11.6f} {ARROWS[message.sender]} {reverse}{message.text}"
        print(line, file=self._out, flush=True)

    def signals(self, signals: Sequence[Signal]) -> None:
        """They are in the table."""

    def end(self, counters: Sequence[RelayCounters] | None) -> None:
        if counters is None:
            return
        titles = ("queue", *RelayCounters._fields)
        print(*(f"{title:>10}" for title in titles), sep="", file=self._out)
        for index, queue in enumerate(counters):
            print(*(f"{number:>10}" for number in (index, *queue)), sep="", file=self._out, flush=True)


class JsonTrace:
    """An object a line: messages, and at the end one with the counters."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def message(self, message: RelayMessage) -> None:
        self._write(
            {
                "time": round(message.time, 6),
                "from": message.sender,
                "channel": message.channel,
                "request": message.name,
                "number": message.number,
                "reply": message.reply,
                "need_reply": message.need_reply,
                "files": message.files,
                "payload": message.payload.hex(),
                "text": message.text,
            }
        )

    def signals(self, signals: Sequence[Signal]) -> None:
        """They are in the counters."""

    def end(self, counters: Sequence[RelayCounters] | None) -> None:
        if counters is not None:
            self._write({"counters": [{"queue": i, **queue._asdict()} for i, queue in enumerate(counters)]})

    def _write(self, line: dict[str, object]) -> None:
        print(json.dumps(line), file=self._out, flush=True)


class PerfettoTrace:
    """The JSON of Chrome's trace event format, which Perfetto opens.

    A request that is answered is a slice, as long as the answer took; another one is an instant. Each queue
    is a track with its kicks and calls, and has a counter of its chains. The file is of use even if its end
    is missing.
    """

    MAIN, REVERSE, QUEUES = 1, 2, 10
    """Track numbers; a queue's is its index more than `QUEUES`."""

    def __init__(self, out: TextIO, daemon: str) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._pending: dict[str, list[RelayMessage]] = {"main": [], "reverse": []}
        self._queues: dict[int, int] = {}
        out.write("[")
        self._first = True
        self._name("process_name", 0, f"vhost-user {daemon}")
        self._name("thread_name", self.MAIN, "main channel")
        self._name("thread_name", self.REVERSE, "reverse channel")

    def message(self, message: RelayMessage) -> None:
        with self._lock:
            pending = self._pending[message.channel]
            if not message.reply:
                pending.append(message)
                return
            while pending:
                request = pending.pop(0)
                if request.number == message.number:
                    self._request(request, message)
                    break
                self._request(request, None)

    def signals(self, signals: Sequence[Signal]) -> None:
        with self._lock:
            for signal in signals:
                track = self.QUEUES + signal.queue
                if signal.queue not in self._queues:
                    self._queues[signal.queue] = -1
                    self._name("thread_name", track, f"queue {signal.queue}")
                event = {
                    "name": signal.kind,
                    "cat": "signal",
                    "ph": "i",
                    "s": "t",
                    "args": {"times": signal.times},
                }
                self._write(event, signal.time, track)
                if self._queues[signal.queue] != signal.chains:
                    self._queues[signal.queue] = signal.chains
                    name = f"chains of queue {signal.queue}"
                    event = {"name": name, "cat": "chains", "ph": "C", "args": {"chains": signal.chains}}
                    self._write(event, signal.time, track)

    def end(self, counters: Sequence[RelayCounters] | None) -> None:  # noqa: ARG002 - each signal is there
        with self._lock:
            for pending in self._pending.values():
                for request in pending:
                    self._request(request, None)
            self._out.write("\n]\n")
            self._out.flush()

    def _request(self, request: RelayMessage, reply: RelayMessage | None) -> None:
        track = self.MAIN if request.channel == "main" else self.REVERSE
        arguments: dict[str, object] = {"text": request.text, "files": request.files}
        event: dict[str, object] = {"name": request.name, "cat": request.sender, "args": arguments}
        if reply is None:
            event |= {"ph": "i", "s": "t"}
        else:
            event |= {"ph": "X", "dur": round((reply.time - request.time) * 1e6, 3)}
            arguments["answer"] = reply.text
        self._write(event, request.time, track)

    def _name(self, what: str, track: int, name: str) -> None:
        self._write({"name": what, "cat": "name", "ph": "M", "args": {"name": name}}, 0, track)

    def _write(self, event: Mapping[str, object], time: float, track: int) -> None:
        event = {**event, "ts": round(time * 1e6, 3), "pid": 1, "tid": track}
        self._out.write(("\n" if self._first else ",\n") + json.dumps(event))
        self._first = False
