"""vhost-user: the socket that a device is served on, and the protocol's own numbers."""

from .protocol import ProtocolFeature, Request

__all__ = ["ProtocolFeature", "Request"]
