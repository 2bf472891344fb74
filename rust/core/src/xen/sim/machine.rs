//! The machine: its domains, and all that is between them, behind one lock.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{
    domain::Domain,
    evtchn::{File, Port},
    frames::Frames,
    grants::Granted,
    model::Signal,
    pages::{Page, file},
    server::{Server, Vcpu},
    vma::Vmas,
};
use crate::{event_loop::EventFd, xen::abi::FRAME};

/// The domain that has the hypervisor's rights.
pub(super) const DOM0: u16 = 0;
/// `DOMID_SELF` (xen/include/public/xen.h).
pub(super) const DOMID_SELF: u16 = 0x7FF0;
/// `DOMID_IO`.
pub(super) const DOMID_IO: u16 = 0x7FF1;
/// `DOMID_FIRST_RESERVED`.
pub(super) const FIRST_RESERVED: u16 = 0x7FF0;

/// What kind of dom0 it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Paravirtual, on x86.
    Pv,
    /// In a container of the hardware's, on x86.
    Pvh,
    /// On Arm.
    Arm,
}

impl Kind {
    /// Frames are pages of this process, so that its pages have to be as small.
    fn check_page_size() -> Result<(), Errno> {
        if rustix::param::page_size() == FRAME { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    }
}

/// A machine with Xen, a dom0, and the domains that are made on it.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    machine: Arc<Machine>,
}

impl Hypervisor {
    /// A machine with nothing but its dom0.
    ///
    /// # Errors
    /// EOPNOTSUPP where pages are not of 4 KiB; or no memory.
    pub fn new(kind: Kind) -> Result<Self, Errno> {
        Kind::check_page_size()?;
        let (nothing, ones) = (file(0)?, Page::new()?);
        ones.write(0, &[0xff; FRAME])?;
        let dom0 = State::domain(Frames::none(), 1);
        let state = State {
            domains: BTreeMap::from([(DOM0, dom0)]),
            files: BTreeMap::new(),
            vmas: Vmas::default(),
            next_domain: 1,
            next_file: 0,
        };
        Ok(Self { machine: Arc::new(Machine { kind, nothing, ones, state: Mutex::new(state) }) })
    }

    /// Its dom0.
    pub fn dom0(&self) -> Domain {
        Domain::new(Arc::clone(&self.machine), DOM0)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.machine.kind
    }

    /// A domain by its number, if it is there.
    pub fn domain(&self, domain: u16) -> Option<Domain> {
        let is_there = self.machine.state().domains.contains_key(&domain);
        is_there.then(|| Domain::new(Arc::clone(&self.machine), domain))
    }

    /// The numbers of its domains.
    pub fn domains(&self) -> Vec<u16> {
        self.machine.state().domains.keys().copied().collect()
    }

    /// A number that no other machine has while this one lives; not 0.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.machine).addr()
    }

    pub(super) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub(super) fn of(machine: Arc<Machine>) -> Self {
        Self { machine }
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) kind: Kind,
    /// A file of which every page is beyond its end.
    pub(super) nothing: Arc<OwnedFd>,
    /// A page of 0xff.
    pub(super) ones: Page,
    state: Mutex<State>,
}

impl Machine {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) domains: BTreeMap<u16, DomainState>,
    /// Open files of /dev/xen/evtchn, of all domains.
    pub(super) files: BTreeMap<u64, File>,
    /// Ranges of /dev/xen/privcmd.
    pub(super) vmas: Vmas,
    next_domain: u16,
    pub(super) next_file: u64,
}

#[derive(Debug)]
pub(super) struct DomainState {
    pub(super) frames: Frames,
    pub(super) grants: BTreeMap<u32, Granted>,
    pub(super) ports: BTreeMap<u32, Port>,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) servers: BTreeMap<u16, Server>,
    /// Signalled when it is destroyed.
    pub(super) ends: Vec<Arc<EventFd>>,
    /// What its device models signalled.
    pub(super) signals: Vec<Signal>,
}

impl State {
    pub(super) fn domain(frames: Frames, vcpus: usize) -> DomainState {
        DomainState {
            frames,
            grants: BTreeMap::new(),
            ports: BTreeMap::new(),
            vcpus: std::iter::repeat_with(Vcpu::default).take(vcpus).collect(),
            servers: BTreeMap::new(),
            ends: Vec::new(),
            signals: Vec::new(),
        }
    }

    /// Makes a domain, under a number that was never used.
    pub(super) fn create(&mut self, domain: DomainState) -> Result<u16, Errno> {
        let number = self.next_domain;
        if number >= FIRST_RESERVED {
            return Err(Errno::NOSPC);
        }
        self.next_domain += 1;
        self.domains.insert(number, domain);
        Ok(number)
    }

    /// The domain; ESRCH if it is not there.
    pub(super) fn get(&mut self, domain: u16) -> Result<&mut DomainState, Errno> {
        self.domains.get_mut(&domain).ok_or(Errno::SRCH)
    }
}
