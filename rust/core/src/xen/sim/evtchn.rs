//! Event channels: the ports of all domains, and /dev/xen/evtchn, which binds them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use rustix::io::Errno;

use super::machine::{DOMID_SELF, FIRST_RESERVED, Machine, State};
use crate::{
    event_loop::EventFd,
    memory::Owner,
    xen::{EventCalls, UnmapNotify},
};

/// How many virtual interrupts there are (NR_VIRQS, xen/include/public/xen.h).
const VIRQS: u32 = 24;
/// How many ports a domain may have (the 2-level ABI of a 64-bit one).
const PORTS: u32 = 4096;

/// One end of a channel.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) peer: Peer,
    pub(super) user: User,
}

/// What is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Nobody: this domain may bind to it.
    Unbound(u16),
    /// A port of a domain.
    Bound(u16, u32),
    /// A virtual interrupt.
    Virtual(u32),
}

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// An open file of /dev/xen/evtchn.
    File(u64),
    /// Xen, for a vCPU of the port's domain, which waits for an IOREQ server.
    Vcpu(u16, usize),
}

/// What the kernel knows of an open file.
#[derive(Debug)]
pub(super) struct File {
    readable: Arc<EventFd>,
    /// Ports that are told of when it is read.
    ring: VecDeque<u32>,
    /// Ports that were put there, and not unmasked since.
    masked: BTreeSet<u32>,
    /// Those that were notified meanwhile.
    waiting: BTreeSet<u32>,
}

impl File {
    fn raise(&mut self, port: u32) {
        if self.masked.insert(port) {
            self.ring.push_back(port);
            self.readable.signal();
        } else {
            self.waiting.insert(port);
        }
    }

    fn forget(&mut self, port: u32) {
        self.ring.retain(|&one| one != port);
        self.masked.remove(&port);
        self.waiting.remove(&port);
        if self.ring.is_empty() {
            self.readable.drain();
        }
    }
}

impl State {
    /// Makes a port of a domain.
    pub(super) fn add_port(&mut self, domain: u16, port: Port) -> Result<u32, Errno> {
        let ports = &mut self.get(domain)?.ports;
        let free = (1..PORTS).find(|number| !ports.contains_key(number)).ok_or(Errno::NOSPC)?;
        ports.insert(free, port);
        Ok(free)
    }

    /// A port of a domain is pending: who uses it is told.
    pub(super) fn raise(&mut self, domain: u16, port: u32) {
        let found = self.domains.get(&domain).and_then(|domain| domain.ports.get(&port));
        match found.map(|port| port.user) {
            Some(User::File(file)) => {
                if let Some(file) = self.files.get_mut(&file) {
                    file.raise(port);
                }
            }
            Some(User::Vcpu(server, vcpu)) => self.take_answer(domain, server, vcpu),
            None => {}
        }
    }

    /// Wakes the other end of a port, if there is one.
    pub(super) fn notify(&mut self, domain: u16, port: u32) {
        let found = self.domains.get(&domain).and_then(|domain| domain.ports.get(&port));
        if let Some(Peer::Bound(other, theirs)) = found.map(|port| port.peer) {
            self.raise(other, theirs);
        }
    }

    /// Closes a port; the other end is free to be bound again.
    pub(super) fn close_port(&mut self, domain: u16, port: u32) {
        let removed = self.domains.get_mut(&domain).and_then(|domain| domain.ports.remove(&port));
        if let Some(removed) = removed {
            self.unlink(domain, port, &removed);
        }
    }

    /// A domain is gone, with these ports.
    pub(super) fn close_ports_of_domain(&mut self, domain: u16, ports: &BTreeMap<u32, Port>) {
        ports.iter().for_each(|(&number, port)| self.unlink(domain, number, port));
    }

    fn unlink(&mut self, domain: u16, number: u32, port: &Port) {
        if let User::File(file) = port.user
            && let Some(file) = self.files.get_mut(&file)
        {
            file.forget(number);
        }
        if let Peer::Bound(other, theirs) = port.peer
            && let Some(end) = self.domains.get_mut(&other).and_then(|other| other.ports.get_mut(&theirs))
        {
            end.peer = Peer::Unbound(domain);
        }
    }

    /// May pages have this done when they go? A port has to be bound in the domain.
    pub(super) fn check_notify(&mut self, domain: u16, notify: UnmapNotify) -> Result<(), Errno> {
        match notify.port {
            Some(port) if !self.get(domain)?.ports.contains_key(&port) => Err(Errno::INVAL),
            _ => Ok(()),
        }
    }
}

/// One open file of /dev/xen/evtchn. What it has bound goes with it.
#[derive(Debug)]
pub struct SimulatedEvtchn {
    machine: Arc<Machine>,
    own: u16,
    file: u64,
    readable: Arc<EventFd>,
    restricted: std::sync::Mutex<Option<u16>>,
    owner: Owner,
}

