//! The one crossing from errors of the core to exceptions of `xenvirt.errors`.

use crate::xen::{
    foreign::failures_of,
    grants::{copy_failures, grant_failures},
};
use pyo3::{
    exceptions::{PyOSError, PyValueError},
    import_exception,
    prelude::*,
};
use rustix::io::Errno;
use xenvirt_core::{
    devices::ProcessError,
    in_process::StartError,
    memory::{MapError, MemoryError},
    ring::{BatchError, ChainError, DriverError, RingError},
    vhost_user::{FrontendError, ProtocolError},
    xen::{CallError, ForeignMapError, GrantCopyError, GrantMapError, OpenError, ServerError, ShareError},
    xen_guest::GuestError,
};

mod python {
    //! The classes, defined in Python.
    use super::import_exception;
    import_exception!(xenvirt.errors, DeviceFailedError);
    import_exception!(xenvirt.errors, DisconnectedError);
    import_exception!(xenvirt.errors, ForeignMapError);
    import_exception!(xenvirt.errors, ForkError);
    import_exception!(xenvirt.errors, GrantCopyError);
    import_exception!(xenvirt.errors, GrantMapError);
    import_exception!(xenvirt.errors, GuestAddressError);
    import_exception!(xenvirt.errors, GuestMemoryFault);
    import_exception!(xenvirt.errors, LinkTimeoutError);
    import_exception!(xenvirt.errors, MapError);
    import_exception!(xenvirt.errors, MemoryTableError);
    import_exception!(xenvirt.errors, NegotiationError);
    import_exception!(xenvirt.errors, ProtocolError);
    import_exception!(xenvirt.errors, QueueFullError);
    import_exception!(xenvirt.errors, QueueStoppedError);
    import_exception!(xenvirt.errors, ReadOnlyMemoryError);
    import_exception!(xenvirt.errors, RequestRefusedError);
    import_exception!(xenvirt.errors, RingError);
    import_exception!(xenvirt.errors, StaleChainError);
    import_exception!(xenvirt.errors, XenCallError);
}

/// Whatever a function of this module can fail with; `?` makes it, Python sees the exception.
#[derive(Debug)]
pub enum Error {
    /// An access to guest memory, or its table.
    Memory(MemoryError),
    /// A mapping.
    Map(MapError),
    /// A rule of the ring, of the queue of that index.
    Ring(u16, RingError),
    /// One chain.
    Chain(ChainError),
    /// The queue of that index of a native device.
    Process(u16, ProcessError),
    /// Many chains.
    Batch(BatchError),
    /// A driver's queue of that index.
    Driver(u16, DriverError),
    /// A message.
    Protocol(ProtocolError),
    /// A frontend's call.
    Frontend(FrontendError),
    /// A foreign mapping.
    Foreign(ForeignMapError),
    /// A device of Xen's that could not be opened.
    Open(OpenError),
    /// A call to the hypervisor.
    Call(CallError),
    /// An IOREQ server that could not be made.
    Server(ServerError),
    /// A device that cannot be served to a guest.
    Guest(GuestError),
    /// Grants that were to be mapped.
    Grant(GrantMapError),
    /// Grants that were to be copied.
    GrantCopy(GrantCopyError),
    /// Pages that were to be granted.
    Share(ShareError),
    /// In-process driver and device.
    Start(StartError),
    /// The kernel, where no object of ours is to blame.
    Errno(Errno),
    /// An exception already.
    Python(PyErr),
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Memory(error) => memory(&error),
            Error::Map(error) => map(&error),
            Error::Ring(index, error) => ring(Some(index), &error),
            Error::Chain(error) => chain(&error),
            Error::Process(index, error) => process(index, &error),
            Error::Batch(error) => batch(&error),
            Error::Driver(index, error) => driver(index, &error),
            Error::Protocol(error) => protocol(&error),
            Error::Frontend(error) => frontend(&error),
            Error::Foreign(error) => foreign(error.to_string(), &error),
            Error::Open(error) => open(&error),
            Error::Call(error) => call(&error),
            Error::Server(ref whole @ ServerError::Map(ref error)) => foreign(whole.to_string(), error),
            Error::Server(ServerError::Call(error)) => call(&error),
            Error::Server(error) => python::XenCallError::new_err(error.to_string()),
            Error::Guest(error) => guest(error),
            Error::Grant(error) => grant(error.to_string(), &error),
            Error::GrantCopy(error) => grant_copy(&error),
            Error::Share(error) => share(&error),
            Error::Start(error) => start(&error),
            Error::Errno(errno) => os_error(errno, &errno.to_string()),
            Error::Python(error) => error,
        }
    }
}

