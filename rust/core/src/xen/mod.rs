//! Xen, by its stable interfaces: what the kernel's devices under /dev/xen offer to a program in a dom0 or a driver domain.
//!
//! [`abi`] has layouts and numbers; [`Privcmd`] is the device that maps frames of other domains; [`ForeignMapping`] is what
//! comes of it: every failed frame is known, none is silent.

pub mod abi;
#[cfg(test)]
pub(crate) mod fake_domain;
mod foreign;
mod privcmd;

pub use foreign::{ForeignMapError, ForeignMapping, FrameFailure, MapRequest};
pub(crate) use foreign::{fill, refused};
pub use privcmd::{ForeignCalls, Privcmd, Resource};
