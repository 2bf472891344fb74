//! The core of xenvirt: guest memory, virtqueues, vhost-user and (next) Xen, as plain Rust.
//!
//! The way of a request: kick -> [`event_loop`] -> [`ring`] reads and validates a chain -> the device
//! -> the used ring -> call. The control plane stands beside it: a vhost-user message changes an
//! immutable snapshot ([`memory::GuestMemory`], the ring addresses), and the data path takes the new
//! snapshot up between two requests.

pub mod devices;
pub mod endpoint;
pub mod event_loop;
pub mod in_process;
pub mod memory;
pub mod mmio;
pub mod ring;
pub mod vhost_user;
pub mod xen;
pub mod xen_guest;
