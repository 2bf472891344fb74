//! An IOREQ server: it answers the accesses of a domain's vCPUs to addresses where no memory is.
//!
//! Xen writes what a vCPU wants into that vCPU's slot of a shared page, marks it ready and notifies the vCPU's event channel;
//! the vCPU sleeps. We take the request (ready -> in process), answer it (in process -> answered) and notify. Xen crashes the
//! domain when it sees a state that goes backwards, and a vCPU that is not answered sleeps for ever: so the way of a
//! slot is a type here, [`PendingRequest`], which answers also when it is dropped.
//!
//! # Safety
//! Slots lie within the page, which each [`Page`] holds mapped. Xen writes there as well: only raw pointers, each field is read
//! once, and the byte with the state is an atomic.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use rustix::io::Errno;

use super::{
    abi::{
        FRAME,
        ioreq::{
            IS_BACKWARDS, IS_POINTER, IS_READ, Ioreq, STATE_ANSWERED, STATE_IN_PROCESS, STATE_MASK,
            STATE_READY, TYPE_INVALIDATE, TYPE_MEMORY, TYPE_PORT,
        },
    },
    call_error::{CallError, check_owner},
    dm_op::{DeviceModel, DeviceModelCalls, Interrupt, IoRange},
    eventfd::{AssignedKick, EventFdCalls, EventFdSupport, InterruptFd, Kick},
    evtchn::{EventCalls, EventChannels, Evtchn},
    foreign::{ForeignMapError, ForeignMapping, MapRequest},
    privcmd::{ForeignCalls, Privcmd, Resource},
};
use crate::memory::{GuestMemory, MemoryError, Owner};

/// How many vCPUs have a slot in the page.
pub const MAX_VCPUS: usize = FRAME / size_of::<Ioreq>();
/// Xen lets a request stay within the pages that its first access touches, so that this is never reached.
const MAX_COUNT: u32 = FRAME as u32;
/// The frame of the page in the resource: frame 0 is that of buffered requests.
const PAGE_INDEX: u32 = 1;
/// What a read gives where nobody answers, as on an empty bus.
const NOBODY: u64 = u64::MAX;
/// How long the frame of a page that is in the domain's memory is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The calls that an IOREQ server needs: the kernel's, or those of a simulated hypervisor.
#[derive(Clone, Debug)]
pub struct ServerCalls {
    /// Maps its page.
    pub foreign: Arc<dyn ForeignCalls>,
    /// Makes it.
    pub model: Arc<dyn DeviceModelCalls>,
    /// Binds its ports, and nobody else's: the server reads what is pending.
    pub events: Arc<dyn EventCalls>,
    /// Lets the kernel serve eventfds.
    pub eventfds: Arc<dyn EventFdCalls>,
}

impl ServerCalls {
    /// The kernel's: opens its devices.
    ///
    /// # Errors
    /// A device is not there, or may not be opened.
    pub fn open() -> Result<Self, Errno> {
        let privcmd = Arc::new(Privcmd::open()?);
        Ok(Self {
            foreign: privcmd.clone(),
            model: privcmd.clone(),
            events: Arc::new(Evtchn::open()?),
            eventfds: privcmd,
        })
    }
}

/// How the page of a server is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageSource {
    /// As a resource; as a frame where the kernel or Xen has no resources.
    #[default]
    Any,
    /// As a resource (Linux 4.18, Xen 4.11).
    Resource,
    /// As a frame of the domain's memory, on x86.
    Frame,
}

/// Why a server could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its page could not be mapped.
    #[error("the page of the IOREQ server: {0}")]
    Map(#[from] ForeignMapError),
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// I/O ports.
    Port,
    /// Guest physical addresses.
    Memory,
    /// What is mapped of the domain's memory is to be given back: it may be gone.
    Invalidate,
    /// Another type of Xen's (IOREQ_TYPE_*), which wants no more than to be answered.
    Other(u8),
    /// One that breaks the rules: a size that is not 1 to 8, or a count beyond a page.
    Malformed,
}

/// Where the value of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestData {
    /// Here, cut to the size; for a read, what stood there before.
    Value(u64),
    /// In guest memory, at this guest physical address: each access has its own place there.
    At(u64),
}

