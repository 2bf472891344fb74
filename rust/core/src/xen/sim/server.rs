//! What Xen does for IOREQ servers: it gives them the accesses of vCPUs, and takes the answers.

use std::{ops::RangeInclusive, sync::Arc};

use rustix::io::Errno;

use super::{
    access::{Access, AccessResult, Outcome, VcpuAccess},
    evtchn::{Peer, Port, User},
    machine::{Kind, State},
    pages::Page,
};
use crate::xen::abi::{
    FRAME,
    ioreq::{Ioreq, STATE_ANSWERED, STATE_MASK, STATE_NONE, STATE_READY},
};

/// How many vCPUs have a slot in a server's page.
pub(super) const MAX_VCPUS: usize = FRAME / size_of::<Ioreq>();

/// An IOREQ server.
#[derive(Debug)]
pub(super) struct Server {
    /// The domain that it is in.
    pub(super) emulator: u16,
    /// The page of buffered requests, which nobody uses, and that of the others.
    pub(super) pages: [Page; 2],
    pub(super) enabled: bool,
    /// XEN_DMOP_IO_RANGE_*, and the addresses.
    pub(super) ranges: Vec<(u32, RangeInclusive<u64>)>,
    /// The port of each vCPU, in the numbers of the domain.
    pub(super) ports: Vec<u32>,
}

/// A vCPU: what it waits for, and of which server.
#[derive(Debug, Default)]
pub(super) struct Vcpu {
    waits: Option<(u16, Arc<Outcome>)>,
}

impl Vcpu {
    /// Its domain is gone.
    pub(super) fn stop(self) {
        if let Some((_, outcome)) = self.waits {
            outcome.set(AccessResult::DomainGone);
        }
    }
}

impl Server {
    pub(super) fn new(emulator: u16) -> Result<Self, Errno> {
        let pages = [Page::new()?, Page::new()?];
        Ok(Self { emulator, pages, enabled: false, ranges: Vec::new(), ports: Vec::new() })
    }

    fn page(&self) -> &Page {
        let [_, page] = &self.pages;
        page
    }

    fn slot(&self, vcpu: usize) -> Result<Ioreq, Errno> {
        let mut bytes = [0; size_of::<Ioreq>()];
        self.page().read(vcpu * size_of::<Ioreq>(), &mut bytes)?;
        Ok(bytemuck::pod_read_unaligned(&bytes))
    }

    fn set_slot(&self, vcpu: usize, slot: &Ioreq) -> Result<(), Errno> {
        self.page().write(vcpu * size_of::<Ioreq>(), bytemuck::bytes_of(slot))
    }

    /// Does it serve the whole of an access?
    fn serves(&self, access: &VcpuAccess) -> bool {
        let Some((kind, wanted)) = access.place() else { return true };
        let inside =
            |range: &RangeInclusive<u64>| range.contains(wanted.start()) && range.contains(wanted.end());
        self.ranges.iter().any(|(of, range)| *of == kind && inside(range))
    }
}

impl State {
    /// Enables a server: each vCPU gets a port, which the emulator's domain may bind to.
    pub(super) fn enable_server(&mut self, domain: u16, id: u16) -> Result<(), Errno> {
        let known = self.get(domain)?;
        let vcpus = known.vcpus.len();
        let server = known.servers.get_mut(&id).ok_or(Errno::NOENT)?;
        server.enabled = true;
        let (emulator, first) = (server.emulator, server.ports.len());
        for vcpu in first..vcpus {
            let port = Port { peer: Peer::Unbound(emulator), user: User::Vcpu(id, vcpu) };
            let port = self.add_port(domain, port)?;
            let server = self.get(domain)?.servers.get_mut(&id).ok_or(Errno::NOENT)?;
            server.ports.push(port);
            server.set_slot(vcpu, &Ioreq { port, ..server.slot(vcpu)? })?;
        }
        Ok(())
    }

    /// Ends a server. Who waits for it waits for ever.
    pub(super) fn end_server(&mut self, domain: u16, id: u16) -> Result<(), Errno> {
        let server = self.get(domain)?.servers.remove(&id).ok_or(Errno::NOENT)?;
        server.ports.iter().for_each(|&port| self.close_port(domain, port));
        Ok(())
    }

    /// A vCPU accesses something.
    pub(super) fn access(
        &mut self,
        kind: Kind,
        domain: u16,
        vcpu: usize,
        access: &VcpuAccess,
    ) -> Result<Access, Errno> {
        let known = self.get(domain)?;
        let waits = &mut known.vcpus.get_mut(vcpu).ok_or(Errno::INVAL)?.waits;
        if waits.is_some() {
            return Err(Errno::BUSY);
        }
        let outcome = Arc::new(Outcome::default());
        // Of several, Xen takes the one with the highest number.
        let server = known.servers.iter().rev().find(|(_, server)| server.enabled && server.serves(access));
        let Some((&id, server)) = server else {
            outcome.set(access.of_nobody(kind));
            return Ok(Access::new(outcome));
        };
        let port = server.ports.get(vcpu).copied().ok_or(Errno::INVAL)?;
        let request = access.request();
        server.set_slot(vcpu, &Ioreq { port, bits: request.bits & !STATE_MASK | STATE_READY, ..request })?;
        *waits = Some((id, Arc::clone(&outcome)));
        // Xen's end notifies the emulator's.
        self.notify(domain, port);
        Ok(Access::new(outcome))
    }

    /// A server notified a vCPU: it takes its answer, if that is there.
    pub(super) fn take_answer(&mut self, domain: u16, id: u16, vcpu: usize) {
        let Some(known) = self.domains.get_mut(&domain) else { return };
        let (Some(server), Some(waits)) = (known.servers.get(&id), known.vcpus.get_mut(vcpu)) else { return };
        let Ok(slot) = server.slot(vcpu) else { return };
        if slot.bits & STATE_MASK != STATE_ANSWERED {
            return;
        }
        let emptied = Ioreq { bits: slot.bits & !STATE_MASK | STATE_NONE, ..slot };
        if server.set_slot(vcpu, &emptied).is_ok()
            && let Some((_, outcome)) = waits.waits.take_if(|(of, _)| *of == id)
        {
            outcome.set(AccessResult::Answered(slot.data));
        }
    }
}
