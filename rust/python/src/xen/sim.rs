//! A simulated hypervisor, for tests.

use std::{
    ops::Range,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use pyo3::{
    exceptions::{PyTimeoutError, PyTypeError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBytes, PyRange, PyTuple},
};
use xenvirt_core::xen::{
    CallError, Interrupt, RequestData, RequestKind,
    sim::{self, AccessResult, Hypervisor, Kind, NewDomain, VcpuAccess},
};

use super::{attached::address_ranges, waiting::deadline};
use crate::errors::Error;

/// How long a wait goes on before signals have their handlers run.
const SLICE: Duration = Duration::from_millis(100);

/// The calls of a device, and its descriptor if it is one of the kernel's.
pub struct Opened<T: ?Sized> {
    pub calls: Arc<T>,
    descriptor: Option<Arc<dyn AsFd + Send + Sync>>,
}

impl<T: ?Sized> Opened<T> {
    /// A device of the kernel.
    pub fn kernel(calls: Arc<T>, device: Arc<dyn AsFd + Send + Sync>) -> Self {
        Self { calls, descriptor: Some(device) }
    }

    /// A device of a simulated domain.
    pub fn simulated(calls: Arc<T>) -> Self {
        Self { calls, descriptor: None }
    }

    /// Its descriptor.
    pub fn fileno(&self) -> Result<i32, Error> {
        match &self.descriptor {
            Some(device) => Ok(device.as_fd().as_raw_fd()),
            None => Err(PyValueError::new_err("a simulated device has no descriptor").into()),
        }
    }
}

/// Whose kernel is to answer: a simulated dom0's or another simulated domain's; None for that of this machine.
pub fn hypervisor(given: Option<&Bound<'_, PyAny>>) -> Result<Option<sim::Domain>, Error> {
    let Some(given) = given else { return Ok(None) };
    if let Ok(xen) = given.cast::<SimulatedXen>() {
        return Ok(Some(xen.get().0.dom0()));
    }
    if let Ok(domain) = given.cast::<SimulatedDomain>() {
        return Ok(Some(domain.get().0.clone()));
    }
    Err(PyTypeError::new_err("hypervisor: a SimulatedXen, one of its domains, or None is wanted").into())
}

/// A machine with Xen.
#[pyclass(frozen, subclass, module = "xenvirt._native")]
pub struct SimulatedXen(Hypervisor);

#[pymethods]
impl SimulatedXen {
    #[new]
    #[pyo3(signature = (kind = "pvh"))]
    fn new(kind: &str) -> Result<Self, Error> {
        let kind = match kind {
            "pv" => Kind::Pv,
            "pvh" => Kind::Pvh,
            "aarch64" => Kind::Arm,
            _ => {
                let text = format!("kind {kind:?}: 'pv', 'pvh' or 'aarch64' is wanted");
                return Err(PyValueError::new_err(text).into());
            }
        };
        Ok(Self(Hypervisor::new(kind)?))
    }

    /// What its dom0 is.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind() {
            Kind::Pv => "pv",
            Kind::Pvh => "pvh",
            Kind::Arm => "aarch64",
        }
    }

    /// The numbers of its domains.
    #[getter]
    fn domids(&self) -> Vec<u16> {
        self.0.domains()
    }

    /// A domain by its number.
    fn domain(&self, domid: u16) -> Result<SimulatedDomain, Error> {
        let found = self.0.domain(domid);
        let missing = || PyValueError::new_err(format!("domain {domid}: there is no such domain"));
        Ok(SimulatedDomain(found.ok_or_else(missing)?))
    }

    /// Makes a domain with RAM at these addresses.
    fn create(&self, ranges: &Bound<'_, PyAny>, vcpus: usize) -> Result<SimulatedDomain, Error> {
        let new = NewDomain { ram: address_ranges(ranges)?, vcpus };
        Ok(SimulatedDomain(self.0.create(&new)?))
    }

    fn __repr__(&self) -> String {
        format!("<SimulatedXen {:?} with domains {:?}>", self.kind(), self.0.domains())
    }
}