/// What a vCPU wants: one access, or for an instruction with a rep prefix several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The vCPU.
    pub vcpu: u32,
    /// What it is about.
    pub kind: RequestKind,
    /// Guest physical address or I/O port, of the first access.
    pub address: u64,
    /// Bytes of each access: 1 to 8.
    pub size: u8,
    /// How many accesses.
    pub count: u32,
    /// True if it reads, so that an answer is wanted.
    pub is_read: bool,
    /// True if addresses go down from one access to the next.
    pub backwards: bool,
    /// The value, or where it is.
    pub data: RequestData,
}

/// One of the accesses of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SingleAccess {
    /// Guest physical address, or I/O port.
    pub address: u64,
    /// The value, or where it is.
    pub data: RequestData,
}

impl Request {
    fn new(vcpu: u32, raw: &Ioreq) -> Self {
        let kind = match raw.kind {
            TYPE_INVALIDATE => RequestKind::Invalidate,
            TYPE_PORT | TYPE_MEMORY if !(1..=8).contains(&raw.size) || raw.count > MAX_COUNT => {
                RequestKind::Malformed
            }
            TYPE_PORT => RequestKind::Port,
            TYPE_MEMORY => RequestKind::Memory,
            other => RequestKind::Other(other),
        };
        let size = u8::try_from(raw.size).unwrap_or(8).clamp(1, 8);
        let data = match raw.bits & IS_POINTER != 0 {
            true => RequestData::At(raw.data),
            false => RequestData::Value(cut(raw.data, size)),
        };
        let count = raw.count.min(MAX_COUNT);
        let is_read = raw.bits & IS_READ != 0;
        Self {
            vcpu,
            kind,
            address: raw.address,
            size,
            count,
            is_read,
            backwards: raw.bits & IS_BACKWARDS != 0,
            data,
        }
    }

    /// Its accesses, in order; none if it is neither about memory nor about ports. A port stays the same from one to the
    /// next, an address moves by the size; and so does where the values are.
    pub fn accesses(&self) -> impl Iterator<Item = SingleAccess> + use<> {
        let request = *self;
        let count = match self.kind {
            RequestKind::Memory | RequestKind::Port => self.count,
            _ => 0,
        };
        (0..u64::from(count)).map(move |index| {
            let distance = index * u64::from(request.size);
            let moved = |start: u64| match request.backwards {
                true => start.wrapping_sub(distance),
                false => start.wrapping_add(distance),
            };
            let address = match request.kind {
                RequestKind::Port => request.address,
                _ => moved(request.address),
            };
            let data = match request.data {
                RequestData::At(start) => RequestData::At(moved(start)),
                value => value,
            };
            SingleAccess { address, data }
        })
    }
}

/// The lowest `size` bytes of a value.
fn cut(value: u64, size: u8) -> u64 {
    match size {
        1..8 => value & ((1 << (8 * u32::from(size))) - 1),
        _ => value,
    }
}

/// A request that was taken, and waits for its answer. Dropped without one it is answered as an empty bus would.
#[derive(Debug)]
pub struct PendingRequest {
    request: Request,
    server: Arc<Inner>,
    answered: bool,
}

impl PendingRequest {
    /// What is wanted.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Answers. The value is what a read gets, where the values are not in guest memory; else it is passed over.
    ///
    /// # Errors
    /// The server was closed meanwhile, which answered; or the notification failed.
    pub fn answer(mut self, value: u64) -> Result<(), CallError> {
        self.answered = true;
        self.server.answer(&self.request, value)
    }
}

/// Registers, as a vCPU sees them.
pub trait Registers {
    /// The value of a read of `size` bytes, 1 to 8.
    fn read(&mut self, kind: RequestKind, address: u64, size: u8) -> u64;

    /// A write of `size` bytes, 1 to 8; the value is cut to them.
    fn write(&mut self, kind: RequestKind, address: u64, size: u8, value: u64);
}

/// Why a request could not be performed. It is answered all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PerformError {
    /// The answer was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The values are in guest memory, and cannot be reached there.
    #[error("{count} accesses of {size} bytes from {address:#x} on: {source}")]
    Memory {
        /// Guest physical address or I/O port, of the first access.
        address: u64,
        /// Bytes of each.
        size: u8,
        /// How many.
        count: u32,
        /// What guest memory said.
        source: MemoryError,
    },
}

