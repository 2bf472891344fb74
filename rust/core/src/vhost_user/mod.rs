//! vhost-user: one codec for both sides, the frontend, and the backend that stands on it.
//!
//! How a message passes: [`Connection`] cuts the byte stream into [`Message`]s, each with the file
//! descriptors that came with its bytes; [`FrontendRequest::decode`] (or [`Reply::decode`],
//! [`BackendRequest::decode`]) checks the payload and makes a value of it, once. Nothing behind that
//! line looks at raw bytes again. `encode` is the way back; `decode(encode(m)) == m`.
//!
//! The codec is not told which features are on. The one thing on the wire that negotiation changes is
//! the size of a memory region, and that is an argument: [`RegionFormat`].
//!
//! General layout: `code`, `features`, `payload`, `message`, `reply` and `reverse` are what is said, `cursor` and
//! `request_codec` how it stands on the wire, `wire` how it is cut out of a stream, `describe` and `log` how a
//! person reads it. `frontend` and `frontend_rings` stand on `exchange`, `connect`, `wait` and
//! `reverse_channel`; `backend`, with
//! `backend_negotiation` and `backend_rings`, on `memory_table`, and `server` gives it its connections. `relay`
//! stands between a frontend and a backend that are both somebody else's.

mod backend;
mod backend_negotiation;
mod backend_rings;
mod code;
mod connect;
mod cursor;
mod describe;
mod error;
mod exchange;
mod features;
mod frontend;
mod frontend_error;
mod frontend_rings;
mod log;
mod memory_table;
mod message;
mod payload;
mod relay;
mod reply;
mod request_codec;
mod reverse;
mod reverse_channel;
mod server;
mod wait;
mod wire;
mod xen_region;

pub use backend::{Backend, BackendError};
pub use backend_negotiation::OFFERED;
pub use code::{BackendCode, Channel, FrontendCode, RequestName};
pub use describe::{describe_backend_request, describe_reply, describe_request};
pub use error::ProtocolError;
pub use features::{ProtocolFeatures, Status, VringFlags, virtio_features};
pub use frontend::Frontend;
pub use frontend_error::FrontendError;
pub use frontend_rings::RingSetup;
pub use log::WireLog;
pub use memory_table::{MAX_MEMORY_SLOTS, MemorySlots, TableError};
pub use message::{FrontendRequest, Outgoing};
pub use payload::{
    ConfigSpace, DeviceStateTransfer, Inflight, IotlbMessage, LogArea, MAX_PAYLOAD, MemoryRegion,
    RegionFormat, SharedMemoryMap, Uuid, VringAddress, VringArea, VringState, XenMapFlags,
};
pub use relay::{
    From as RelayFrom, Passed, QueueCounts, RELAYED, Relay, RelayControl, RelayEvent, RelayOptions, Signal,
    SignalKind,
};
pub use reply::Reply;
pub use reverse::BackendRequest;
pub use server::VhostUserServer;
pub use wait::{Interrupt, Patience};
pub use wire::{Connection, Header, MAX_FDS, Message, Side};
pub use xen_region::{KernelDevices, XenDevices, XenRegionError};
