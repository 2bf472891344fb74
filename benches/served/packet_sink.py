"""Our network device over a sink: `packet_sink.py SOCKET POLL`. It says what it counted in the end."""

import sys

from xenvirt import VhostUserSocket, serve
from xenvirt.devices import NetDevice, Sink


class TellingSink(Sink):
    """Says what it counted."""

    def detach(self) -> None:
        """The driver is gone."""
        print(f"packets: {self.frames}, bytes: {self.octets}", flush=True)


if __name__ == "__main__":
    serve(NetDevice(TellingSink()), VhostUserSocket(sys.argv[1]), poll=float(sys.argv[2]))
