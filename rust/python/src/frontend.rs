//! Driver side, over a socket: the frontend's end of a vhost-user connection.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyTuple},
};
use xenvirt_core::vhost_user::{
    Channel, Frontend as Core, FrontendError, Header, Message, Patience, ProtocolFeatures, RequestName,
    RingSetup, WireLog,
};

use crate::{
    buffer::duplicate_fd,
    errors::{Error, closed_link},
    frontend_values::{RawMessage, SharedRegion},
};

/// Lines of the wire log that an exception carries as a note.
const NOTED: usize = 16;

/// A connection to a vhost-user backend.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Frontend {
    inner: Mutex<Option<Core>>,
    /// Who is inside; a signal handler that runs in the middle of a call must not wait for itself.
    owner: Mutex<Option<ThreadId>>,
    log: WireLog,
    /// What a signal handler raised.
    raised: Arc<Mutex<Option<PyErr>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn duration(seconds: Option<f64>) -> PyResult<Duration> {
    let Some(seconds) = seconds else {
        return Ok(Duration::MAX);
    };
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!("timeout {seconds}, must be 0 or more seconds, or None")));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

impl Frontend {
    /// Waits with the GIL released; between the waits, Python's signal handlers run.
    fn patience(timeout: Option<f64>) -> PyResult<(Patience, Arc<Mutex<Option<PyErr>>>)> {
        let raised = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&raised);
        let interrupt = move || match Python::attach(|py| py.check_signals()) {
            Ok(()) => true,
            Err(error) => {
                *locked(&slot) = Some(error);
                false
            }
        };
        Ok((Patience { timeout: duration(timeout)?, interrupt: Some(Arc::new(interrupt)) }, raised))
    }

    fn ready(
        core: Core,
        raised: Arc<Mutex<Option<PyErr>>>,
        negotiate: bool,
        protocol_features: Option<u64>,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let log = core.wire_log();
        let this = Self { inner: Mutex::new(Some(core)), owner: Mutex::default(), log, raised };
        if negotiate {
            this.negotiate(py, protocol_features)?;
        }
        Ok(this)
    }

    /// Runs one call of the core. The GIL goes before the lock is waited for: who holds the lock may need it.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Core) -> Result<T, FrontendError> + Send,
    ) -> PyResult<T> {
        if *locked(&self.owner) == Some(thread::current().id()) {
            return Err(PyRuntimeError::new_err("a call of this frontend is under way in this very thread"));
        }
        let result = py.detach(|| {
            let mut inner = locked(&self.inner);
            *locked(&self.owner) = Some(thread::current().id());
            let result = inner.as_mut().map(work);
            *locked(&self.owner) = None;
            result
        });
        match result {
            Some(result) => result.map_err(|error| self.exception(py, error)),
            None => Err(closed_link()),
        }
    }

    fn exception(&self, py: Python<'_>, error: FrontendError) -> PyErr {
        raise(py, error, &self.raised, &self.log)
    }
}

/// The exception for an error: what a signal handler raised, or ours with the end of the wire log as a note.
fn raise(py: Python<'_>, error: FrontendError, raised: &Mutex<Option<PyErr>>, log: &WireLog) -> PyErr {
    if let (FrontendError::Interrupted(_), Some(exception)) = (&error, locked(raised).take()) {
        return exception;
    }
    let noted = error.is_of_the_peer();
    let exception = PyErr::from(Error::from(error));
    let lines = log.lines();
    if noted && !lines.is_empty() {
        let from = lines.len().saturating_sub(NOTED);
        let note = format!("The last messages:\n{}", lines.get(from..).unwrap_or_default().join("\n"));
        // Without its note the exception is still the right one.
        let _ = exception.value(py).call_method1("add_note", (note,));
    }
    exception
}

fn name(request: u32) -> RequestName {
    RequestName { channel: Channel::Main, number: request }
}

fn borrow(fd: &Option<OwnedFd>) -> Option<BorrowedFd<'_>> {
    fd.as_ref().map(AsFd::as_fd)
}

fn duplicate(fd: Option<i32>) -> PyResult<Option<OwnedFd>> {
    fd.map(duplicate_fd).transpose()
}