impl SimulatedEvtchn {
    pub(super) fn new(machine: Arc<Machine>, own: u16) -> Result<Self, Errno> {
        let readable = Arc::new(EventFd::new()?);
        let mut state = machine.state();
        let file = state.next_file;
        state.next_file += 1;
        let known = File {
            readable: Arc::clone(&readable),
            ring: VecDeque::new(),
            masked: BTreeSet::new(),
            waiting: BTreeSet::new(),
        };
        state.files.insert(file, known);
        drop(state);
        let (restricted, owner) = (std::sync::Mutex::new(None), Owner::this_process());
        Ok(Self { machine, own, file, readable, restricted, owner })
    }

    fn restriction(&self) -> std::sync::MutexGuard<'_, Option<u16>> {
        self.restricted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// EACCES if the file is restricted to another domain.
    fn check(&self, domain: Option<u16>) -> Result<(), Errno> {
        match *self.restriction() {
            Some(only) if Some(only) != domain => Err(Errno::ACCESS),
            _ => Ok(()),
        }
    }

    fn resolved(&self, domain: u16) -> u16 {
        if domain == DOMID_SELF { self.own } else { domain }
    }

    /// Is the port one of this file's?
    fn check_bound(&self, state: &mut State, port: u32) -> Result<(), Errno> {
        let bound = state.get(self.own)?.ports.get(&port);
        let ours = bound.is_some_and(|bound| bound.user == User::File(self.file));
        if ours { Ok(()) } else { Err(Errno::NOTCONN) }
    }
}

impl AsFd for SimulatedEvtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl EventCalls for SimulatedEvtchn {
    fn bind_interdomain(&self, domain: u16, port: u32) -> Result<u32, Errno> {
        self.check(Some(domain))?;
        let domain = self.resolved(domain);
        let mut state = self.machine.state();
        let theirs = state.get(domain)?.ports.get(&port).ok_or(Errno::INVAL)?;
        if theirs.peer != Peer::Unbound(self.own) {
            return Err(Errno::INVAL);
        }
        let user = User::File(self.file);
        let ours = state.add_port(self.own, Port { peer: Peer::Bound(domain, port), user })?;
        if let Some(theirs) = state.get(domain)?.ports.get_mut(&port) {
            theirs.peer = Peer::Bound(self.own, ours);
        }
        // In case that an event was lost before (xen/common/event_channel.c).
        state.raise(self.own, ours);
        Ok(ours)
    }

    fn bind_unbound(&self, domain: u16) -> Result<u32, Errno> {
        self.check(Some(domain))?;
        let (peer, user) = (Peer::Unbound(self.resolved(domain)), User::File(self.file));
        self.machine.state().add_port(self.own, Port { peer, user })
    }

    fn bind_virq(&self, virq: u32) -> Result<u32, Errno> {
        self.check(None)?;
        if virq >= VIRQS {
            return Err(Errno::INVAL);
        }
        let mut state = self.machine.state();
        let peer = Peer::Virtual(virq);
        if state.get(self.own)?.ports.values().any(|port| port.peer == peer) {
            return Err(Errno::EXIST);
        }
        state.add_port(self.own, Port { peer, user: User::File(self.file) })
    }

    fn unbind(&self, port: u32) -> Result<(), Errno> {
        let mut state = self.machine.state();
        self.check_bound(&mut state, port)?;
        state.close_port(self.own, port);
        Ok(())
    }

    fn notify(&self, port: u32) -> Result<(), Errno> {
        let mut state = self.machine.state();
        self.check_bound(&mut state, port)?;
        state.notify(self.own, port);
        Ok(())
    }

    fn pending(&self, ports: &mut Vec<u32>) -> Result<(), Errno> {
        let mut state = self.machine.state();
        if let Some(file) = state.files.get_mut(&self.file) {
            self.readable.drain();
            ports.extend(file.ring.drain(..));
        }
        Ok(())
    }

    fn unmask(&self, port: u32) -> Result<(), Errno> {
        let mut state = self.machine.state();
        if let Some(file) = state.files.get_mut(&self.file)
            && file.masked.remove(&port)
            && file.waiting.remove(&port)
        {
            file.raise(port);
        }
        Ok(())
    }

    fn restrict(&self, domain: u16) -> Result<(), Errno> {
        let mut restricted = self.restriction();
        if restricted.is_some() {
            return Err(Errno::ACCESS);
        }
        if domain == 0 || domain >= FIRST_RESERVED {
            return Err(Errno::INVAL);
        }
        *restricted = Some(domain);
        Ok(())
    }
}

impl Drop for SimulatedEvtchn {
    fn drop(&mut self) {
        // A child has a copy of the machine, whose lock may have been held by a thread that it has not.
        if !self.owner.is_this_process() {
            return;
        }
        let mut state = self.machine.state();
        state.files.remove(&self.file);
        let user = User::File(self.file);
        let ports = state.domains.get(&self.own).map(|domain| {
            domain.ports.iter().filter(|(_, port)| port.user == user).map(|(&number, _)| number).collect()
        });
        let ports: Vec<u32> = ports.unwrap_or_default();
        ports.into_iter().for_each(|port| state.close_port(self.own, port));
    }
}
