"""Xen, from a dom0 or a driver domain: memory of other domains by foreign mappings."""

from xenvirt._native import ForeignMapping, ForeignMemory, FrameFailure
from xenvirt.errors import ForeignMapError

__all__ = ["ForeignMapError", "ForeignMapping", "ForeignMemory", "FrameFailure"]
