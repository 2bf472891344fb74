//! Device side: the event loop of one device behind one transport.

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pyo3::{IntoPyObjectExt, exceptions::PyValueError, prelude::*, types::PyTuple};
use xenvirt_core::{
    endpoint::{self, Control, Offer, Transport},
    in_process::InProcess,
    ring::RingConfig,
    vhost_user::VhostUserServer,
    xen_guest::{Record, XenGuest},
};

use crate::{
    buffer::duplicate_fd,
    driver::DriverQueue,
    errors::Error,
    memory::GuestMemory,
    queue::VirtQueue,
    xen::guest::{GuestBus, place},
};

/// What the device has to deal with. The queue of a kick is given as itself, without an event around it.
#[pyclass(frozen, module = "xenvirt._native")]
#[derive(Clone)]
pub enum Event {
    /// The driver is ready.
    Activate {},
    /// The driver wrote to the config space.
    ConfigWritten {
        /// In bytes.
        offset: u32,
        /// What was written.
        data: Vec<u8>,
    },
    /// The driver reset the device, or is gone.
    Reset {},
    /// The driver stopped a queue that was handed over.
    QueueStopped {
        /// Its number.
        index: u16,
    },
    /// A watched descriptor is ready.
    Watch {
        /// As `Endpoint.watch` gave it.
        number: u32,
    },
    /// A relay's frontend came, and the daemon took it.
    Connected {},
    /// The connection ended.
    Disconnected {
        /// Why, if it was the frontend's fault.
        reason: Option<String>,
    },
    /// Something for the log.
    Notice {
        /// In words.
        text: String,
    },
    /// The endpoint was stopped.
    Stopped {},
    /// The time of the wait ran out.
    TimedOut {},
}

/// The transports that a device of this process can stand behind.
enum AnyTransport {
    VhostUser(Box<VhostUserServer>),
    InProcess(InProcess),
    Xen(Box<XenGuest>),
}

impl AnyTransport {
    fn inner(&mut self) -> &mut dyn Transport {
        match self {
            Self::VhostUser(server) => &mut **server,
            Self::InProcess(direct) => direct,
            Self::Xen(guest) => &mut **guest,
        }
    }
}

impl Transport for AnyTransport {
    fn ready(&mut self, which: u32, control: &Arc<Control>, events: &mut VecDeque<endpoint::Event>) {
        self.inner().ready(which, control, events);
    }
    fn handled(&mut self, control: &Arc<Control>, events: &mut VecDeque<endpoint::Event>) {
        self.inner().handled(control, events);
    }
    fn config_changed(&mut self, control: &Arc<Control>) {
        self.inner().config_changed(control);
    }
    fn queue_failed(&mut self, index: u16, control: &Arc<Control>) {
        self.inner().queue_failed(index, control);
    }
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::VhostUser(server) => server.deadline(),
            Self::InProcess(direct) => direct.deadline(),
            Self::Xen(guest) => guest.deadline(),
        }
    }
}

/// The event loop of one device behind one transport.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Endpoint {
    control: Arc<Control>,
    inner: Mutex<Option<endpoint::Endpoint<AnyTransport>>>,
    queues: Vec<Py<VirtQueue>>,
}

