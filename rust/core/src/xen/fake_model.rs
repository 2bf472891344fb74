//! For tests: a domain whose vCPUs are ours to move, behind the calls of an IOREQ server.
//!
//! It is not the simulation of `sim`, because it does what Xen never does, or not here: requests that break the rules, states
//! out of their order, pages that are frames of the guest, a kernel that takes eventfds.
//!
//! # Safety
//! It maps its page where the device would: in ranges that its caller reserved.
#![allow(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{Errno, pread, pwrite},
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous},
};

use super::{
    DeviceModelCalls, EventCalls, EventFdCalls, EventFdSupport, ForeignCalls, Kick, Resource, ServerCalls,
    abi::{
        FRAME,
        dm_op::{
            CREATE_IOREQ_SERVER, CreateIoreqServer, DESTROY_IOREQ_SERVER, DmOp, GET_IOREQ_SERVER_INFO,
            GetIoreqServerInfo, IoreqServerRange, MAP_IO_RANGE, NR_VCPUS, NrVcpus, SET_IOREQ_SERVER_STATE,
            SetIoreqServerState, UNMAP_IO_RANGE,
        },
        ioreq::{Ioreq, STATE_ANSWERED, STATE_MASK, STATE_READY},
    },
};
use crate::event_loop::EventFd;

const SERVER: u16 = 4;
const PAGE_FRAME: u64 = 0xfeff0;
/// What Xen numbers the port of vCPU 0 in the domain, and we ours.
const FIRST_PORT: u32 = 10;
const FIRST_LOCAL: u32 = 50;

#[derive(Debug)]
pub(crate) struct FakeModel {
    vcpus: u32,
    page: OwnedFd,
    readable: EventFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    server: bool,
    no_resources: Option<Errno>,
    ranges: BTreeSet<(u32, u64, u64)>,
    /// Local port to remote one.
    bound: BTreeMap<u32, u32>,
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
    /// Notified while masked.
    waiting: BTreeSet<u32>,
    told: BTreeSet<u32>,
    operations: Vec<DmOp>,
    support: Option<EventFdSupport>,
    irqfds: usize,
    ioeventfds: usize,
}

impl FakeModel {
    pub(crate) const DOMAIN: u16 = 7;

    pub(crate) fn new(vcpus: u32) -> Arc<Self> {
        let page = memfd_create("ioreq", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&page, FRAME as u64).unwrap();
        Arc::new(Self { vcpus, page, readable: EventFd::new().unwrap(), state: Mutex::default() })
    }

    pub(crate) fn calls(self: &Arc<Self>) -> ServerCalls {
        ServerCalls {
            foreign: self.clone(),
            model: self.clone(),
            events: self.clone(),
            eventfds: self.clone(),
        }
    }

