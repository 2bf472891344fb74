//! Xen, by its stable interfaces: what the kernel's devices under /dev/xen offer to a program in a dom0 or a driver domain.
//!
//! [`abi`] has layouts and numbers; [`Privcmd`] is the device that maps frames of other domains; [`ForeignMapping`] is what
//! comes of it: every failed frame is known, none is silent. [`EventChannels`] wake and are woken; a [`DeviceModel`] makes and
//! feeds what stands in for a device of a domain; an [`IoreqServer`] answers its vCPUs. [`Gntdev`] maps pages that other domains granted
//! ([`GrantMapping`]), [`Gntalloc`] grants ours ([`GrantShare`]). [`sim`] answers the same calls without a Xen, for tests.

pub mod abi;
mod call_error;
mod dm_op;
mod eventfd;
mod evtchn;
#[cfg(test)]
pub(crate) mod fake_domain;
#[cfg(test)]
pub(crate) mod fake_grants;
#[cfg(test)]
pub(crate) mod fake_model;
mod foreign;
mod gntalloc;
mod gntdev;
mod grant;
mod grant_copy;
mod hypercall;
mod ioreq;
mod open;
mod privcmd;
mod share;
pub mod sim;

pub use call_error::CallError;
pub use dm_op::{DeviceModel, DeviceModelCalls, Interrupt, IoRange};
pub use eventfd::{EventFdCalls, EventFdSupport, InterruptFd, Kick};
pub use evtchn::{EventCalls, EventChannels, Evtchn};
pub use foreign::{ForeignMapError, ForeignMapping, FrameFailure, MapRequest};
pub(crate) use foreign::{fill, refused};
pub use gntalloc::{Gntalloc, ShareCalls};
pub use gntdev::{Gntdev, Grant, GrantCalls, UnmapNotify};
pub use grant::{GrantFailure, GrantMapError, GrantMapping, GrantRequest};
pub(crate) use grant_copy::copy_ranges;
pub use grant_copy::{CopyFailure, GrantCopyError, check_copy, copy_from_grants, copy_to_grants};
pub use hypercall::{BufferKind, HypercallBuffer};
pub use ioreq::{
    IoreqServer, MAX_VCPUS, PageSource, PendingRequest, PerformError, Registers, Request, RequestData,
    RequestKind, ServerCalls, ServerError, SingleAccess,
};
pub use open::OpenError;
pub use privcmd::{ForeignCalls, Privcmd, Resource};
pub use share::{GrantShare, ShareError, ShareRequest};