fn os_error(errno: Errno, text: &str) -> PyErr {
    // OSError chooses its subclass (PermissionError, ...) by the number.
    PyOSError::new_err((errno.raw_os_error(), text.to_owned()))
}

fn open(error: &OpenError) -> PyErr {
    PyOSError::new_err((error.errno.raw_os_error(), error.reason(), error.path))
}

fn memory(error: &MemoryError) -> PyErr {
    let text = error.to_string();
    match error {
        MemoryError::OutOfRange { .. } | MemoryError::NotUser { .. } | MemoryError::Crossing { .. } => {
            python::GuestAddressError::new_err(text)
        }
        MemoryError::BadTable(_) => python::MemoryTableError::new_err(text),
        MemoryError::ReadOnly { .. } => python::ReadOnlyMemoryError::new_err(text),
        MemoryError::Fault { .. } | MemoryError::Gone => python::GuestMemoryFault::new_err(text),
        MemoryError::Unreachable { source: MapError::Foreign(error), .. } => foreign(text, error),
        MemoryError::Unreachable { source: MapError::Grant(error), .. } => grant(text, error),
        MemoryError::Unreachable { source, .. } => python::MapError::new_err((text, errno(source))),
        MemoryError::Forked { .. } => python::ForkError::new_err(text),
        MemoryError::Closed => PyValueError::new_err(text),
    }
}

fn map(error: &MapError) -> PyErr {
    match error {
        MapError::Foreign(error) => foreign(error.to_string(), error),
        MapError::Grant(error) => grant(error.to_string(), error),
        _ => python::MapError::new_err((error.to_string(), errno(error))),
    }
}

/// 0 where the kernel was not asked.
fn errno(error: &MapError) -> i32 {
    error.errno().map_or(0, Errno::raw_os_error)
}

fn ring(index: Option<u16>, error: &RingError) -> PyErr {
    let text = match index {
        Some(index) => format!("queue {index}: {error}"),
        None => error.to_string(),
    };
    match error {
        RingError::Forked => python::ForkError::new_err(text),
        RingError::MemoryFault => python::GuestMemoryFault::new_err(text),
        RingError::DeviceFailed => python::DeviceFailedError::new_err((text, index)),
        _ => python::RingError::new_err((text, error.rule(), index)),
    }
}

fn chain(error: &ChainError) -> PyErr {
    let text = error.to_string();
    match error {
        ChainError::Stale { .. } => python::StaleChainError::new_err(text),
        ChainError::Completed { .. } | ChainError::DoesNotFit { .. } => PyValueError::new_err(text),
        ChainError::Fault { .. } => python::GuestMemoryFault::new_err(text),
        ChainError::Forked { .. } => python::ForkError::new_err(text),
        ChainError::Io { errno, .. } => os_error(*errno, &text),
        _ => python::StaleChainError::new_err(text),
    }
}