    fn state_of_all(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn slot(&self, vcpu: u32) -> Ioreq {
        let mut bytes = [0; size_of::<Ioreq>()];
        pread(&self.page, &mut bytes, u64::from(vcpu) * size_of::<Ioreq>() as u64).unwrap();
        bytemuck::pod_read_unaligned(&bytes)
    }

    fn set_slot(&self, vcpu: u32, slot: Ioreq) {
        pwrite(&self.page, bytemuck::bytes_of(&slot), u64::from(vcpu) * size_of::<Ioreq>() as u64).unwrap();
    }

    /// A vCPU asks, as Xen does for it.
    pub(crate) fn ask(&self, vcpu: u32, request: Ioreq) {
        self.set_slot(vcpu, Ioreq { bits: request.bits | STATE_READY, port: FIRST_PORT + vcpu, ..request });
        let mut state = self.state_of_all();
        state.told.remove(&vcpu);
        self.raise(&mut state, FIRST_LOCAL + vcpu);
    }

    fn raise(&self, state: &mut State, port: u32) {
        if state.masked.contains(&port) {
            state.waiting.insert(port);
        } else {
            state.pending.insert(port);
            self.readable.signal();
        }
    }

    /// The data, once the vCPU is answered and told.
    pub(crate) fn answer(&self, vcpu: u32) -> Option<u64> {
        let told = self.state_of_all().told.contains(&vcpu);
        (told && self.state(vcpu) == STATE_ANSWERED).then(|| self.slot(vcpu).data)
    }

    pub(crate) fn state(&self, vcpu: u32) -> u8 {
        self.slot(vcpu).bits & STATE_MASK
    }

    pub(crate) fn set_state(&self, vcpu: u32, state: u8) {
        let slot = self.slot(vcpu);
        self.set_slot(vcpu, Ioreq { bits: slot.bits & !STATE_MASK | state, ..slot });
    }

    pub(crate) fn ranges(&self) -> Vec<(u32, u64, u64)> {
        self.state_of_all().ranges.iter().copied().collect()
    }

    pub(crate) fn bound_ports(&self) -> usize {
        self.state_of_all().bound.len()
    }

    pub(crate) fn has_server(&self) -> bool {
        self.state_of_all().server
    }

    /// Answers requests for resources with this error.
    pub(crate) fn forget_resources(&self, errno: Errno) {
        self.state_of_all().no_resources = Some(errno);
    }

    /// The operations that are none of the server's: interrupts.
    pub(crate) fn operations(&self) -> Vec<DmOp> {
        self.state_of_all().operations.clone()
    }

    /// What the kernel does with eventfds: nothing, unless it is said.
    pub(crate) fn set_support(&self, support: EventFdSupport) {
        self.state_of_all().support = Some(support);
    }

    /// How many are assigned: for interrupts, for kicks.
    pub(crate) fn assigned(&self) -> (usize, usize) {
        let state = self.state_of_all();
        (state.irqfds, state.ioeventfds)
    }

    fn map(&self, at: NonNull<u8>) -> Result<(), Errno> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: inside the range that was reserved.
        unsafe { mmap(at.as_ptr().cast(), FRAME, protection, flags, &self.page, 0) }.map(drop)
    }
}

impl DeviceModelCalls for FakeModel {
    fn dm_op(&self, domain: u16, op: &mut DmOp) -> Result<(), Errno> {
        if domain != Self::DOMAIN {
            return Err(Errno::SRCH);
        }
        let mut state = self.state_of_all();
        match op.op {
            CREATE_IOREQ_SERVER => {
                state.server = true;
                *op = DmOp::new(op.op, &CreateIoreqServer { id: SERVER, ..op.arguments() });
            }
            GET_IOREQ_SERVER_INFO => {
                *op = DmOp::new(op.op, &GetIoreqServerInfo { ioreq_gfn: PAGE_FRAME, ..op.arguments() });
            }
            SET_IOREQ_SERVER_STATE if op.arguments::<SetIoreqServerState>().enabled == 1 => {
                for vcpu in 0..self.vcpus {
                    self.set_slot(vcpu, Ioreq { port: FIRST_PORT + vcpu, ..self.slot(vcpu) });
                }
            }
            SET_IOREQ_SERVER_STATE => {}
            MAP_IO_RANGE | UNMAP_IO_RANGE => {
                let range: IoreqServerRange = op.arguments();
                let key = (range.kind, range.start, range.end);
                if op.op == MAP_IO_RANGE {
                    state.ranges.insert(key);
                } else if !state.ranges.remove(&key) {
                    return Err(Errno::NOENT);
                }
            }
            DESTROY_IOREQ_SERVER => state.server = false,
            NR_VCPUS => *op = DmOp::new(op.op, &NrVcpus { vcpus: self.vcpus }),
            _ => state.operations.push(*op),
        }
        Ok(())
    }
}

