//! What all devices of a guest share in this process: an IOREQ server, the thread that answers, the guest's memory.

use std::{
    collections::HashMap,
    ops::Range,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    GuestError,
    slot::{Slot, Task},
};
use crate::{
    event_loop::{EventFd, EventLoop},
    memory::{AttachRequest, ForeignWindows, GrantCache, GuestMemory, MemoryError, Owner, Region},
    mmio::REGION_LEN,
    xen::{
        CallError, Gntdev, GrantCalls, IoRange, IoreqServer, PageSource, PendingRequest, RequestKind,
        ServerCalls, sim,
    },
};

const REQUESTS: u64 = 0;
const STOP: u64 = 1;
const GONE: u64 = 2;

/// How a device reaches the memory of its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// As the driver says: addresses that are made of grant references by grants, others by foreign mappings.
    #[default]
    Any,
    /// By foreign mappings alone.
    Foreign,
    /// By grants alone: a driver that does not give any is refused.
    Grants,
}

/// The calls behind a bus: the kernel's, or those of a simulated hypervisor.
#[derive(Clone, Debug)]
pub struct GuestCalls {
    /// Of the IOREQ server and the foreign mappings.
    pub server: ServerCalls,
    /// Of the grants; None where there are none.
    pub grants: Option<Arc<dyn GrantCalls>>,
    /// Readable once the guest is gone; None where [`GuestBus::guest_is_gone`] tells.
    pub gone: Option<Arc<EventFd>>,
}

impl GuestCalls {
    fn open() -> Result<Self, GuestError> {
        let server = ServerCalls::open()?;
        let grants = Gntdev::open().ok().map(|device| Arc::new(device) as Arc<dyn GrantCalls>);
        Ok(Self { server, grants, gone: None })
    }

    /// Those of a simulated domain, for a guest on the same machine.
    fn simulated(domain: &sim::Domain, guest: u16) -> Result<Self, GuestError> {
        let system = |what| move |errno| GuestError::System { what, errno };
        let server = domain.server_calls().map_err(system("making simulated devices"))?;
        let guest = domain.hypervisor().domain(guest);
        let gone = guest.map(|guest| guest.gone()).transpose()?;
        Ok(Self { server, grants: Some(Arc::new(domain.gntdev())), gone })
    }
}

/// How a guest's memory is mapped.
#[derive(Clone, Debug)]
pub struct BusOptions {
    /// Where the guest may have RAM, by guest physical address; nothing is mapped before it is touched.
    pub ranges: Vec<Range<u64>>,
    /// How many bytes of it may stay mapped.
    pub limit: u64,
    /// How long frames that are paged out are waited for.
    pub patience: Duration,
}

/// Buses by machine (0 is this one, others are simulated) and domain.
type Buses = HashMap<(usize, u16), Weak<GuestBus>>;

/// Those of this process.
static BUSES: Mutex<Option<Buses>> = Mutex::new(None);

/// An IOREQ server of a guest, with the devices that it answers for. It ends with the last of them.
#[derive(Debug)]
pub struct GuestBus {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    owner: Owner,
}

#[derive(Debug)]
struct Shared {
    server: IoreqServer,
    windows: Arc<ForeignWindows>,
    foreign: Vec<Region>,
    grants: Option<Arc<GrantCache>>,
    slots: RwLock<Vec<Arc<Slot>>>,
    calls: ServerCalls,
    stop: EventFd,
    gone: AtomicBool,
    left: AtomicBool,
    /// What tells of the guest's end is watched as long as this lives.
    _end: Option<Arc<EventFd>>,
}

