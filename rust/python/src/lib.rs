//! `xenvirt._native`: the core of xenvirt for Python. No logic stands here.

mod buffer;
mod endpoint;
mod errors;
mod frontend;
mod memory;
mod queue;

/// The module, as Python sees it.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::{
        buffer::MemoryView,
        endpoint::{Endpoint, Event, QueueWorker},
        frontend::{Frontend, RawMessage, SharedRegion},
        memory::{FileRegion, GuestMemory},
        queue::{Chain, VirtQueue},
    };
}