#[pymethods]
impl Frontend {
    #[new]
    #[pyo3(signature = (path, *, timeout = Some(5.0), protocol_features = None, negotiate = true),
           text_signature = "(path, *, timeout=5.0, protocol_features=None, negotiate=True)")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        timeout: Option<f64>,
        protocol_features: Option<u64>,
        negotiate: bool,
    ) -> PyResult<Self> {
        let (patience, raised) = Self::patience(timeout)?;
        let core = py.detach(|| Core::connect(&path, patience));
        let core = core.map_err(|error| raise(py, error, &raised, &WireLog::new(0)))?;
        Self::ready(core, raised, negotiate, protocol_features, py)
    }

    #[staticmethod]
    #[pyo3(signature = (fd, *, timeout = Some(5.0), protocol_features = None, negotiate = true),
           text_signature = "(fd, *, timeout=5.0, protocol_features=None, negotiate=True)")]
    fn from_fd(
        py: Python<'_>,
        fd: i32,
        timeout: Option<f64>,
        protocol_features: Option<u64>,
        negotiate: bool,
    ) -> PyResult<Self> {
        let (patience, raised) = Self::patience(timeout)?;
        Self::ready(Core::over(duplicate_fd(fd)?, patience), raised, negotiate, protocol_features, py)
    }

    #[pyo3(signature = (protocol_features = None))]
    fn negotiate(&self, py: Python<'_>, protocol_features: Option<u64>) -> PyResult<()> {
        let wanted = protocol_features.map_or(Core::PROTOCOL_FEATURES, ProtocolFeatures::from_bits_retain);
        self.call(py, |core| core.negotiate(wanted))
    }

    #[getter]
    fn offered_features(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |core| Ok(core.offered_features()))
    }

    #[getter]
    fn features(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |core| Ok(core.features()))
    }

    #[getter]
    fn offered_protocol_features(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |core| Ok(core.offered_protocol_features()))
    }

    #[getter]
    fn protocol_features(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |core| Ok(core.protocol_features().bits()))
    }

    #[getter]
    fn queue_count(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.call(py, |core| Ok(core.queue_count()))
    }

    fn set_features(&self, py: Python<'_>, features: u64) -> PyResult<()> {
        self.call(py, |core| core.set_features(features))
    }

    fn config<'py>(&self, py: Python<'py>, offset: u32, size: u32) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.call(py, |core| core.config(offset, size))?;
        Ok(PyBytes::new(py, &data))
    }

    fn set_config(&self, py: Python<'_>, offset: u32, data: PyBuffer<u8>) -> PyResult<()> {
        let data = data.to_vec(py)?;
        self.call(py, |core| core.set_config(offset, &data))
    }

    fn set_memory(&self, py: Python<'_>, regions: Vec<Py<SharedRegion>>) -> PyResult<()> {
        self.call(py, |core| {
            let regions: Vec<_> =
                regions.iter().map(|shared| (shared.get().region, shared.get().fd.as_fd())).collect();
            core.set_memory(&regions)
        })
    }

    #[getter]
    fn max_memory_slots(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, Core::max_memory_slots)
    }

    fn add_region(&self, py: Python<'_>, region: Py<SharedRegion>) -> PyResult<()> {
        self.call(py, |core| core.add_region(&region.get().region, region.get().fd.as_fd()))
    }

    fn remove_region(&self, py: Python<'_>, region: Py<SharedRegion>) -> PyResult<()> {
        self.call(py, |core| core.remove_region(&region.get().region))
    }

    #[pyo3(signature = (index, size, *, descriptors, available, used, base = 0, kick = None, call = None, err = None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn set_queue(
        &self,
        py: Python<'_>,
        index: u8,
        size: u16,
        descriptors: u64,
        available: u64,
        used: u64,
        base: u16,
        kick: Option<i32>,
        call: Option<i32>,
        err: Option<i32>,
    ) -> PyResult<()> {
        let (kick, call, err) = (duplicate(kick)?, duplicate(call)?, duplicate(err)?);
        self.call(py, |core| {
            core.set_ring(&RingSetup {
                index,
                size,
                descriptors,
                available,
                used,
                base,
                kick: borrow(&kick),
                call: borrow(&call),
                err: borrow(&err),
            })
        })
    }

    #[pyo3(signature = (index, enabled = true))]
    fn enable_queue(&self, py: Python<'_>, index: u8, enabled: bool) -> PyResult<()> {
        self.call(py, |core| core.enable_ring(index, enabled))
    }

    fn stop_queue(&self, py: Python<'_>, index: u8) -> PyResult<u32> {
        self.call(py, |core| core.stop_ring(index))
    }

    #[getter]
    fn status(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, Core::status)
    }

    fn set_status(&self, py: Python<'_>, status: u8) -> PyResult<()> {
        self.call(py, |core| core.set_status(status))
    }

    fn reset_device(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, Core::reset_device)
    }

    fn barrier(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, Core::barrier)
    }

    fn config_changes(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |core| core.take_config_changes())
    }

    #[getter]
    fn config_change_fd(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        self.call(py, |core| Ok(core.config_changes().map(|fd| fd.as_raw_fd())))
    }

    #[pyo3(signature = (request, payload = None, fds = Vec::new(), *, reply = true, need_reply = false, flags = None, size = None),
           text_signature = "($self, request, payload=None, fds=(), *, reply=True, need_reply=False, flags=None, size=None)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn raw(
        &self,
        py: Python<'_>,
        request: u32,
        payload: Option<PyBuffer<u8>>,
        fds: Vec<i32>,
        reply: bool,
        need_reply: bool,
        flags: Option<u32>,
        size: Option<u32>,
    ) -> PyResult<Option<RawMessage>> {
        let payload = payload.map_or(Ok(Vec::new()), |payload| payload.to_vec(py))?;
        let length = u32::try_from(payload.len())
            .map_err(|_| PyValueError::new_err("a payload of 4 GiB or more cannot be announced"))?;
        let fds = fds.into_iter().map(duplicate_fd).collect::<PyResult<Vec<_>>>()?;
        let mut header = Header::request(request, size.unwrap_or(length), need_reply);
        header.flags = flags.unwrap_or(header.flags);
        let message = self.call(py, |core| {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            core.send_raw(header, &payload, &fds)?;
            if reply { core.receive_raw(name(request)).map(Some) } else { Ok(None) }
        })?;
        Ok(message.map(|Message { header, payload, fds }| RawMessage {
            header,
            payload: PyBytes::new(py, &payload).unbind(),
            fds,
        }))
    }

    fn closed_within(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = duration(Some(timeout))?;
        self.call(py, |core| core.closed_within(timeout))
    }

    #[getter]
    fn wire_log(&self) -> Vec<String> {
        self.log.lines()
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.call(py, |core| Ok(core.as_fd().as_raw_fd()))
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        *locked(&self.owner) != Some(thread::current().id()) && py.detach(|| locked(&self.inner).is_none())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if *locked(&self.owner) == Some(thread::current().id()) {
            return Err(PyRuntimeError::new_err("a call of this frontend is under way in this very thread"));
        }
        py.detach(|| drop(locked(&self.inner).take()));
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = if self.closed(py) { "closed" } else { "connected" };
        format!("<Frontend {state}, {} lines of wire log>", self.log.lines().len())
    }
}
