//! Both sides at once: a relay between any frontend and somebody else's daemon.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pyo3::{IntoPyObjectExt, exceptions::PyValueError, prelude::*, types::PyBytes};
use xenvirt_core::vhost_user::{
    Channel, Passed, Relay as Core, RelayControl, RelayEvent, RelayFrom, RelayOptions, RequestName,
    SignalKind,
};

use crate::{buffer::duplicate_fd, endpoint::Event, errors::Error};

/// A message that was passed on.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct RelayMessage {
    inner: Passed,
}

#[pymethods]
impl RelayMessage {
    /// Seconds since the relay was made.
    #[getter]
    fn time(&self) -> f64 {
        self.inner.time.as_secs_f64()
    }

    /// Who said it.
    #[getter]
    fn sender(&self) -> &'static str {
        match self.inner.from {
            RelayFrom::Frontend => "frontend",
            RelayFrom::Daemon => "daemon",
        }
    }

    /// On which channel.
    #[getter]
    fn channel(&self) -> &'static str {
        match self.inner.channel {
            Channel::Main => "main",
            Channel::Reverse => "reverse",
        }
    }

    /// The request's name.
    #[getter]
    fn name(&self) -> String {
        RequestName { channel: self.inner.channel, number: self.inner.header.request }.to_string()
    }

    /// The request's number.
    #[getter]
    fn number(&self) -> u32 {
        self.inner.header.request
    }

    /// True for an answer.
    #[getter]
    fn reply(&self) -> bool {
        self.inner.header.is_reply()
    }

    /// True if an acknowledgement is asked for.
    #[getter]
    fn need_reply(&self) -> bool {
        self.inner.header.needs_reply()
    }

    /// The payload.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.payload)
    }

    /// How many file descriptors went with it.
    #[getter]
    fn files(&self) -> usize {
        self.inner.files
    }

    /// All of it in words.
    #[getter]
    fn text(&self) -> &str {
        &self.inner.text
    }

    fn __repr__(&self) -> String {
        let arrow = match self.inner.from {
            RelayFrom::Frontend => "->",
            RelayFrom::Daemon => "<-",
        };
        format!("<RelayMessage {arrow} {}>", self.inner.text)
    }
}

/// Stands between one frontend at a time and a daemon.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Relay {
    control: Arc<RelayControl>,
    inner: Mutex<Option<Core>>,
}

impl Relay {
    fn lock(&self) -> MutexGuard<'_, Option<Core>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs with the relay, the GIL released: another thread may be waiting on it.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        run: impl FnOnce(&mut Core) -> Result<R, Error> + Send,
    ) -> Result<R, Error> {
        py.detach(|| match &mut *self.lock() {
            Some(relay) => run(relay),
            None => Err(PyValueError::new_err("the relay is closed").into()),
        })
    }
}

fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("a time of {seconds} seconds: {error}")))
}

#[pymethods]
impl Relay {
    #[new]
    #[pyo3(signature = (daemon, *, timeout = 5.0, trace = false, count = false, signals = false),
           text_signature = "(daemon, *, timeout=5.0, trace=False, count=False, signals=False)")]
    fn new(daemon: PathBuf, timeout: f64, trace: bool, count: bool, signals: bool) -> Result<Self, Error> {
        let options = RelayOptions { daemon, timeout: seconds(timeout)?, trace, count, signals };
        let relay = Core::new(options)?;
        Ok(Self { control: Arc::clone(relay.control()), inner: Mutex::new(Some(relay)) })
    }

    /// Frontends come to this listening socket from now on; the descriptor is duplicated.
    fn listen(&self, py: Python<'_>, fd: i32) -> Result<(), Error> {
        let socket = duplicate_fd(fd)?;
        self.with(py, |relay| Ok(relay.listen(socket)?))
    }

    /// Takes a connected socket; the descriptor is duplicated.
    fn adopt(&self, py: Python<'_>, fd: i32) -> Result<(), Error> {
        let socket = duplicate_fd(fd)?;
        self.with(py, |relay| {
            relay.adopt(socket);
            Ok(())
        })
    }

    /// Passes on what comes, until there is something to be told.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> Result<Py<PyAny>, Error> {
        let deadline = timeout.map(|left| seconds(left).map(|left| Instant::now() + left)).transpose()?;
        loop {
            let event = match self.with(py, |relay| Ok(relay.wait(deadline)?))? {
                RelayEvent::Passed(inner) => return Ok(RelayMessage { inner: *inner }.into_py_any(py)?),
                RelayEvent::Interrupted => {
                    py.check_signals()?;
                    continue;
                }
                RelayEvent::Connected => Event::Connected {},
                RelayEvent::Disconnected(reason) => Event::Disconnected { reason },
                RelayEvent::Warning(text) => Event::Notice { text },
                RelayEvent::Stopped => Event::Stopped {},
                _ => Event::TimedOut {},
            };
            return Ok(event.into_py_any(py)?);
        }
    }

    /// For each queue its kicks, chains, calls and errors.
    #[getter]
    fn counters(&self) -> Vec<(u64, u64, u64, u64)> {
        let counts = self.control.counts();
        counts.iter().map(|count| (count.kicks, count.chains, count.calls, count.errors)).collect()
    }

    /// Seconds since the relay was made: the clock of messages and signals.
    #[getter]
    fn time(&self) -> f64 {
        self.control.elapsed().as_secs_f64()
    }

    /// The kicks and calls since the last time: time, queue, kind, how often, chains by then.
    fn take_signals(&self) -> Vec<(f64, u8, &'static str, u64, u64)> {
        let name = |kind| match kind {
            SignalKind::Kick => "kick",
            SignalKind::Call => "call",
            SignalKind::Error => "error",
        };
        let signals = self.control.take_signals();
        let tuples = signals.iter().map(|signal| {
            (signal.time.as_secs_f64(), signal.queue, name(signal.kind), signal.times, signal.chains)
        });
        tuples.collect()
    }

    /// The virtio features that the present frontend chose.
    #[getter]
    fn negotiated_features(&self) -> u64 {
        self.control.negotiated().0
    }

    /// The protocol features that the present frontend chose.
    #[getter]
    fn negotiated_protocol_features(&self) -> u64 {
        self.control.negotiated().1
    }

    /// Ends every wait, now and for ever.
    fn stop(&self) {
        self.control.stop();
    }

    /// Ends both connections. Nothing can be waited for any more.
    fn close(&self, py: Python<'_>) {
        self.control.stop();
        py.detach(|| drop(self.lock().take()));
    }
}