impl PendingRequest {
    /// Does what is wanted to registers, access by access, and answers. What is neither about memory nor about ports is only
    /// answered.
    ///
    /// # Errors
    /// The values cannot be reached in guest memory: the accesses before that are done, and a vCPU that reads gets what an
    /// empty bus gives.
    pub fn perform(self, registers: &mut dyn Registers, memory: &GuestMemory) -> Result<(), PerformError> {
        let Request { kind, size, is_read, address, count, .. } = self.request;
        let failed = |source| PerformError::Memory { address, size, count, source };
        let mut answer = if kind == RequestKind::Malformed { NOBODY } else { 0 };
        for access in self.request.accesses() {
            let mut bytes = [0u8; 8];
            let Some(bytes) = bytes.get_mut(..usize::from(size)) else { continue };
            match (is_read, access.data) {
                (true, RequestData::Value(_)) => answer = registers.read(kind, access.address, size),
                (true, RequestData::At(place)) => {
                    let value = registers.read(kind, access.address, size).to_le_bytes();
                    bytes.iter_mut().zip(value).for_each(|(to, from)| *to = from);
                    memory.write(place, bytes).map_err(failed)?;
                }
                (false, RequestData::Value(value)) => registers.write(kind, access.address, size, value),
                (false, RequestData::At(place)) => {
                    memory.read(place, bytes).map_err(failed)?;
                    let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
                    registers.write(kind, access.address, size, value);
                }
            }
        }
        Ok(self.answer(answer)?)
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if !self.answered && self.server.owner.is_this_process() {
            // The domain may be gone: then nobody waits.
            let _ = self.server.answer(&self.request, NOBODY);
        }
    }
}

/// The shared page.
#[derive(Debug)]
struct Page {
    mapping: ForeignMapping,
}

impl Page {
    /// The slot of a vCPU below [`MAX_VCPUS`].
    fn slot(&self, vcpu: usize) -> Option<NonNull<Ioreq>> {
        // SAFETY: the page has room for this many; it is aligned to a page.
        (vcpu < MAX_VCPUS).then(|| unsafe { self.mapping.base().cast::<Ioreq>().add(vcpu) })
    }

    fn bits(&self, slot: NonNull<Ioreq>) -> &AtomicU8 {
        // SAFETY: a byte of the page, which lives as long as `self`; everybody here uses it as an atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*slot.as_ptr()).bits) }
    }

    /// The port that Xen notifies for a vCPU.
    fn port(&self, slot: NonNull<Ioreq>) -> u32 {
        // SAFETY: inside the page, and aligned.
        unsafe { (&raw const (*slot.as_ptr()).port).read_volatile() }
    }

    /// Takes a request, if one is ready: moves the slot to "in process".
    fn take(&self, vcpu: u32) -> Option<Request> {
        let slot = self.slot(vcpu as usize)?;
        let bits = self.bits(slot).load(Ordering::Relaxed);
        if bits & STATE_MASK != STATE_READY {
            return None;
        }
        let taken = bits & !STATE_MASK | STATE_IN_PROCESS;
        // The kernel answers by itself what an ioeventfd waits for: whoever is second must leave the slot alone. Acquire,
        // as Xen writes the state after the rest.
        self.bits(slot).compare_exchange(bits, taken, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // SAFETY: inside the page, and aligned. Xen leaves the slot alone until it is answered; that nothing else does is
        // not relied upon: each field is read once.
        let raw = unsafe { slot.read_volatile() };
        Some(Request::new(vcpu, &Ioreq { bits: taken, ..raw }))
    }

    /// Answers what is in process; false if nothing is.
    fn answer(&self, vcpu: u32, value: Option<u64>) -> bool {
        let Some(slot) = self.slot(vcpu as usize) else { return false };
        let bits = self.bits(slot).load(Ordering::Relaxed);
        if bits & STATE_MASK != STATE_IN_PROCESS {
            return false;
        }
        if let Some(value) = value {
            // SAFETY: inside the page, and aligned.
            unsafe { (&raw mut (*slot.as_ptr()).data).write_volatile(value) };
        }
        // Release: Xen reads the data after the state; so does the guest what we wrote to its memory.
        self.bits(slot).store(bits & !STATE_MASK | STATE_ANSWERED, Ordering::Release);
        true
    }

    /// Answers what is there, taken or not, as an empty bus would; false if nothing is.
    fn finish(&self, vcpu: usize) -> bool {
        // vCPUs are fewer than slots.
        let number = vcpu as u32;
        let Some(slot) = self.slot(vcpu) else { return false };
        self.take(number);
        let bits = self.bits(slot).load(Ordering::Relaxed);
        self.answer(number, (bits & (IS_READ | IS_POINTER) == IS_READ).then_some(NOBODY))
    }
}

#[derive(Debug)]
struct Inner {
    model: DeviceModel,
    events: EventChannels,
    eventfds: Arc<dyn EventFdCalls>,
    id: u16,
    page: Page,
    owner: Owner,
    /// By vCPU.
    ports: Mutex<Ports>,
}

/// Our ports by vCPU, and the kicks that the kernel takes from there; none once the server is closed.
#[derive(Debug)]
struct Ports {
    local: Vec<u32>,
    kicks: Vec<AssignedKick>,
    open: bool,
}

impl Inner {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request, value: u64) -> Result<(), CallError> {
        check_owner(self.owner, "the IOREQ server")?;
        let ports = self.ports();
        if !ports.open {
            return Err(CallError::Closed("the IOREQ server"));
        }
        let in_slot = request.is_read && matches!(request.data, RequestData::Value(_));
        let value = in_slot.then(|| cut(value, request.size));
        if !self.page.answer(request.vcpu, value) {
            return Ok(());
        }
        match ports.local.get(request.vcpu as usize) {
            Some(&port) => self.events.notify(port),
            None => Ok(()),
        }
    }