/// A domain of it.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct SimulatedDomain(sim::Domain);

/// The numbers of a Python range without a step.
fn frames_of(frames: &Bound<'_, PyAny>) -> Result<Range<u64>, Error> {
    if let Ok(frame) = frames.extract::<u64>() {
        return Ok(frame..frame.saturating_add(1));
    }
    let range = frames.cast::<PyRange>().map_err(|_| {
        PyTypeError::new_err(format!("frames {frames}: a frame number or a range of them is wanted"))
    })?;
    if range.getattr("step")?.extract::<i64>().ok() != Some(1) {
        return Err(PyValueError::new_err(format!("{range}: a range of frames has no step")).into());
    }
    Ok(range.getattr("start")?.extract()?..range.getattr("stop")?.extract()?)
}

/// What an access is of, as Python says it.
struct Way {
    size: u8,
    port: bool,
    count: u32,
    backwards: bool,
}

impl Way {
    fn access(&self, address: u64, is_read: bool, data: RequestData) -> VcpuAccess {
        let kind = if self.port { RequestKind::Port } else { RequestKind::Memory };
        let Self { size, count, backwards, .. } = *self;
        VcpuAccess { kind, address, size, count, is_read, backwards, data }
    }
}

impl SimulatedDomain {
    fn start(&self, vcpu: usize, access: &VcpuAccess) -> Result<SimulatedAccess, Error> {
        let what = access.to_string();
        Ok(SimulatedAccess { size: access.size, what, access: self.0.access(vcpu, access)? })
    }
}

#[pymethods]
impl SimulatedDomain {
    /// Its number.
    #[getter]
    fn domid(&self) -> u16 {
        self.0.number()
    }

    /// Is it there?
    #[getter]
    fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Where it had RAM when it was made.
    #[getter]
    fn ram<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>, Error> {
        ranges_of(py, &self.0.ram()?)
    }

    /// How many vCPUs it has.
    #[getter]
    fn vcpus(&self) -> Result<usize, Error> {
        Ok(self.0.vcpus()?)
    }