impl Endpoint {
    fn lock(&self) -> MutexGuard<'_, Option<endpoint::Endpoint<AnyTransport>>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs with the endpoint, the GIL released: another thread may be waiting on it.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        run: impl FnOnce(&mut endpoint::Endpoint<AnyTransport>) -> Result<R, Error> + Send,
    ) -> Result<R, Error> {
        py.detach(|| match &mut *self.lock() {
            Some(endpoint) => run(endpoint),
            None => Err(PyValueError::new_err("the endpoint is closed").into()),
        })
    }

    fn event(&self, py: Python<'_>, event: endpoint::Event) -> PyResult<Py<PyAny>> {
        let event = match event {
            endpoint::Event::Kick(index) => {
                return Ok(self.queues[usize::from(index)].clone_ref(py).into_any());
            }
            endpoint::Event::Activate => Event::Activate {},
            endpoint::Event::ConfigWritten { offset, data } => Event::ConfigWritten { offset, data },
            endpoint::Event::Reset => Event::Reset {},
            endpoint::Event::QueueStopped(index) => Event::QueueStopped { index },
            endpoint::Event::Watch(number) => Event::Watch { number },
            endpoint::Event::Disconnected(reason) => Event::Disconnected { reason },
            endpoint::Event::Warning(text) => Event::Notice { text },
            endpoint::Event::Stopped => Event::Stopped {},
            _ => Event::TimedOut {},
        };
        event.into_py_any(py)
    }

    /// The queue of a kick, as Python has it.
    fn queue(&self, py: Python<'_>, index: u16) -> Option<Py<VirtQueue>> {
        self.queues.get(usize::from(index)).map(|queue| queue.clone_ref(py))
    }
}

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (features, queue_sizes, config, *, patience = 0.0, in_process = false))]
    fn new(
        py: Python<'_>,
        features: u64,
        queue_sizes: Vec<u16>,
        config: Vec<u8>,
        patience: f64,
        in_process: bool,
    ) -> Result<Self, Error> {
        let transport = if in_process {
            AnyTransport::InProcess(InProcess::default())
        } else {
            AnyTransport::VhostUser(Box::default())
        };
        let patience = Duration::try_from_secs_f64(patience);
        let patience =
            patience.map_err(|error| PyValueError::new_err(format!("the polling time: {error}")))?;
        let offer = Offer { features, queue_sizes, config, patience };
        let endpoint = endpoint::Endpoint::new(offer, transport)?;
        let control = Arc::clone(endpoint.control());
        let queues = control.queues.iter().map(|queue| Py::new(py, VirtQueue::new(Arc::clone(queue))));
        Ok(Self { queues: queues.collect::<PyResult<_>>()?, control, inner: Mutex::new(Some(endpoint)) })
    }

    /// Frontends come to this listening socket from now on; the descriptor is duplicated.
    fn listen(&self, py: Python<'_>, fd: i32) -> Result<(), Error> {
        let socket = duplicate_fd(fd)?;
        self.with(py, |endpoint| {
            endpoint.drive(|transport, control, _| match transport {
                AnyTransport::VhostUser(server) => Ok(server.listen(socket, control)?),
                _ => Err(not_a_socket()),
            })
        })
    }

    /// Takes a connected socket; the descriptor is duplicated.
    fn adopt(&self, py: Python<'_>, fd: i32) -> Result<(), Error> {
        let socket = duplicate_fd(fd)?;
        self.with(py, |endpoint| {
            endpoint.drive(|transport, control, events| match transport {
                AnyTransport::VhostUser(server) => Ok(server.adopt(socket, control, events)?),
                _ => Err(not_a_socket()),
            })
        })
    }

    /// The device is one of a Xen guest from now on.
    #[pyo3(signature = (bus, device_id, base, *, interrupt = None, memory = "any", kernel_kicks = false, record = None, in_turn = false))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn attach_guest(
        &self,
        py: Python<'_>,
        bus: &GuestBus,
        device_id: u32,
        base: u64,
        interrupt: Option<(String, u32)>,
        memory: &str,
        kernel_kicks: bool,
        record: Option<i32>,
        in_turn: bool,
    ) -> Result<(), Error> {
        let (bus, place) = (bus.get()?, place(bus, device_id, base, interrupt, memory, kernel_kicks)?);
        let record = record.map(duplicate_fd).transpose()?.map(|file| Record::new(file, in_turn));
        self.with(py, |endpoint| {
            endpoint.drive(|transport, control, events| {
                let guest = XenGuest::attach(&bus, &place, record, control, events)?;
                *transport = AnyTransport::Xen(Box::new(guest));
                Ok(())
            })
        })
    }

    /// How kicks and interrupts of a guest's device go, in words; None without a guest.
    fn describe_guest(&self, py: Python<'_>) -> Result<Option<String>, Error> {
        self.with(py, |endpoint| {
            endpoint.drive(|transport, _, _| match transport {
                AnyTransport::Xen(guest) => Ok(guest.describe()),
                _ => Ok(None),
            })
        })
    }

    /// The next event; says that the device is done with the one before.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> Result<Py<PyAny>, Error> {
        let deadline = timeout.map(deadline_after);
        loop {
            match self.with(py, |endpoint| Ok(endpoint.wait(deadline)?))? {
                endpoint::Event::Interrupted => py.check_signals()?,
                event => return Ok(self.event(py, event)?),
            }
        }
    }

    /// The next event if there is one; the caller says `processed` itself.
    fn poll(&self, py: Python<'_>) -> Result<Option<Py<PyAny>>, Error> {
        match self.with(py, |endpoint| Ok(endpoint.poll()?))? {
            endpoint::Event::TimedOut | endpoint::Event::Interrupted | endpoint::Event::Stopped => Ok(None),
            event => Ok(Some(self.event(py, event)?)),
        }
    }

    /// Says that the device is done with the kick of a queue: true if it has to look again.
    fn processed(&self, index: u16) -> bool {
        let queue = self.control.queues.get(usize::from(index));
        queue.is_some_and(|queue| queue.processed() && queue.kicked())
    }

    /// Seconds until `poll` is to be called again though nothing is ready.
    #[getter]
    fn timeout(&self, py: Python<'_>) -> Result<Option<f64>, Error> {
        let deadline = self.with(py, |endpoint| Ok(endpoint.deadline()))?;
        Ok(deadline.map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()))
    }

    /// Lets a thread of its own serve this queue.
    fn worker(&self, py: Python<'_>, index: u16) -> Result<QueueWorker, Error> {
        let queue =
            self.queue(py, index).ok_or_else(|| PyValueError::new_err(format!("no queue {index}")))?;
        Ok(QueueWorker { inner: self.control.worker(index)?, queue })
    }

    /// An in-process driver is ready.
    fn start(
        &self,
        py: Python<'_>,
        features: u64,
        memory: &GuestMemory,
        rings: Vec<Py<DriverQueue>>,
    ) -> Result<(), Error> {
        let memory = memory.snapshot()?;
        let rings = rings.iter().map(|ring| ring.get().setup(py)).collect::<Result<Vec<_>, Error>>()?;
        self.with(py, |endpoint| {
            endpoint.drive(|transport, control, events| match transport {
                AnyTransport::InProcess(direct) => {
                    Ok(direct.start(features, memory, rings, control, events)?)
                }
                _ => Err(not_in_process()),
            })
        })
    }

    /// An in-process driver resets the device.
    fn reset(&self, py: Python<'_>) -> Result<(), Error> {
        self.with(py, |endpoint| {
            endpoint.drive(|transport, control, events| match transport {
                AnyTransport::InProcess(direct) => {
                    direct.stop(control, events);
                    Ok(())
                }
                _ => Err(not_in_process()),
            })
        })
    }

    /// How often an in-process device changed its config space.
    #[getter]
    fn config_changes(&self, py: Python<'_>) -> Result<u64, Error> {
        self.with(py, |endpoint| {
            endpoint.drive(|transport, _, _| match transport {
                AnyTransport::InProcess(direct) => Ok(direct.config_changes()),
                _ => Err(not_in_process()),
            })
        })
    }

    /// All queues.
    #[getter]
    fn queues<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.queues)
    }

    /// The driver's memory: one object, whose table follows the transport.
    #[getter]
    fn memory(&self) -> GuestMemory {
        GuestMemory::of_session(Arc::clone(&self.control.memory))
    }

    /// The virtio features that the device offers.
    #[getter]
    fn offered_features(&self) -> u64 {
        self.control.features
    }

    /// The virtio features that the present driver agreed to.
    #[getter]
    fn negotiated_features(&self) -> u64 {
        self.control.negotiated().0
    }

    /// The vhost-user protocol features of the present connection.
    #[getter]
    fn negotiated_protocol_features(&self) -> u64 {
        self.control.negotiated().1
    }

    /// The config space.
    #[getter]
    fn config(&self) -> Vec<u8> {
        self.control.config()
    }

    /// Replaces the config space and has the driver told.
    fn update_config(&self, config: Vec<u8>) {
        self.control.update_config(config);
    }

    /// The driver's write to the config space; false if it does not lie inside.
    fn write_config(&self, offset: u32, data: Vec<u8>) -> bool {
        self.control.write_config(offset, &data)
    }

    /// Watches a descriptor, of which a duplicate is taken, for input.
    fn watch(&self, fd: i32) -> Result<u32, Error> {
        Ok(self.control.watch(duplicate_fd(fd)?)?)
    }

    /// Ends a watch.
    fn unwatch(&self, number: u32) {
        self.control.unwatch(number);
    }

    /// The device could not deal with this queue.
    fn fail_queue(&self, index: u16) {
        self.control.fail_queue(index);
    }

    /// Lets somebody else serve a running queue until the session ends.
    fn hand_over(&self, index: u16) -> Result<Option<HandedOver>, Error> {
        let handed = self.control.hand_over(index)?;
        Ok(handed.map(|endpoint::HandedOver { ring, kick, call }| HandedOver { index, ring, kick, call }))
    }

    /// Ends every wait, now and for ever.
    fn stop(&self) {
        self.control.stop();
    }

    /// Closes the transport. Nothing can be waited for any more.
    fn close(&self, py: Python<'_>) {
        self.control.stop();
        py.detach(|| drop(self.lock().take()));
    }

    /// A descriptor that is readable while an event is there.
    fn fileno(&self) -> i32 {
        self.control.as_fd().as_raw_fd()
    }
}