    /// Lets the kernel take a kick, or no longer.
    fn route(&self, ports: &Ports, kick: &AssignedKick, assign: bool) -> Result<(), Errno> {
        let request = Kick {
            domain: self.model.domain(),
            page: self.page.mapping.base().as_ptr() as u64,
            ports: &ports.local,
            registers: kick.registers,
            queue: kick.queue,
        };
        // SAFETY: the page is a mapping of its own. What was assigned is taken back when the server is closed, before the
        // ports are, and the page lives longer. Only a kernel that supports it is asked.
        unsafe { self.eventfds.ioeventfd(&request, kick.eventfd.as_fd(), assign) }
    }

    /// Ends the server: nobody waits for it any more.
    fn close(&self) {
        let mut ports = self.ports();
        if !ports.open {
            return;
        }
        ports.open = false;
        // The kernel looks at the page while it has a kick: they go before the ports and the page do.
        for kick in std::mem::take(&mut ports.kicks) {
            let _ = self.route(&ports, &kick, false);
        }
        // Whatever fails here, fails because the domain is gone.
        let _ = self.model.set_ioreq_server_state(self.id, false);
        for (vcpu, &port) in ports.local.iter().enumerate() {
            if self.page.finish(vcpu) {
                let _ = self.events.notify(port);
            }
        }
        for port in ports.local.drain(..) {
            let _ = self.events.unbind(port);
        }
        let _ = self.model.destroy_ioreq_server(self.id);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owner.is_this_process() {
            self.close();
        }
    }
}

/// An IOREQ server of one domain, enabled, with a port for each vCPU. It has its own event channels: wait on its
/// descriptor, then [`take`](Self::take) what there is. Requests that wait for their answer keep it; [`close`](Self::close) ends
/// it at once.
#[derive(Debug)]
pub struct IoreqServer {
    inner: Arc<Inner>,
}

impl IoreqServer {
    /// Makes a server, which has no ranges yet.
    ///
    /// # Errors
    /// A call was refused, or its page could not be mapped. Nothing is left of it.
    pub fn create(calls: &ServerCalls, domain: u16, source: PageSource) -> Result<Self, ServerError> {
        let model = DeviceModel::new(Arc::clone(&calls.model), domain);
        let events = EventChannels::new(Arc::clone(&calls.events));
        let id = model.create_ioreq_server()?;
        let page = match map_page(calls, &model, id, source) {
            Ok(page) => page,
            Err(error) => {
                let _ = model.destroy_ioreq_server(id);
                return Err(error);
            }
        };
        let ports = Mutex::new(Ports { local: Vec::new(), kicks: Vec::new(), open: true });
        let eventfds = Arc::clone(&calls.eventfds);
        let inner = Inner { model, events, eventfds, id, page, owner: Owner::this_process(), ports };
        // From here on dropping it ends it.
        let server = Self { inner: Arc::new(inner) };
        server.bind()?;
        Ok(server)
    }