impl GuestBus {
    /// The bus of a guest in this process; makes it, if there is none. By the kernel's calls, or those of a simulated domain.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn of(
        domain: u16,
        options: &BusOptions,
        simulated: Option<&sim::Domain>,
    ) -> Result<Arc<Self>, GuestError> {
        let key = (simulated.map_or(0, |own| own.hypervisor().id()), domain);
        let mut buses = BUSES.lock().unwrap_or_else(PoisonError::into_inner);
        let buses = buses.get_or_insert_default();
        let known = buses.get(&key).and_then(Weak::upgrade);
        if let Some(bus) =
            known.filter(|bus| bus.owner.is_this_process() && !bus.is_gone() && !bus.has_left())
        {
            return Ok(bus);
        }
        let calls = match simulated {
            Some(own) => GuestCalls::simulated(own, domain)?,
            None => GuestCalls::open()?,
        };
        let bus = Self::new(&calls, domain, options)?;
        buses.insert(key, Arc::downgrade(&bus));
        Ok(bus)
    }

    /// As [`of`](Self::of), by these calls, and always a new one.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn new(calls: &GuestCalls, domain: u16, options: &BusOptions) -> Result<Arc<Self>, GuestError> {
        let system = |what| move |errno| GuestError::System { what, errno };
        let BusOptions { ranges, limit, patience } = options;
        let request = AttachRequest { domain, writable: true, patience: *patience, limit: *limit };
        let (windows, memory) = ForeignWindows::attach(Arc::clone(&calls.server.foreign), ranges, &request)
            .map_err(|source| GuestError::Memory { domain, source })?;
        let stop = EventFd::new().map_err(system("making an eventfd"))?;
        let event_loop = EventLoop::new().map_err(system("making an epoll instance"))?;
        let server = IoreqServer::create(&calls.server, domain, PageSource::Any)?;
        event_loop.watch(server.as_fd(), REQUESTS).map_err(system("watching event channels"))?;
        event_loop.watch(stop.as_fd(), STOP).map_err(system("watching an eventfd"))?;
        if let Some(gone) = &calls.gone {
            event_loop.watch(gone.as_fd(), GONE).map_err(system("watching an eventfd"))?;
        }
        let end = calls.gone.clone();
        let (slots, gone, left) = (RwLock::default(), AtomicBool::new(false), AtomicBool::new(false));
        let server_calls = calls.server.clone();
        let foreign = memory.regions().to_vec();
        let grants = calls.grants.as_ref().map(|calls| GrantCache::new(Arc::clone(calls), domain, *patience));
        let shared = Arc::new(Shared {
            server,
            windows,
            foreign,
            grants,
            slots,
            calls: server_calls,
            stop,
            gone,
            left,
            _end: end,
        });
        let serving = Arc::clone(&shared);
        let name = format!("xen-guest-{domain}");
        let thread = std::thread::Builder::new().name(name).spawn(move || serving.serve(&event_loop));
        let thread = thread.map_err(|error| {
            let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::AGAIN);
            GuestError::System { what: "starting a thread", errno }
        })?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)), owner: Owner::this_process() }))
    }

    /// The guest.
    pub fn domain(&self) -> u16 {
        self.shared.server.domain()
    }

    /// Can its memory be reached by grants?
    pub fn has_grants(&self) -> bool {
        self.shared.grants.is_some()
    }

    /// The guest's memory, as a device reaches it.
    ///
    /// # Errors
    /// [`MemoryError::Forked`]. Without grants where they are wanted the table is empty.
    pub fn memory(&self, reach: Reach) -> Result<GuestMemory, MemoryError> {
        let Shared { foreign, grants, .. } = &*self.shared;
        let foreign = if reach == Reach::Grants { &[] } else { foreign.as_slice() };
        let grants = grants.as_ref().filter(|_| reach != Reach::Foreign);
        GuestMemory::new(foreign.iter().cloned().chain(grants.map(|cache| cache.region())).collect())
    }

    /// Its IOREQ server.
    pub fn server(&self) -> &IoreqServer {
        &self.shared.server
    }

    /// The guest is gone, or can be served no more.
    pub fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire)
    }

    /// Somebody knows that the guest is gone: its devices are told, and let go of its memory.
    pub fn guest_is_gone(&self) {
        self.shared.end(None);
    }

    /// Ends here, without the guest's noticing: accesses wait in Xen, for a bus of another process that
    /// [takes them over](Self::take_over). What devices are served here are let go of by whoever serves them.
    pub fn leave(&self) {
        self.shared.left.store(true, Ordering::Release);
        self.shared.server.leave();
    }

    fn has_left(&self) -> bool {
        self.shared.left.load(Ordering::Acquire)
    }

    /// Answers what waits for a server that was left, and ends that: its devices have to be on this bus. Gives how many vCPUs waited.
    ///
    /// # Errors
    /// See [`IoreqServer::take_over`].
    pub fn take_over(&self, server: u16) -> Result<usize, GuestError> {
        let requests = IoreqServer::take_over(&self.shared.calls, self.domain(), server)?;
        let waited = requests.len();
        for request in requests {
            self.shared.dispatch(request);
        }
        Ok(waited)
    }

    pub(super) fn add(&self, slot: &Arc<Slot>) -> Result<(), GuestError> {
        let mut slots = self.shared.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.iter().any(|other| other.base.abs_diff(slot.base) < REGION_LEN) {
            return Err(GuestError::Occupied(slot.base));
        }
        if let Some(level) =
            slot.level().filter(|level| slots.iter().any(|other| other.level() == Some(*level)))
        {
            return Err(GuestError::SharedLevel(level));
        }
        // Before Xen sends an access here somebody has to be there.
        slots.push(Arc::clone(slot));
        let mapped = self.shared.server.map_range(&region(slot));
        if mapped.is_err() {
            slots.pop();
        }
        Ok(mapped?)
    }

    /// The device is served no more. What it has not answered is answered as an empty bus would.
    pub(super) fn remove(&self, slot: &Arc<Slot>) {
        // It fails when the domain is gone.
        let _ = self.shared.server.unmap_range(&region(slot));
        let mut slots = self.shared.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|other| !Arc::ptr_eq(other, slot));
        drop(slots);
        while slot.next_task().is_some() {}
    }
}

