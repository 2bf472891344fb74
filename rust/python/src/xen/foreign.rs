//! Foreign mappings.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyRange, PyTuple},
};
use xenvirt_core::{
    memory::{AttachRequest, SharedMemoryTable},
    xen::{self, ForeignCalls, MapRequest, Privcmd, Resource, sim},
};

use super::{
    attached::{AttachedMemory, address_ranges},
    sim::{Opened, hypervisor, ranges_of},
};
use crate::{errors::Error, memory::GuestMemory};

/// A frame that could not be mapped.
#[pyclass(frozen, eq, module = "xenvirt._native")]
#[derive(Clone, Copy, PartialEq)]
pub struct FrameFailure(xen::FrameFailure);

#[pymethods]
impl FrameFailure {
    /// Its place in the request.
    #[getter]
    fn index(&self) -> usize {
        self.0.index
    }

    /// The frame number.
    #[getter]
    fn frame(&self) -> u64 {
        self.0.frame
    }

    /// What the kernel says.
    #[getter]
    fn errno(&self) -> i32 {
        self.0.errno.raw_os_error()
    }

    /// The errno in words.
    #[getter]
    fn reason(&self) -> &'static str {
        self.0.reason()
    }

    fn __repr__(&self) -> String {
        format!("<FrameFailure {} frame {:#x}: {}>", self.0.index, self.0.frame, self.0.reason())
    }
}

/// The failures as Python has them.
pub fn failures_of<'py>(py: Python<'py>, failures: &[xen::FrameFailure]) -> PyResult<Bound<'py, PyTuple>> {
    let failures = failures.iter().map(|&failure| Py::new(py, FrameFailure(failure)));
    PyTuple::new(py, failures.collect::<PyResult<Vec<_>>>()?)
}

type Device = Opened<dyn ForeignCalls>;

/// /dev/xen/privcmd.
#[pyclass(frozen, subclass, module = "xenvirt._native")]
pub struct ForeignMemory {
    /// None once it is closed.
    device: Mutex<Option<Arc<Device>>>,
    patience: Duration,
    /// Whose kernel it is, if not this machine's.
    simulated: Option<sim::Domain>,
}

impl ForeignMemory {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Device>>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> Result<Arc<Device>, Error> {
        let device = self.lock().clone();
        device.ok_or_else(|| PyValueError::new_err("the foreign memory is closed").into())
    }
}

#[pymethods]
impl ForeignMemory {
    #[new]
    #[pyo3(signature = (*, patience = 5.0, hypervisor = None))]
    fn new(patience: f64, hypervisor: Option<&Bound<'_, PyAny>>) -> Result<Self, Error> {
        let patience = Duration::try_from_secs_f64(patience);
        let patience = patience.map_err(|error| PyValueError::new_err(format!("patience: {error}")))?;
        let simulated = self::hypervisor(hypervisor)?;
        let device = match &simulated {
            Some(domain) => Device::simulated(Arc::new(domain.privcmd())),
            None => {
                let device = Arc::new(Privcmd::open()?);
                Device::kernel(device.clone(), device)
            }
        };
        Ok(Self { device: Mutex::new(Some(Arc::new(device))), patience, simulated })
    }

    /// Maps frames of a domain.
    #[pyo3(signature = (domid, frames, *, writable = false, partial = false))]
    fn map(
        &self,
        py: Python<'_>,
        domid: u16,
        frames: &Bound<'_, PyAny>,
        writable: bool,
        partial: bool,
    ) -> Result<Py<ForeignMapping>, Error> {
        let device = self.device()?;
        let frames = frame_numbers(frames)?;
        let request = MapRequest { domain: domid, frames: &frames, writable, patience: self.patience };
        let map = if partial { xen::ForeignMapping::partial } else { xen::ForeignMapping::whole };
        let mapped = py.detach(|| map(&*device.calls, &request))?;
        ForeignMapping::new(py, mapped)
    }

    /// Attaches to a guest's memory.
    #[pyo3(signature = (domid, ranges, *, writable = false, limit = None))]
    fn attach(
        &self,
        py: Python<'_>,
        domid: u16,
        ranges: &Bound<'_, PyAny>,
        writable: bool,
        limit: Option<u64>,
    ) -> Result<Py<AttachedMemory>, Error> {
        let (device, ranges) = (self.device()?, address_ranges(ranges)?);
        let limit = limit.unwrap_or(u64::MAX);
        let request = AttachRequest { domain: domid, writable, patience: self.patience, limit };
        AttachedMemory::new(py, device.calls.clone(), &ranges, &request)
    }

    /// Maps frames of a resource.
    #[pyo3(signature = (domid, resource, number, *, first = 0, frames = 1, writable = false))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, in Python")]
    fn map_resource(
        &self,
        py: Python<'_>,
        domid: u16,
        resource: &str,
        number: u32,
        first: u32,
        frames: u32,
        writable: bool,
    ) -> Result<Py<ForeignMapping>, Error> {
        let (device, resource) = (self.device()?, resource_of(resource)?);
        let mapped =
            xen::ForeignMapping::resource(&*device.calls, domid, resource, number, first, frames, writable)?;
        ForeignMapping::new(py, mapped)
    }