    /// Enables it, which gives each slot its port, and binds to those.
    fn bind(&self) -> Result<(), CallError> {
        let Inner { model, events, id, page, .. } = &*self.inner;
        model.set_ioreq_server_state(*id, true)?;
        let vcpus = match model.vcpus() {
            Ok(vcpus) => Some(vcpus as usize),
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => None,
            Err(error) => return Err(error),
        };
        if let Some(vcpus) = vcpus.filter(|&vcpus| vcpus > MAX_VCPUS) {
            let text = format!("domain {} has {vcpus} vCPUs: up to {MAX_VCPUS} have a slot", model.domain());
            return Err(CallError::Argument(text));
        }
        let mut ports = self.inner.ports();
        for vcpu in 0..vcpus.unwrap_or(MAX_VCPUS) {
            let Some(port) = page.slot(vcpu).map(|slot| page.port(slot)).filter(|&port| port != 0) else {
                break;
            };
            ports.local.push(events.bind_interdomain(model.domain(), port)?);
        }
        Ok(())
    }

    /// The domain.
    pub fn domain(&self) -> u16 {
        self.inner.model.domain()
    }

    /// Its number in the domain.
    pub fn id(&self) -> u16 {
        self.inner.id
    }

    /// How many vCPUs it answers; 0 once it is closed.
    pub fn vcpus(&self) -> usize {
        self.inner.ports().local.len()
    }

    /// The domain's device model.
    pub fn model(&self) -> &DeviceModel {
        &self.inner.model
    }

    fn check(&self) -> Result<(), CallError> {
        check_owner(self.inner.owner, "the IOREQ server")?;
        if self.inner.ports().open { Ok(()) } else { Err(CallError::Closed("the IOREQ server")) }
    }

    /// Accesses to this range come here from now on.
    ///
    /// # Errors
    /// What Xen says: EEXIST where the server has a part of it already.
    pub fn map_range(&self, range: &IoRange) -> Result<(), CallError> {
        self.check()?;
        self.inner.model.map_range(self.inner.id, range)
    }

    /// No longer.
    ///
    /// # Errors
    /// What Xen says: ENOENT where it is not exactly a range that was mapped.
    pub fn unmap_range(&self, range: &IoRange) -> Result<(), CallError> {
        self.check()?;
        self.inner.model.unmap_range(self.inner.id, range)
    }

    /// What the kernel does with eventfds.
    pub fn eventfds(&self) -> EventFdSupport {
        self.inner.eventfds.support()
    }

    /// An eventfd that raises an interrupt of the domain.
    ///
    /// # Errors
    /// See [`InterruptFd::new`].
    pub fn interrupt_fd(&self, interrupt: Interrupt) -> Result<InterruptFd, CallError> {
        InterruptFd::new(&self.inner.eventfds, &self.inner.model, interrupt)
    }

    /// Lets the kernel signal an eventfd when a driver writes this queue's number to QueueNotify of the virtio-mmio registers at
    /// this guest physical address, and answer the vCPU, until it is [taken back](Self::kick_no_longer) or the server is closed.
    /// False where the kernel cannot, or would crash: then such writes keep coming as requests. A write of a size other than
    /// four, or of a queue that was not given, does so in any case.
    ///
    /// # Errors
    /// The kernel knows this and refused.
    pub fn kick_in_kernel(
        &self,
        registers: u64,
        queue: u16,
        eventfd: BorrowedFd<'_>,
    ) -> Result<bool, CallError> {
        self.check()?;
        if self.eventfds() != EventFdSupport::Both {
            return Ok(false);
        }
        let refused = |errno| {
            CallError::refused(format!("an eventfd for kicks of queue {queue} at {registers:#x}"), errno)
        };
        let eventfd = eventfd.try_clone_to_owned().map_err(|_| refused(Errno::BADF))?;
        let kick = AssignedKick { eventfd, registers, queue };
        let mut ports = self.inner.ports();
        if !ports.open {
            return Err(CallError::Closed("the IOREQ server"));
        }
        self.inner.route(&ports, &kick, true).map_err(refused)?;
        ports.kicks.push(kick);
        Ok(true)
    }