impl AsFd for FakeModel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl EventCalls for FakeModel {
    fn bind_interdomain(&self, _domain: u16, port: u32) -> Result<u32, Errno> {
        let mut state = self.state_of_all();
        let local = port - FIRST_PORT + FIRST_LOCAL;
        state.bound.insert(local, port);
        self.raise(&mut state, local);
        Ok(local)
    }

    fn bind_unbound(&self, _domain: u16) -> Result<u32, Errno> {
        Err(Errno::NOSPC)
    }

    fn bind_virq(&self, _virq: u32) -> Result<u32, Errno> {
        Err(Errno::EXIST)
    }

    fn unbind(&self, port: u32) -> Result<(), Errno> {
        self.state_of_all().bound.remove(&port).map(drop).ok_or(Errno::NOTCONN)
    }

    fn notify(&self, port: u32) -> Result<(), Errno> {
        let mut state = self.state_of_all();
        let remote = *state.bound.get(&port).ok_or(Errno::NOTCONN)?;
        state.told.insert(remote - FIRST_PORT);
        Ok(())
    }

    fn pending(&self, ports: &mut Vec<u32>) -> Result<(), Errno> {
        let mut state = self.state_of_all();
        self.readable.drain();
        let pending = std::mem::take(&mut state.pending);
        state.masked.extend(&pending);
        ports.extend(pending);
        Ok(())
    }

    fn unmask(&self, port: u32) -> Result<(), Errno> {
        let mut state = self.state_of_all();
        state.masked.remove(&port);
        if state.waiting.remove(&port) {
            self.raise(&mut state, port);
        }
        Ok(())
    }

    fn restrict(&self, _domain: u16) -> Result<(), Errno> {
        Ok(())
    }
}

impl ForeignCalls for FakeModel {
    fn reserve(&self, frames: usize, _writable: bool) -> Result<NonNull<u8>, Errno> {
        let (len, flags) = (frames * FRAME, MapFlags::PRIVATE);
        // SAFETY: a fresh range.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        Ok(NonNull::new(base.cast()).unwrap())
    }

    unsafe fn reserve_at(&self, _at: NonNull<u8>, _frames: usize, _writable: bool) -> Result<(), Errno> {
        Err(Errno::NOMEM)
    }

    fn map_frames(
        &self,
        _domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno> {
        assert_eq!(frames, [PAGE_FRAME]);
        errors.fill(0);
        self.map(at)
    }

    fn map_resource(
        &self,
        _domain: u16,
        at: NonNull<u8>,
        resource: Resource,
        id: u32,
        first: u32,
        frames: u64,
    ) -> Result<(), Errno> {
        if let Some(errno) = self.state_of_all().no_resources {
            return Err(errno);
        }
        assert_eq!((resource, id, first, frames), (Resource::IoreqServer, SERVER.into(), 1, 1));
        self.map(at)
    }

    fn resource_size(&self, _domain: u16, _resource: Resource, _id: u32) -> Result<u64, Errno> {
        Ok(2)
    }

    fn restrict(&self, _domain: u16) -> Result<(), Errno> {
        Ok(())
    }
}

impl EventFdCalls for FakeModel {
    fn support(&self) -> EventFdSupport {
        self.state_of_all().support.unwrap_or(EventFdSupport::Nothing)
    }

    fn irqfd(
        &self,
        _domain: u16,
        _operation: &DmOp,
        _eventfd: BorrowedFd<'_>,
        assign: bool,
    ) -> Result<(), Errno> {
        let mut state = self.state_of_all();
        state.irqfds = if assign { state.irqfds + 1 } else { state.irqfds - 1 };
        Ok(())
    }

    unsafe fn ioeventfd(&self, kick: &Kick<'_>, _eventfd: BorrowedFd<'_>, assign: bool) -> Result<(), Errno> {
        let mut state = self.state_of_all();
        assert!(state.server && kick.ports.iter().all(|port| state.bound.contains_key(port)));
        state.ioeventfds = if assign { state.ioeventfds + 1 } else { state.ioeventfds - 1 };
        Ok(())
    }
}