/// A queue that somebody else serves.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct HandedOver {
    index: u16,
    ring: RingConfig,
    kick: OwnedFd,
    call: OwnedFd,
}

#[pymethods]
impl HandedOver {
    /// Descriptors of the ring.
    #[getter]
    fn size(&self) -> u16 {
        self.ring.size
    }

    /// Where the three parts of the ring are.
    #[getter]
    fn addresses(&self) -> (u64, u64, u64) {
        (self.ring.descriptors, self.ring.available, self.ring.used)
    }

    /// The available index to go on from.
    #[getter]
    fn base(&self) -> u16 {
        self.ring.next_available
    }

    /// The available index to go on from when who served it is gone.
    fn resume_index(&self, py: Python<'_>, memory: &GuestMemory) -> Result<u16, Error> {
        let memory = memory.snapshot()?;
        py.detach(|| self.ring.resume_index(&memory)).map_err(|error| Error::Ring(self.index, error))
    }

    /// Signalled by the driver.
    #[getter]
    fn kick_fd(&self) -> i32 {
        self.kick.as_raw_fd()
    }

    /// To be signalled for the driver.
    #[getter]
    fn call_fd(&self) -> i32 {
        self.call.as_raw_fd()
    }
}

fn not_a_socket() -> Error {
    PyValueError::new_err("the endpoint is not one that has a socket").into()
}

fn not_in_process() -> Error {
    PyValueError::new_err("the endpoint is not an in-process one").into()
}

fn deadline_after(seconds: f64) -> Instant {
    let far = Duration::from_secs(86_400 * 365);
    Instant::now() + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(far).min(far)
}

/// The kicks of one queue, for a thread of its own.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct QueueWorker {
    inner: Arc<endpoint::QueueWorker>,
    queue: Py<VirtQueue>,
}

#[pymethods]
impl QueueWorker {
    /// Which queue it is.
    #[getter]
    fn index(&self) -> u16 {
        self.inner.index()
    }

    /// The queue, once it is kicked; None when the endpoint is stopped.
    fn wait(&self, py: Python<'_>) -> Result<Option<Py<VirtQueue>>, Error> {
        loop {
            match py.detach(|| self.inner.wait())? {
                endpoint::Event::Kick(_) => return Ok(Some(self.queue.clone_ref(py))),
                endpoint::Event::Interrupted => py.check_signals()?,
                _ => return Ok(None),
            }
        }
    }
}
