//! `xenvirt._native`: the core of xenvirt for Python. No logic stands here.

mod batch;
mod buffer;
mod devices;
mod driver;
mod endpoint;
mod errors;
mod file;
mod frontend;
mod frontend_values;
mod header;
mod memory;
mod queue;
mod relay;
mod timer;
mod xen;

/// The module, as Python sees it.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::{
        batch::{Batch, Columns, Mask},
        buffer::MemoryView,
        devices::{FileBlock, NullBlock},
        driver::DriverQueue,
        endpoint::{Endpoint, Event, HandedOver, QueueWorker},
        frontend::Frontend,
        frontend_values::{RawMessage, SharedRegion},
        memory::{FileRegion, GuestMemory},
        queue::{Chain, VirtQueue},
        relay::{Relay, RelayMessage},
        timer::interval_timer,
        xen::attached::AttachedMemory,
        xen::attached_grants::AttachedGrants,
        xen::evtchn::EventChannels,
        xen::foreign::{ForeignMapping, ForeignMemory, FrameFailure},
        xen::grants::{CopyFailure, GrantAllocator, GrantFailure, GrantMapping, GrantShare, GrantTable},
        xen::guest::GuestBus,
        xen::hypercall::HypercallBuffer,
        xen::ioreq::{IoRequest, IoreqServer},
        xen::model::{DeviceModel, InterruptFd},
        xen::sim::{SimulatedAccess, SimulatedDomain, SimulatedPrivcmd, SimulatedXen},
    };
}
