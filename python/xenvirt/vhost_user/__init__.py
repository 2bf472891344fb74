"""vhost-user: the socket that a device is served on, the protocol's numbers, and what a backend offers."""

from .inspection import Inspection, inspect
from .protocol import ProtocolFeature, Request, protocol_feature_names

__all__ = ["Inspection", "ProtocolFeature", "Request", "inspect", "protocol_feature_names"]
