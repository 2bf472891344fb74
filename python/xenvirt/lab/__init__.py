"""Real Xen on a machine without it: dom0 in an emulator, made of Debian's packages; see docs/lab.md.

General layout: packages (what is downloaded), kernel and archive (what it is made into), hypervisor and linux
(what is built instead, with building), system (the dom0), boot (the machine), agent (in dom0) and channel
(its other end), wheel (the xenvirt in it), session (a lab).
"""

from .session import Lab, down, is_up

__all__ = ["Lab", "down", "is_up"]