    /// Takes the kicks of a queue back; nothing if there are none.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kick_no_longer(&self, registers: u64, queue: u16) -> Result<(), CallError> {
        self.check()?;
        let mut ports = self.inner.ports();
        let found = ports.kicks.iter().position(|kick| (kick.registers, kick.queue) == (registers, queue));
        let Some(index) = found else { return Ok(()) };
        let kick = ports.kicks.swap_remove(index);
        let what = || format!("taking back the kicks of queue {queue} at {registers:#x}");
        self.inner.route(&ports, &kick, false).map_err(|errno| CallError::refused(what(), errno))
    }

    /// Appends the requests that are there, without waiting. Each is to be answered.
    ///
    /// # Errors
    /// What the kernel says of the event channels. Requests that were appended are to be answered all the same.
    pub fn take(&self, requests: &mut Vec<PendingRequest>) -> Result<(), CallError> {
        self.check()?;
        let mut pending = Vec::new();
        self.inner.events.pending(&mut pending)?;
        for port in pending {
            // A request that comes from here on makes the port pending again.
            self.inner.events.unmask(port)?;
            let vcpu = self.inner.ports().local.iter().position(|&local| local == port);
            let request = vcpu.and_then(|vcpu| self.inner.page.take(vcpu as u32));
            requests.extend(request.map(|request| {
                let server = Arc::clone(&self.inner);
                PendingRequest { request, server, answered: false }
            }));
        }
        Ok(())
    }

    /// Ends the server: what was not answered is answered as an empty bus would, and its ranges are nobody's.
    pub fn close(&self) {
        if self.inner.owner.is_this_process() {
            self.inner.close();
        }
    }
}

impl AsFd for IoreqServer {
    /// Readable while there may be a request.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.events.as_fd()
    }
}

fn map_page(
    calls: &ServerCalls,
    model: &DeviceModel,
    id: u16,
    source: PageSource,
) -> Result<Page, ServerError> {
    let (foreign, domain) = (&*calls.foreign, model.domain());
    if source != PageSource::Frame {
        let mapped =
            ForeignMapping::resource(foreign, domain, Resource::IoreqServer, id.into(), PAGE_INDEX, 1, true);
        match mapped {
            Ok(mapping) => return Ok(Page { mapping }),
            Err(error) if source == PageSource::Resource || !has_no_resources(&error) => {
                return Err(error.into());
            }
            Err(_) => {}
        }
    }
    let frame = model.ioreq_server_frame(id)?;
    let request = MapRequest { domain, frames: &[frame], writable: true, patience: PATIENCE };
    Ok(Page { mapping: ForeignMapping::whole(foreign, &request)? })
}