fn region(slot: &Slot) -> IoRange {
    IoRange::Memory(slot.base..=slot.base + (REGION_LEN - 1))
}

impl Drop for GuestBus {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if !self.owner.is_this_process() {
            // The thread is the parent's; a handle on it must not be waited for here.
            std::mem::forget(thread);
            return;
        }
        self.shared.stop.signal();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        self.shared.server.close();
    }
}

impl Shared {
    /// The bus's thread: answers until the bus ends.
    fn serve(&self, event_loop: &EventLoop) {
        let (mut ready, mut requests) = (Vec::new(), Vec::new());
        loop {
            let served = match event_loop.wait(None, &mut ready) {
                Ok(_) if ready.contains(&STOP) => return,
                Ok(_) if ready.contains(&GONE) => return self.end(None),
                Ok(_) => self.server.take(&mut requests).map_err(|error| error.to_string()),
                Err(errno) => Err(format!("waiting for event channels: {errno}")),
            };
            ready.clear();
            for request in requests.drain(..) {
                self.dispatch(request);
            }
            if self.left.load(Ordering::Acquire) {
                return;
            }
            if let Err(reason) = served {
                return self.end(Some(reason));
            }
        }
    }

    fn dispatch(&self, request: PendingRequest) {
        let wanted = request.request();
        match wanted.kind {
            RequestKind::Memory => {
                if let Some(slot) = self.slots().into_iter().find(|slot| slot.contains(wanted.address)) {
                    slot.dispatch(request);
                }
                // Else it is dropped, and answered as an empty bus would: a device was just taken away.
            }
            RequestKind::Invalidate => {
                let invalidated = self.windows.invalidate();
                for slot in self.slots() {
                    slot.memory_changed();
                }
                let _: Result<(), CallError> = request.answer(0);
                if let Err(error) = invalidated {
                    self.end(Some(error.to_string()));
                }
            }
            _ => {
                let _ = request.answer(0);
            }
        }
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the devices that there is no guest any more.
    fn end(&self, reason: Option<String>) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            for slot in self.slots() {
                slot.defer(Task::Gone(reason.clone()));
            }
        }
    }
}
