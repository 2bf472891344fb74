//! The server itself: its ports, its ranges, and its end.
//!
//! # Safety
//! What the kernel is given to keep (the page, for kicks) is taken back before it goes.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    page::{MAX_VCPUS, Page, PageSource, map_page},
    pending::PendingRequest,
    request::{Request, RequestData, cut},
};
use crate::{
    memory::Owner,
    xen::{
        call_error::{CallError, check_owner},
        dm_op::{DeviceModel, DeviceModelCalls, Interrupt, IoRange},
        eventfd::{AssignedKick, EventFdCalls, EventFdSupport, InterruptFd, Kick},
        evtchn::{EventCalls, EventChannels, Evtchn},
        foreign::ForeignMapError,
        open::OpenError,
        privcmd::{ForeignCalls, Privcmd},
    },
};

/// How long a server that closes waits for vCPUs to take their answers. One that is paused, or whose domain is gone, never does.
const LEAVING: Duration = Duration::from_millis(100);

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
    pub fn open() -> Result<Self, OpenError> {
        let privcmd = Arc::new(Privcmd::open()?);
        Ok(Self {
            foreign: privcmd.clone(),
            model: privcmd.clone(),
            events: Arc::new(Evtchn::open()?),
            eventfds: privcmd,
        })
    }
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

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) model: DeviceModel,
    pub(super) events: EventChannels,
    pub(super) eventfds: Arc<dyn EventFdCalls>,
    pub(super) id: u16,
    pub(super) page: Page,
    pub(super) owner: Owner,
    /// By vCPU.
    pub(super) ports: Mutex<Ports>,
}

/// Our ports by vCPU, and the kicks that the kernel takes from there; none once the server is closed.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) local: Vec<u32>,
    pub(super) kicks: Vec<AssignedKick>,
    pub(super) open: bool,
}

impl Default for Ports {
    fn default() -> Self {
        Self { local: Vec::new(), kicks: Vec::new(), open: true }
    }
}

impl Inner {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is this the process that it belongs to?
    pub(super) fn is_ours(&self) -> bool {
        self.owner.is_this_process()
    }

    /// Answers what is in process, and wakes the vCPU.
    pub(super) fn answer(&self, request: &Request, value: u64) -> Result<(), CallError> {
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
            page: self.page.address(),
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
        self.wait_for_vcpus(ports.local.len());
        self.unbind(&mut ports);
        let _ = self.model.destroy_ioreq_server(self.id);
    }

    /// Takes no more part in it, and lets it be: what vCPUs want waits for whoever takes it over.
    fn leave(&self) {
        let mut ports = self.ports();
        if !std::mem::take(&mut ports.open) {
            return;
        }
        // The kernel would go on with them.
        for kick in std::mem::take(&mut ports.kicks) {
            let _ = self.route(&ports, &kick, false);
        }
        self.unbind(&mut ports);
    }

    fn unbind(&self, ports: &mut Ports) {
        for port in ports.local.drain(..) {
            let _ = self.events.unbind(port);
        }
    }

    /// Waits until the vCPUs have their answers, as long as they may be on their way: what lies in the page when the server
    /// goes is lost, and a read gives what happened to be in the vCPU's request.
    fn wait_for_vcpus(&self, vcpus: usize) {
        let deadline = Instant::now() + LEAVING;
        while (0..vcpus).any(|vcpu| self.page.holds_answer(vcpu)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
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
        let page = match map_page(&*calls.foreign, &model, id, source) {
            Ok(page) => page,
            Err(error) => {
                let _ = model.destroy_ioreq_server(id);
                return Err(error);
            }
        };
        let ports = Mutex::new(Ports::default());
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
        let mut ports = self.inner.ports();
        for port in vcpu_ports(model, page)? {
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
    /// If this process is killed meanwhile, Linux (seen: 6.12) goes on looking at the page of the server, which went with the
    /// process: the next kick crashes dom0.
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
            requests.extend(request.map(|request| PendingRequest::new(request, Arc::clone(&self.inner))));
        }
        Ok(())
    }

    /// Ends here, and stays in Xen, which has the vCPUs wait that want something of it: whoever
    /// [takes it over](Self::take_over) answers them. What was taken and not answered is among that.
    pub fn leave(&self) {
        if self.inner.owner.is_this_process() {
            self.inner.leave();
        }
    }

    /// Ends the server: what was not answered is answered as an empty bus would, and its ranges are nobody's.
    pub fn close(&self) {
        if self.inner.owner.is_this_process() {
            self.inner.close();
        }
    }
}

/// The domain's own ports of its vCPUs, to which we bind.
pub(super) fn vcpu_ports(model: &DeviceModel, page: &Page) -> Result<Vec<u32>, CallError> {
    let vcpus = match model.vcpus() {
        Ok(vcpus) => Some(vcpus as usize),
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => None,
        Err(error) => return Err(error),
    };
    if let Some(vcpus) = vcpus.filter(|&vcpus| vcpus > MAX_VCPUS) {
        let text = format!("domain {} has {vcpus} vCPUs: up to {MAX_VCPUS} have a slot", model.domain());
        return Err(CallError::Argument(text));
    }
    let ports = (0..vcpus.unwrap_or(MAX_VCPUS)).map_while(|vcpu| page.slot(vcpu).map(|slot| page.port(slot)));
    Ok(ports.take_while(|&port| port != 0).collect())
}

impl AsFd for IoreqServer {
    /// Readable while there may be a request.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.events.as_fd()
    }
}
