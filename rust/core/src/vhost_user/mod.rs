//! vhost-user: one codec for both sides, the frontend, and the backend that stands on it.
//!
//! How a message passes: [`Connection`] cuts the byte stream into [`Message`]s, each with the file
//! descriptors that came with its bytes; [`FrontendRequest::decode`] (or [`Reply::decode`],
//! [`BackendRequest::decode`]) checks the payload and makes a value of it, once. Nothing behind that
//! line looks at raw bytes again. `encode` is the way back; `decode(encode(m)) == m`.
//!
//! The codec is not told which features are on. The one thing on the wire that negotiation changes is
//! the size of a memory region, and that is an argument: [`RegionFormat`].

mod backend;
mod code;
mod error;
mod features;
mod memory_table;
mod message;
mod payload;
mod reply;
mod reverse;
mod server;
mod wire;

pub use backend::{Backend, BackendError, OFFERED};
pub use code::{BackendCode, Channel, FrontendCode, RequestName};
pub use error::ProtocolError;
pub use features::{ProtocolFeatures, Status, VringFlags, virtio_features};
pub use memory_table::{MAX_MEMORY_SLOTS, MemorySlots, TableError};
pub use message::{FrontendRequest, Outgoing};
pub use payload::{
    ConfigSpace, DeviceStateTransfer, Inflight, IotlbMessage, LogArea, MAX_PAYLOAD, MemoryRegion,
    RegionFormat, SharedMemoryMap, Uuid, VringAddress, VringArea, VringState, XenMapFlags,
};
pub use reply::Reply;
pub use reverse::BackendRequest;
pub use server::VhostUserServer;
pub use wire::{Connection, Header, MAX_FDS, Message, Side};
