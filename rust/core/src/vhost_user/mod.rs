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
//! General layout: `code`, `features`, `payload`, `message`, `reply`, `reverse` and `wire` are the codec,
//! `describe` and `log` put it in words; `frontend` stands on `exchange`, `connect`, `wait` and
//! `reverse_channel`.

mod backend;
mod code;
mod connect;
mod describe;
mod error;
mod exchange;
mod features;
mod frontend;
mod frontend_error;
mod log;
mod memory_table;
mod message;
mod payload;
mod reply;
mod reverse;
mod reverse_channel;
mod server;
mod wait;
mod wire;

pub use backend::{Backend, BackendError, OFFERED};
pub use code::{BackendCode, Channel, FrontendCode, RequestName};
pub use describe::{describe_reply, describe_request};
pub use error::ProtocolError;
pub use features::{ProtocolFeatures, Status, VringFlags, virtio_features};
pub use frontend::{Frontend, RingSetup};
pub use frontend_error::FrontendError;
pub use log::WireLog;
pub use memory_table::{MAX_MEMORY_SLOTS, MemorySlots, TableError};
pub use message::{FrontendRequest, Outgoing};
pub use payload::{
    ConfigSpace, DeviceStateTransfer, Inflight, IotlbMessage, LogArea, MAX_PAYLOAD, MemoryRegion,
    RegionFormat, SharedMemoryMap, Uuid, VringAddress, VringArea, VringState, XenMapFlags,
};
pub use reply::Reply;
pub use reverse::BackendRequest;
pub use server::VhostUserServer;
pub use wait::{Interrupt, Patience};
pub use wire::{Connection, Header, MAX_FDS, Message, Side};