    /// What the guest reads.
    fn read<'py>(&self, py: Python<'py>, address: u64, size: usize) -> Result<Bound<'py, PyBytes>, Error> {
        // Before there is room for it: the guest may have less memory than that.
        self.0.check(address, size)?;
        let mut bytes = vec![0; size];
        py.detach(|| self.0.read(address, &mut bytes))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The guest writes.
    fn write(&self, py: Python<'_>, address: u64, data: PyBackedBytes) -> Result<usize, Error> {
        py.detach(|| self.0.write(address, &data))?;
        Ok(data.len())
    }

    /// The guest gives frames back.
    fn balloon_out(&self, frames: &Bound<'_, PyAny>) -> Result<(), Error> {
        Ok(self.0.balloon_out(frames_of(frames)?)?)
    }

    /// The guest gets frames.
    fn populate(&self, frames: &Bound<'_, PyAny>) -> Result<(), Error> {
        Ok(self.0.populate(frames_of(frames)?)?)
    }

    /// Xen pages frames out.
    #[pyo3(signature = (frames, tries = None))]
    fn page_out(&self, frames: &Bound<'_, PyAny>, tries: Option<u32>) -> Result<(), Error> {
        Ok(self.0.page_out(frames_of(frames)?, tries.unwrap_or(u32::MAX))?)
    }

    /// The guest grants a frame.
    #[pyo3(signature = (frame, to = 0, *, writable = true))]
    fn grant(&self, frame: u64, to: u16, writable: bool) -> Result<u32, Error> {
        Ok(self.0.grant(frame, to, writable)?)
    }

    /// The guest ends a grant.
    fn end_grant(&self, reference: u32) -> Result<(), Error> {
        Ok(self.0.end_grant(reference)?)
    }

    /// The page of a grant is not there.
    #[pyo3(signature = (reference, tries = None))]
    fn page_out_grant(&self, reference: u32, tries: Option<u32>) -> Result<(), Error> {
        Ok(self.0.page_out_grant(reference, tries.unwrap_or(u32::MAX))?)
    }

    /// What device models signalled since it was asked last.
    fn interrupts(&self) -> Result<Vec<(&'static str, u64, u32)>, Error> {
        let taken = self.0.take_interrupts()?.into_iter().map(|(interrupt, raised)| match interrupt {
            Interrupt::Spi(irq) => ("spi", irq.into(), raised.into()),
            Interrupt::Isa(irq) => ("isa", irq.into(), raised.into()),
            Interrupt::Intx { device, pin } => {
                ("intx", u64::from(device) * 4 + u64::from(pin), raised.into())
            }
            Interrupt::Msi { address, data } => ("msi", address, data),
        });
        Ok(taken.collect())
    }

    /// A vCPU reads, and has its answer later.
    #[pyo3(signature = (address, size = 4, *, port = false, vcpu = 0, count = 1, backwards = false, data_address = None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn start_load(
        &self,
        address: u64,
        size: u8,
        port: bool,
        vcpu: usize,
        count: u32,
        backwards: bool,
        data_address: Option<u64>,
    ) -> Result<SimulatedAccess, Error> {
        let data = data_address.map_or(RequestData::Value(0), RequestData::At);
        self.start(vcpu, &Way { size, port, count, backwards }.access(address, true, data))
    }

    /// A vCPU writes, and goes on later.
    #[pyo3(signature = (
        address, value = 0, size = 4, *, port = false, vcpu = 0, count = 1, backwards = false, data_address = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn start_store(
        &self,
        address: u64,
        value: u64,
        size: u8,
        port: bool,
        vcpu: usize,
        count: u32,
        backwards: bool,
        data_address: Option<u64>,
    ) -> Result<SimulatedAccess, Error> {
        let data = data_address.map_or(RequestData::Value(value), RequestData::At);
        self.start(vcpu, &Way { size, port, count, backwards }.access(address, false, data))
    }

    /// A vCPU wants that what is mapped of the domain is given back.
    #[pyo3(signature = (*, vcpu = 0))]
    fn start_invalidate(&self, vcpu: usize) -> Result<SimulatedAccess, Error> {
        let way = Way { size: 4, port: false, count: 1, backwards: false };
        let access = way.access(0, false, RequestData::Value(u64::MAX));
        self.start(vcpu, &VcpuAccess { kind: RequestKind::Invalidate, ..access })
    }

    /// A vCPU reads, and waits for its answer.
    #[pyo3(signature = (address, size = 4, *, port = false, vcpu = 0, timeout = 10.0))]
    fn load(
        &self,
        py: Python<'_>,
        address: u64,
        size: u8,
        port: bool,
        vcpu: usize,
        timeout: Option<f64>,
    ) -> Result<u64, Error> {
        self.start_load(address, size, port, vcpu, 1, false, None)?.result(py, timeout)
    }

    /// A vCPU writes, and waits until it may go on.
    #[pyo3(signature = (address, value, size = 4, *, port = false, vcpu = 0, timeout = 10.0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn store(
        &self,
        py: Python<'_>,
        address: u64,
        value: u64,
        size: u8,
        port: bool,
        vcpu: usize,
        timeout: Option<f64>,
    ) -> Result<(), Error> {
        let access = self.start_store(address, value, size, port, vcpu, 1, false, None)?;
        access.result(py, timeout).map(drop)
    }

    /// Ends it.
    fn destroy(&self) -> Result<(), Error> {
        Ok(self.0.destroy()?)
    }

    fn __repr__(&self) -> String {
        let gone = if self.0.exists() { "" } else { ", destroyed" };
        format!("<SimulatedDomain {}{gone}>", self.0.number())
    }
}

