//! Xen's devices for Python, a file for each.

pub mod attached;
pub mod attached_grants;
pub mod evtchn;
pub mod foreign;
pub mod grants;
pub mod guest;
pub mod hypercall;
pub mod ioreq;
pub mod model;
pub mod sim;
mod waiting;