/// Does the error say that the kernel or Xen does not know resources? (Older kernels have EINVAL for any ioctl that they do
/// not know.)
fn has_no_resources(error: &ForeignMapError) -> bool {
    matches!(error.errno(), Some(Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{abi::ioreq::STATE_NONE, fake_model::FakeModel},
        *,
    };
    use crate::memory::{MappedMemory, Region};

    const READ: u8 = IS_READ;

    fn server(model: &Arc<FakeModel>) -> IoreqServer {
        IoreqServer::create(&model.calls(), FakeModel::DOMAIN, PageSource::Any).unwrap()
    }

    fn raw(kind: u8, address: u64, size: u32, count: u32, bits: u8, data: u64) -> Ioreq {
        Ioreq { address, data, count, size, port: 0, padding: 0, bits, kind }
    }

    fn taken(server: &IoreqServer) -> Vec<PendingRequest> {
        let mut requests = Vec::new();
        server.take(&mut requests).unwrap();
        requests
    }

    #[test]
    fn a_server_binds_a_port_of_each_vcpu_and_leaves_nothing() {
        let model = FakeModel::new(2);
        let server = server(&model);
        assert_eq!((server.vcpus(), server.domain()), (2, FakeModel::DOMAIN));
        server.map_range(&IoRange::Memory(0x1000..=0x11ff)).unwrap();
        assert_eq!(model.ranges(), [(1, 0x1000, 0x11ff)]);
        drop(server);
        assert_eq!(model.bound_ports(), 0);
        assert!(!model.has_server());
    }

    #[test]
    fn binding_wakes_once_and_no_request_is_made_of_it() {
        let model = FakeModel::new(1);
        let server = server(&model);
        assert!(taken(&server).is_empty());
    }

    #[test]
    fn a_read_is_taken_answered_and_told() {
        let model = FakeModel::new(2);
        let server = server(&model);
        model.ask(1, raw(TYPE_MEMORY, 0x1004, 2, 1, READ, 0));
        let mut requests = taken(&server);
        let pending = requests.pop().unwrap();
        assert!(requests.is_empty());
        assert_eq!(model.state(1), STATE_IN_PROCESS);
        let wanted = Request {
            vcpu: 1,
            kind: RequestKind::Memory,
            address: 0x1004,
            size: 2,
            count: 1,
            is_read: true,
            backwards: false,
            data: RequestData::Value(0),
        };
        assert_eq!(*pending.request(), wanted);
        pending.answer(0x1234_5678).unwrap();
        assert_eq!(model.answer(1), Some(0x5678));
    }

    #[test]
    fn a_write_has_its_value_and_its_answer_leaves_the_data_alone() {
        let model = FakeModel::new(1);
        let server = server(&model);
        model.ask(0, raw(TYPE_PORT, 0x3f8, 1, 1, 0, 0xabcd));
        let pending = taken(&server).pop().unwrap();
        assert_eq!(pending.request().data, RequestData::Value(0xcd));
        assert_eq!(pending.request().kind, RequestKind::Port);
        pending.answer(7).unwrap();
        assert_eq!(model.answer(0), Some(0xabcd));
    }

    #[test]
    fn a_request_that_is_dropped_is_answered_as_an_empty_bus_would() {
        let model = FakeModel::new(1);
        let server = server(&model);
        model.ask(0, raw(TYPE_MEMORY, 0x1000, 4, 1, READ, 0));
        drop(taken(&server));
        assert_eq!(model.answer(0), Some(0xffff_ffff));
    }

    #[test]
    fn a_server_that_closes_answers_what_is_taken_and_what_is_not() {
        let model = FakeModel::new(2);
        let server = server(&model);
        model.ask(0, raw(TYPE_MEMORY, 0x1000, 1, 1, READ, 0));
        let pending = taken(&server).pop().unwrap();
        model.ask(1, raw(TYPE_MEMORY, 0x1000, 8, 1, READ, 0));
        server.close();
        assert_eq!([model.answer(0), model.answer(1)], [Some(u64::MAX); 2]);
        assert_eq!(pending.answer(1), Err(CallError::Closed("the IOREQ server")));
        assert_eq!(server.take(&mut Vec::new()), Err(CallError::Closed("the IOREQ server")));
        assert!(!model.has_server());
    }

    #[test]
    fn a_slot_that_the_kernel_answered_is_left_alone() {
        let model = FakeModel::new(1);
        let server = server(&model);
        model.ask(0, raw(TYPE_MEMORY, 0x1050, 4, 1, 0, 1));
        model.set_state(0, STATE_ANSWERED);
        assert!(taken(&server).is_empty());
        model.set_state(0, STATE_NONE);
        assert!(taken(&server).is_empty());
    }

    #[test]
    fn requests_that_break_the_rules_are_taken_for_their_answer() {
        let model = FakeModel::new(1);
        let server = server(&model);
        for (size, count) in [(0, 1), (9, 1), (u32::MAX, 1), (4, u32::MAX)] {
            model.ask(0, raw(TYPE_MEMORY, 0x1000, size, count, READ, 0));
            let pending = taken(&server).pop().unwrap();
            assert_eq!(pending.request().kind, RequestKind::Malformed);
            assert_eq!(pending.request().accesses().count(), 0);
            drop(pending);
            assert!(model.answer(0).is_some());
        }
    }

    #[test]
    fn an_invalidation_is_one() {
        let model = FakeModel::new(1);
        let server = server(&model);
        model.ask(0, raw(TYPE_INVALIDATE, 0, 4, 0, 0, 0));
        assert_eq!(taken(&server).pop().unwrap().request().kind, RequestKind::Invalidate);
        assert!(model.answer(0).is_some());
    }

    #[test]
    fn accesses_move_as_the_instruction_does() {
        let of = |kind, bits, data| {
            let request = Request::new(0, &raw(kind, 0x1000, 4, 3, bits, data));
            request.accesses().map(|one| (one.address, one.data)).collect::<Vec<_>>()
        };
        let at = RequestData::At;
        let up = [(0x1000, at(0x80)), (0x1004, at(0x84)), (0x1008, at(0x88))];
        assert_eq!(of(TYPE_MEMORY, IS_POINTER, 0x80), up);
        let down = [(0x1000, at(0x80)), (0xffc, at(0x7c)), (0xff8, at(0x78))];
        assert_eq!(of(TYPE_MEMORY, IS_POINTER | IS_BACKWARDS, 0x80), down);
        let port = [(0x1000, at(0x80)), (0x1000, at(0x84)), (0x1000, at(0x88))];
        assert_eq!(of(TYPE_PORT, IS_POINTER, 0x80), port);
        assert_eq!(of(TYPE_MEMORY, 0, 5).last(), Some(&(0x1008, RequestData::Value(5))));
        let wraps = Request::new(0, &raw(TYPE_MEMORY, u64::MAX - 3, 8, 2, IS_POINTER, u64::MAX));
        assert_eq!(wraps.accesses().map(|one| one.address).collect::<Vec<_>>(), [u64::MAX - 3, 4]);
    }

    /// Reads give the address; writes are kept.
    #[derive(Default)]
    struct Log(Vec<(u64, u8, u64)>);

    impl Registers for Log {
        fn read(&mut self, _: RequestKind, address: u64, _: u8) -> u64 {
            address
        }
        fn write(&mut self, _: RequestKind, address: u64, size: u8, value: u64) {
            self.0.push((address, size, value));
        }
    }

    fn memory() -> GuestMemory {
        let (_, mapped) = MappedMemory::memfd(4096).unwrap();
        GuestMemory::new(vec![Region::new(0, 0, Arc::new(mapped))]).unwrap()
    }

    #[test]
    fn values_in_guest_memory_are_read_and_written() {
        let model = FakeModel::new(1);
        let (server, memory, mut log) = (server(&model), memory(), Log::default());
        model.ask(0, raw(TYPE_MEMORY, 0x1234, 2, 3, READ | IS_POINTER, 0x100));
        taken(&server).pop().unwrap().perform(&mut log, &memory).unwrap();
        let mut bytes = [0; 6];
        memory.read(0x100, &mut bytes).unwrap();
        assert_eq!(bytes, [0x34, 0x12, 0x36, 0x12, 0x38, 0x12]);
        model.ask(0, raw(TYPE_PORT, 0x80, 2, 3, IS_POINTER | IS_BACKWARDS, 0x104));
        taken(&server).pop().unwrap().perform(&mut log, &memory).unwrap();
        assert_eq!(log.0, [(0x80, 2, 0x1238), (0x80, 2, 0x1236), (0x80, 2, 0x1234)]);
        assert_eq!(model.state(0), STATE_ANSWERED);
    }

    #[test]
    fn values_that_are_not_in_guest_memory_are_an_error_and_answered() {
        let model = FakeModel::new(1);
        let (server, memory, mut log) = (server(&model), memory(), Log::default());
        model.ask(0, raw(TYPE_MEMORY, 0x1000, 4, 2, IS_POINTER, 4092));
        let error = taken(&server).pop().unwrap().perform(&mut log, &memory).unwrap_err();
        assert!(matches!(error, PerformError::Memory { count: 2, .. }), "{error}");
        assert_eq!(log.0.len(), 1);
        assert_eq!(model.state(0), STATE_ANSWERED);
    }

    #[test]
    fn the_page_comes_as_a_frame_where_there_are_no_resources() {
        let model = FakeModel::new(1);
        model.forget_resources(Errno::NOTTY);
        let server = server(&model);
        model.ask(0, raw(TYPE_MEMORY, 0x1000, 4, 1, READ, 0));
        taken(&server).pop().unwrap().answer(9).unwrap();
        assert_eq!(model.answer(0), Some(9));
        drop(server);
        let error = IoreqServer::create(&model.calls(), FakeModel::DOMAIN, PageSource::Resource).unwrap_err();
        assert!(matches!(error, ServerError::Map(_)), "{error}");
        assert!(!model.has_server());
    }

    #[test]
    fn kicks_go_to_the_kernel_where_it_can_and_come_back_before_the_page_goes() {
        let model = FakeModel::new(1);
        let server = server(&model);
        let kick = crate::event_loop::EventFd::new().unwrap();
        for unable in [EventFdSupport::Nothing, EventFdSupport::InterruptsOnly] {
            model.set_support(unable);
            assert!(!server.kick_in_kernel(0x200_0000, 0, kick.as_fd()).unwrap());
        }
        model.set_support(EventFdSupport::Both);
        for queue in 0..3 {
            assert!(server.kick_in_kernel(0x200_0000, queue, kick.as_fd()).unwrap());
        }
        assert_eq!(model.assigned(), (0, 3));
        server.kick_no_longer(0x200_0000, 1).unwrap();
        server.kick_no_longer(0x200_0000, 1).unwrap();
        assert_eq!(model.assigned(), (0, 2));
        drop(server);
        assert_eq!(model.assigned(), (0, 0));
    }

    #[test]
    fn a_refusal_says_what_of_which_domain() {
        let model = FakeModel::new(1);
        let error = IoreqServer::create(&model.calls(), 99, PageSource::Any).unwrap_err();
        assert_eq!(
            error.to_string(),
            "making an IOREQ server of domain 99: No such process (os error 3) (there is no such domain)"
        );
    }
}