/// An access of a vCPU on its way.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct SimulatedAccess {
    access: sim::Access,
    size: u8,
    what: String,
}

#[pymethods]
impl SimulatedAccess {
    /// Has it ended?
    #[getter]
    fn done(&self) -> bool {
        self.access.result().is_some()
    }

    /// What was read, after waiting for it.
    #[pyo3(signature = (timeout = 10.0))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> Result<u64, Error> {
        let deadline = deadline(timeout)?;
        let ended = loop {
            let slice = Instant::now() + SLICE;
            let until = deadline.map_or(slice, |deadline| deadline.min(slice));
            if let Some(ended) = py.detach(|| self.access.wait(Some(until))) {
                break ended;
            }
            py.check_signals()?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let text = format!("{} was not answered in {} s", self.what, timeout.unwrap_or_default());
                return Err(PyTimeoutError::new_err(text).into());
            }
        };
        let failed = |why: &str, errno| CallError::refusal(format!("{}: {why}", self.what), errno);
        match ended {
            AccessResult::Answered(value) => {
                let bits = 64 - 8 * u32::from(self.size);
                Ok(value << bits >> bits)
            }
            AccessResult::Abort => {
                Err(failed("nobody serves it: a data abort", rustix::io::Errno::FAULT).into())
            }
            AccessResult::DomainGone => {
                Err(failed("the domain was destroyed", rustix::io::Errno::SRCH).into())
            }
        }
    }
}

/// The bare calls of /dev/xen/privcmd, for tests of the simulation itself.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct SimulatedPrivcmd(sim::SimulatedPrivcmd);

#[pymethods]
impl SimulatedPrivcmd {
    #[new]
    fn new(hypervisor: &Bound<'_, PyAny>) -> Result<Self, Error> {
        let domain = self::hypervisor(Some(hypervisor))?;
        let missing = || PyTypeError::new_err("hypervisor: a SimulatedXen or one of its domains is wanted");
        Ok(Self(domain.ok_or_else(missing)?.privcmd()))
    }

    /// A fresh range; gives its address.
    fn reserve(&self, pages: usize) -> Result<usize, Error> {
        Ok(xenvirt_core::xen::ForeignCalls::reserve(&self.0, pages, true)?.as_ptr() as usize)
    }

    /// A range was unmapped.
    fn forget(&self, address: usize, pages: usize) {
        self.0.forget_range(address, pages);
    }

    /// IOCTL_PRIVCMD_MMAPBATCH_V2: the errno of the call, and the list of errors as it is then.
    fn map_batch(
        &self,
        domid: u16,
        address: usize,
        count: usize,
        frames: Option<Vec<u64>>,
        errors: Option<Vec<i32>>,
    ) -> (i32, Option<Vec<i32>>) {
        let mut errors = errors;
        let batch = sim::Batch {
            domain: domid,
            address,
            count,
            frames: frames.as_deref(),
            errors: errors.as_deref_mut(),
        };
        let call = self.0.map_batch(batch).map_or_else(|errno| errno.raw_os_error(), |()| 0);
        (call, errors)
    }

    /// IOCTL_PRIVCMD_RESTRICT.
    fn restrict(&self, domid: u16) -> Result<(), Error> {
        Ok(xenvirt_core::xen::ForeignCalls::restrict(&self.0, domid)?)
    }
}

/// Ranges as Python has them.
pub fn ranges_of<'py>(py: Python<'py>, ranges: &[Range<u64>]) -> Result<Bound<'py, PyTuple>, Error> {
    let made = ranges.iter().map(|range| py.get_type::<PyRange>().call1((range.start, range.end)));
    Ok(PyTuple::new(py, made.collect::<PyResult<Vec<_>>>()?)?)
}
