//! An IOREQ server: it answers the accesses of a domain's vCPUs to addresses where no memory is.
//!
//! Xen writes what a vCPU wants into that vCPU's slot of a shared page, marks it ready and notifies the vCPU's event channel;
//! the vCPU sleeps. We take the request (ready -> in process), answer it (in process -> answered) and notify. Xen crashes the
//! domain when it sees a state that goes backwards, and a vCPU that is not answered sleeps for ever: so the way of a
//! slot is a type here, [`PendingRequest`], which answers also when it is dropped.
//!
//! From the bottom up: `request` is what a vCPU wants, `page` the slots, `server` the [`IoreqServer`] with its ports, `pending` a
//! request on its way, `left` what becomes of a server whose process is gone.

mod left;
mod page;
mod pending;
mod request;
mod server;
#[cfg(test)]
mod tests;

pub use page::{MAX_VCPUS, PageSource};
pub use pending::{PendingRequest, PerformError, Registers};
pub use request::{Request, RequestData, RequestKind, SingleAccess};
pub use server::{IoreqServer, ServerCalls, ServerError};