    /// How many frames a resource has.
    fn resource_size(&self, domid: u16, resource: &str, number: u32) -> Result<u64, Error> {
        Ok(self.device()?.calls.resource_size(domid, resource_of(resource)?, number)?)
    }

    /// Gives up every other domain, for ever.
    fn restrict(&self, domid: u16) -> Result<(), Error> {
        Ok(self.device()?.calls.restrict(domid)?)
    }

    /// The device's descriptor.
    fn fileno(&self) -> Result<i32, Error> {
        self.device()?.fileno()
    }

    /// Where a domain has RAM, which a simulated hypervisor knows; None with a real one.
    fn _simulated_ram<'py>(&self, py: Python<'py>, domid: u16) -> Result<Option<Bound<'py, PyTuple>>, Error> {
        let Some(simulated) = &self.simulated else { return Ok(None) };
        let domain = simulated.hypervisor().domain(domid);
        let ram = domain
            .ok_or_else(|| {
                xen::CallError::refusal(
                    format!("asking for the RAM of simulated domain {domid}: there is no such domain"),
                    rustix::io::Errno::SRCH,
                )
            })?
            .ram()?;
        Ok(Some(ranges_of(py, &ram)?))
    }

    /// Closes the device; mappings stay.
    fn close(&self) {
        self.lock().take();
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }
}

/// Frames of a domain that are mapped one after the other.
#[pyclass(frozen, extends = GuestMemory, module = "xenvirt._native")]
pub struct ForeignMapping {
    frames: usize,
    holes: Vec<std::ops::Range<u64>>,
    failures: Vec<xen::FrameFailure>,
}

impl ForeignMapping {
    fn new(py: Python<'_>, mapped: xen::ForeignMapping) -> Result<Py<Self>, Error> {
        let mapping = Self {
            frames: mapped.mapped_frames(),
            holes: mapped.holes(),
            failures: mapped.failures().to_vec(),
        };
        let table = Arc::new(SharedMemoryTable::new(mapped.into_memory()?));
        let base = PyClassInitializer::from(GuestMemory::of_mapping(table));
        Ok(Py::new(py, base.add_subclass(mapping))?)
    }
}

#[pymethods]
impl ForeignMapping {
    /// How many frames are mapped.
    #[getter]
    fn mapped_frames(&self) -> usize {
        self.frames
    }

    /// The byte ranges that are not mapped.
    #[getter]
    fn holes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let range = |hole: &std::ops::Range<u64>| PyRange::new(py, hole.start as isize, hole.end as isize);
        PyTuple::new(py, self.holes.iter().map(range).collect::<PyResult<Vec<_>>>()?)
    }

    /// The frames that are not mapped.
    #[getter]
    fn failures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        failures_of(py, &self.failures)
    }

    fn __repr__(&self) -> String {
        format!("<ForeignMapping of {} frames, {} failed>", self.frames, self.failures.len())
    }
}

/// The frames of a range, of a buffer of 64-bit numbers, or of any sequence.
fn frame_numbers(frames: &Bound<'_, PyAny>) -> Result<Vec<u64>, Error> {
    if let Ok(range) = frames.cast::<PyRange>() {
        let field = |name: &str| range.getattr(name)?.extract::<i64>();
        let (start, stop, step) = (field("start")?, field("stop")?, field("step")?);
        let len = range.len()? as i64;
        let last = start.saturating_add(step.saturating_mul(len - 1));
        if len > 0 && (start < 0 || last < 0) {
            let text = format!("frames {start} to {stop}: a frame number is not negative");
            return Err(PyValueError::new_err(text).into());
        }
        if step == 1 && len > 0 {
            return Ok((start as u64..stop as u64).collect());
        }
        return Ok((0..len).map(|index| (start + index * step) as u64).collect());
    }
    if let Ok(buffer) = PyBuffer::<u64>::get(frames) {
        return Ok(buffer.to_vec(frames.py())?);
    }
    frames.extract().map_err(|error: PyErr| match error.is_instance_of::<PyTypeError>(frames.py()) {
        true => {
            PyTypeError::new_err("frames: a range, a sequence of numbers, or a buffer of uint64 is wanted")
                .into()
        }
        false => error.into(),
    })
}

fn resource_of(name: &str) -> Result<Resource, Error> {
    match name {
        "ioreq_server" => Ok(Resource::IoreqServer),
        "grant_table" => Ok(Resource::GrantTable),
        "vmtrace" => Ok(Resource::VmTrace),
        _ => {
            let text = format!("resource {name:?}: 'ioreq_server', 'grant_table' or 'vmtrace' is wanted");
            Err(PyValueError::new_err(text).into())
        }
    }
}