fn process(index: u16, error: &ProcessError) -> PyErr {
    match error {
        ProcessError::Ring(error) => ring(Some(index), error),
        ProcessError::Kernel(errno) => os_error(*errno, &error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

fn batch(error: &BatchError) -> PyErr {
    let text = error.to_string();
    match error {
        BatchError::Stale => python::StaleChainError::new_err(text),
        BatchError::Fault => python::GuestMemoryFault::new_err(text),
        BatchError::Forked => python::ForkError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

fn driver(index: u16, error: &DriverError) -> PyErr {
    let text = format!("queue {index}: {error}");
    match error {
        DriverError::Ring(error) => ring(Some(index), error),
        DriverError::Memory(error) => memory(error),
        DriverError::Full { .. } | DriverError::NoMemory { .. } => python::QueueFullError::new_err(text),
        DriverError::EventFd(errno) => os_error(*errno, &text),
        _ => PyValueError::new_err(text),
    }
}

fn protocol(error: &ProtocolError) -> PyErr {
    let text = error.to_string();
    if error.is_disconnect() {
        python::DisconnectedError::new_err(text)
    } else {
        python::ProtocolError::new_err((text, error.request()))
    }
}

fn frontend(error: &FrontendError) -> PyErr {
    let text = error.to_string();
    match error {
        FrontendError::Connect { errno: Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN, .. }
        | FrontendError::Closed { .. }
        | FrontendError::Ended(_) => python::DisconnectedError::new_err(text),
        FrontendError::Connect { errno, .. } => os_error(*errno, &text),
        FrontendError::NoSocket(_) => os_error(Errno::NOTSOCK, &text),
        FrontendError::Timeout { .. } => python::LinkTimeoutError::new_err(text),
        FrontendError::Interrupted(_) => pyo3::exceptions::PyInterruptedError::new_err(text),
        FrontendError::Protocol(error) => protocol(error),
        FrontendError::Refused { request, value } => {
            python::RequestRefusedError::new_err((text, request.to_string(), *value))
        }
        FrontendError::NotNegotiated { .. } | FrontendError::XenMmapNeeded { .. } => {
            python::NegotiationError::new_err(text)
        }
        FrontendError::Argument { .. } => pyo3::exceptions::PyValueError::new_err(text),
        FrontendError::Answer { request, .. } => python::ProtocolError::new_err((text, request.to_string())),
        _ => python::ProtocolError::new_err(text),
    }
}

/// The exception for a link that the program itself has closed.
pub fn closed_link() -> PyErr {
    python::QueueStoppedError::new_err("the link is closed")
}

fn foreign(text: String, error: &ForeignMapError) -> PyErr {
    let failures = match error {
        ForeignMapError::Count(_) => return PyValueError::new_err(text),
        ForeignMapError::Frames { failures, .. } => failures.as_slice(),
        _ => &[],
    };
    let errno = error.errno().map_or(0, Errno::raw_os_error);
    Python::attach(|py| match failures_of(py, failures) {
        Ok(failures) => python::ForeignMapError::new_err((text, errno, failures.unbind())),
        Err(error) => error,
    })
}

fn call(error: &CallError) -> PyErr {
    let text = error.to_string();
    match error {
        CallError::Refused { errno, .. } => python::XenCallError::new_err((text, errno.raw_os_error())),
        CallError::Forked { .. } => python::ForkError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

fn guest(error: GuestError) -> PyErr {
    let text = error.to_string();
    match error {
        GuestError::Server(error) => Error::Server(error).into(),
        GuestError::Open(error) => open(&error),
        GuestError::Call(error) => call(&error),
        GuestError::Memory { source, .. } => memory(&source),
        GuestError::System { errno, .. } => os_error(errno, &text),
        _ => PyValueError::new_err(text),
    }
}

fn grant(text: String, error: &GrantMapError) -> PyErr {
    let failures = match error {
        GrantMapError::Count(_) | GrantMapError::Notify { .. } | GrantMapError::Own { .. } => {
            return PyValueError::new_err(text);
        }
        GrantMapError::Grants { failures, .. } => failures.as_slice(),
        _ => &[],
    };
    let errno = error.errno().map_or(0, Errno::raw_os_error);
    Python::attach(|py| match grant_failures(py, failures) {
        Ok(failures) => python::GrantMapError::new_err((text, errno, failures.unbind())),
        Err(error) => error,
    })
}

fn grant_copy(error: &GrantCopyError) -> PyErr {
    let text = error.to_string();
    let failures = match error {
        GrantCopyError::Range { .. } => return PyValueError::new_err(text),
        GrantCopyError::Pages { failures, .. } => failures.as_slice(),
        _ => &[],
    };
    let errno = error.errno().map_or(0, Errno::raw_os_error);
    Python::attach(|py| match copy_failures(py, failures) {
        Ok(failures) => python::GrantCopyError::new_err((text, errno, failures.unbind())),
        Err(error) => error,
    })
}

fn share(error: &ShareError) -> PyErr {
    match error.errno() {
        None => PyValueError::new_err(error.to_string()),
        Some(errno) => python::MapError::new_err((error.to_string(), errno.raw_os_error())),
    }
}

fn start(error: &StartError) -> PyErr {
    match error {
        StartError::Ring { index, error } => ring(u16::try_from(*index).ok(), error),
        StartError::Memory(error) => memory(error),
        StartError::Kick(errno) => os_error(*errno, &error.to_string()),
        StartError::Busy => python::QueueStoppedError::new_err(error.to_string()),
        _ => python::NegotiationError::new_err(error.to_string()),
    }
}

macro_rules! from {
    ($($variant:ident($source:ty)),* $(,)?) => {
        $(impl From<$source> for Error {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from!(
    Memory(MemoryError),
    Map(MapError),
    Chain(ChainError),
    Batch(BatchError),
    Protocol(ProtocolError),
    Frontend(FrontendError),
    Foreign(ForeignMapError),
    Open(OpenError),
    Call(CallError),
    Server(ServerError),
    Guest(GuestError),
    Grant(GrantMapError),
    GrantCopy(GrantCopyError),
    Share(ShareError),
    Start(StartError),
    Errno(Errno),
    Python(PyErr),
);
