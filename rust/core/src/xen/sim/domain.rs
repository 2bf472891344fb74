//! A domain of the machine: what its kernel offers to programs, and what the guest does.

use std::{ops::Range, sync::Arc};

use rustix::io::Errno;

use super::{
    access::{Access, VcpuAccess},
    evtchn::SimulatedEvtchn,
    frames::Frames,
    gntalloc::SimulatedGntalloc,
    gntdev::SimulatedGntdev,
    grants::{self, Granted},
    machine::{DOM0, Hypervisor, Kind, Machine, State},
    model::Signal,
    pages::Page,
    privcmd::SimulatedPrivcmd,
    server,
};
use crate::{
    event_loop::EventFd,
    xen::{CallError, Interrupt, ServerCalls, abi::FRAME},
};

/// What xl grants to dom0 of a guest: its console's page and its xenstore page (GNTTAB_RESERVED_*).
const CONSOLE_AND_XENSTORE: Range<u32> = 0..2;

/// Where those pages are: above what a guest on x86 may have as RAM below 4 GiB; on Arm GUEST_MAGIC_BASE.
fn magic_frame(kind: Kind) -> u64 {
    match kind {
        Kind::Arm => 0x3_9000,
        Kind::Pv | Kind::Pvh => 0xF_EFF0,
    }
}

/// How many frames a domain can get at once: each costs an entry of a table.
const MOST_POPULATED: u64 = 1 << 18;

/// What a domain is made of.
#[derive(Clone, Debug)]
pub struct NewDomain {
    /// Where it has RAM: guest physical addresses of whole frames, in order.
    pub ram: Vec<Range<u64>>,
    /// How many vCPUs it has, 1 to 128.
    pub vcpus: usize,
}

/// A handle to a domain. The domain lives until it is [destroyed](Self::destroy), or the machine goes.
#[derive(Clone, Debug)]
pub struct Domain {
    machine: Arc<Machine>,
    number: u16,
}

impl Hypervisor {
    /// Makes a domain, as a toolstack does: memory of zeroes, which is its own, and two pages that are granted to dom0.
    ///
    /// # Errors
    /// [`CallError::Argument`] for RAM that is not of whole frames, in order, or overlaps; or for no vCPU or too many.
    pub fn create(&self, new: &NewDomain) -> Result<Domain, CallError> {
        let refused = |errno| CallError::refused("making a domain".to_owned(), errno);
        let wrong = || {
            let text = format!("RAM at {:#x?}: ranges of whole frames are wanted, in order", new.ram);
            CallError::Argument(text)
        };
        if !(1..=server::MAX_VCPUS).contains(&new.vcpus) {
            let text = format!("{} vCPUs: a domain has 1 to {}", new.vcpus, server::MAX_VCPUS);
            return Err(CallError::Argument(text));
        }
        let frame = FRAME as u64;
        if new.ram.iter().any(|range| range.start % frame != 0 || range.end % frame != 0) {
            return Err(wrong());
        }
        let ram: Vec<_> = new.ram.iter().map(|range| range.start / frame..range.end / frame).collect();
        let mut frames = Frames::new(&ram).map_err(|errno| match errno {
            Errno::INVAL => wrong(),
            errno => refused(errno),
        })?;
        let mut granted = Vec::new();
        for reference in CONSOLE_AND_XENSTORE {
            let page = Page::new().map_err(refused)?;
            frames.put(magic_frame(self.kind()) + u64::from(reference), page.clone());
            granted.push((reference, Granted::new(page, DOM0, true)));
        }
        let mut domain = State::domain(frames, new.vcpus);
        domain.grants.extend(granted);
        let number = self.machine().state().create(domain).map_err(refused)?;
        Ok(Domain::new(Arc::clone(self.machine()), number))
    }
}

impl Domain {
    pub(super) fn new(machine: Arc<Machine>, number: u16) -> Self {
        Self { machine, number }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The machine that it is on.
    pub fn hypervisor(&self) -> Hypervisor {
        Hypervisor::of(Arc::clone(&self.machine))
    }

    /// /dev/xen/privcmd, as its kernel opens it.
    pub fn privcmd(&self) -> SimulatedPrivcmd {
        SimulatedPrivcmd::new(Arc::clone(&self.machine), self.number)
    }

    /// /dev/xen/gntdev.
    pub fn gntdev(&self) -> SimulatedGntdev {
        SimulatedGntdev::new(Arc::clone(&self.machine), self.number)
    }

    /// /dev/xen/gntalloc.
    pub fn gntalloc(&self) -> SimulatedGntalloc {
        SimulatedGntalloc::new(Arc::clone(&self.machine), self.number)
    }

    /// /dev/xen/evtchn.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn evtchn(&self) -> Result<SimulatedEvtchn, Errno> {
        SimulatedEvtchn::new(Arc::clone(&self.machine), self.number)
    }

    /// What an IOREQ server in this domain needs.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn server_calls(&self) -> Result<ServerCalls, Errno> {
        let privcmd = Arc::new(self.privcmd());
        let events = Arc::new(self.evtchn()?);
        Ok(ServerCalls { foreign: privcmd.clone(), model: privcmd.clone(), events, eventfds: privcmd })
    }

    fn refused<T: std::fmt::Display>(&self, what: T) -> impl FnOnce(Errno) -> CallError + use<T> {
        let text = format!("{what} of simulated domain {}", self.number);
        move |errno| CallError::refused(text, errno)
    }

    /// Is it there?
    pub fn exists(&self) -> bool {
        self.machine.state().domains.contains_key(&self.number)
    }

    /// Readable once it is destroyed.
    ///
    /// # Errors
    /// ESRCH if it is; or no descriptor is left.
    pub fn gone(&self) -> Result<Arc<EventFd>, CallError> {
        let end = EventFd::new().map(Arc::new).map_err(self.refused("watching for the end"))?;
        let mut state = self.machine.state();
        let domain = state.get(self.number).map_err(self.refused("watching for the end"))?;
        // Those that nobody watches any more are let go of.
        domain.ends.retain(|other| Arc::strong_count(other) > 1);
        domain.ends.push(Arc::clone(&end));
        Ok(end)
    }

    /// Where it had RAM when it was made: guest physical addresses.
    ///
    /// # Errors
    /// ESRCH once it is destroyed.
    pub fn ram(&self) -> Result<Vec<Range<u64>>, CallError> {
        let frame = FRAME as u64;
        let mut state = self.machine.state();
        let domain = state.get(self.number).map_err(self.refused("asking for the RAM"))?;
        Ok(domain.frames.banks().into_iter().map(|bank| bank.start * frame..bank.end * frame).collect())
    }

    /// How many vCPUs it has.
    ///
    /// # Errors
    /// ESRCH once it is destroyed.
    pub fn vcpus(&self) -> Result<usize, CallError> {
        let mut state = self.machine.state();
        Ok(state.get(self.number).map_err(self.refused("counting the vCPUs"))?.vcpus.len())
    }

    /// Ends it: it can be mapped no longer, its ports are closed, its vCPUs stop. What is mapped of it stays as it is.
    ///
    /// # Errors
    /// ESRCH if it is not there; [`CallError::Argument`] for dom0.
    pub fn destroy(&self) -> Result<(), CallError> {
        if self.number == DOM0 {
            return Err(CallError::Argument("dom0 cannot be destroyed: it is the machine".to_owned()));
        }
        let mut state = self.machine.state();
        let gone = state.domains.remove(&self.number);
        let gone = gone.ok_or(Errno::SRCH).map_err(self.refused("the end"))?;
        state.close_ports_of_domain(self.number, &gone.ports);
        gone.ends.iter().for_each(|end| end.signal());
        gone.vcpus.into_iter().for_each(server::Vcpu::stop);
        Ok(())
    }

    /// The pieces of a range of its memory: page, offset in it, and how many bytes.
    fn pieces(&self, address: u64, len: usize) -> Result<Vec<(Page, usize, usize)>, Errno> {
        let mut state = self.machine.state();
        let domain = state.get(self.number)?;
        let end = address.checked_add(len as u64).ok_or(Errno::FAULT)?;
        let (mut pieces, mut at) = (Vec::new(), address);
        while at < end {
            let page = domain.frames.page(at / FRAME as u64).ok_or(Errno::FAULT)?;
            let offset = (at % FRAME as u64) as usize;
            let count = (FRAME - offset).min((end - at) as usize);
            pieces.push((page, offset, count));
            at += count as u64;
        }
        Ok(pieces)
    }

    /// Has the guest RAM at all of these guest physical addresses?
    ///
    /// # Errors
    /// EFAULT where it has none; ESRCH once it is destroyed.
    pub fn check(&self, address: u64, len: usize) -> Result<(), CallError> {
        let what = format!("accessing {len} bytes at {address:#x}");
        self.pieces(address, len).map(drop).map_err(self.refused(what))
    }

    /// What the guest reads at a guest physical address.
    ///
    /// # Errors
    /// EFAULT where it has no RAM; ESRCH once it is destroyed.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), CallError> {
        let what = format!("reading {} bytes at {address:#x}", bytes.len());
        let done = self.pieces(address, bytes.len()).and_then(|pieces| {
            let mut rest = bytes;
            pieces.into_iter().try_for_each(|(page, offset, count)| {
                let (part, more) =
                    std::mem::take(&mut rest).split_at_mut_checked(count).ok_or(Errno::FAULT)?;
                rest = more;
                page.read(offset, part)
            })
        });
        done.map_err(self.refused(what))
    }

    /// The guest writes at a guest physical address.
    ///
    /// # Errors
    /// As [`read`](Self::read); then nothing is written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), CallError> {
        let done = self.pieces(address, bytes.len()).and_then(|pieces| {
            let mut rest = bytes;
            pieces.into_iter().try_for_each(|(page, offset, count)| {
                let (part, more) = rest.split_at_checked(count).ok_or(Errno::FAULT)?;
                rest = more;
                page.write(offset, part)
            })
        });
        done.map_err(self.refused(format!("writing {} bytes at {address:#x}", bytes.len())))
    }

    fn frames<T>(
        &self,
        what: &str,
        frames: Range<u64>,
        change: impl FnOnce(&mut Frames, Range<u64>) -> Result<T, Errno>,
    ) -> Result<T, CallError> {
        let what = format!("{what} frames {:#x} to {:#x}", frames.start, frames.end.saturating_sub(1));
        let mut state = self.machine.state();
        let domain = state.get(self.number);
        domain.and_then(|domain| change(&mut domain.frames, frames)).map_err(self.refused(what))
    }

    /// The guest gives frames back to Xen: there are holes where they were.
    ///
    /// # Errors
    /// EINVAL if one is a hole already, and then nothing is changed; ESRCH once it is destroyed.
    pub fn balloon_out(&self, frames: Range<u64>) -> Result<(), CallError> {
        self.frames("giving back", frames, |known, frames| {
            if frames.clone().any(|frame| known.page(frame).is_none()) {
                return Err(Errno::INVAL);
            }
            frames.for_each(|frame| known.take_away(frame));
            Ok(())
        })
    }

    /// The guest gets frames from Xen, full of zeroes, in the place of what was there. What is mapped of the old ones stays
    /// as it is.
    ///
    /// # Errors
    /// [`CallError::Argument`] for more than 2^18 at once; ESRCH once it is destroyed; no memory.
    pub fn populate(&self, frames: Range<u64>) -> Result<(), CallError> {
        let count = frames.end.saturating_sub(frames.start);
        if count > MOST_POPULATED {
            let text = format!("{count} frames: up to {MOST_POPULATED} can be populated at once");
            return Err(CallError::Argument(text));
        }
        self.frames("populating", frames, |known, mut frames| {
            frames.try_for_each(|frame| known.populate(frame))
        })
    }

    /// Xen pages frames out: each comes back when it was tried for so often; `u32::MAX` for never.
    ///
    /// # Errors
    /// EINVAL if one is a hole, and then nothing is changed; ESRCH once it is destroyed.
    pub fn page_out(&self, frames: Range<u64>, tries: u32) -> Result<(), CallError> {
        self.frames("paging out", frames, |known, frames| {
            if frames.clone().any(|frame| known.page(frame).is_none()) {
                return Err(Errno::INVAL);
            }
            frames.for_each(|frame| known.page_out(frame, tries));
            Ok(())
        })
    }

    /// The guest grants a frame of its own; gives the reference.
    ///
    /// # Errors
    /// EINVAL for a hole; ESRCH once it is destroyed.
    pub fn grant(&self, frame: u64, to: u16, writable: bool) -> Result<u32, CallError> {
        let mut state = self.machine.state();
        let made = state.get(self.number).and_then(|domain| {
            let page = domain.frames.page(frame).ok_or(Errno::INVAL)?;
            grants::add(&mut domain.grants, Granted::new(page, to, writable))
        });
        made.map_err(self.refused(format_args!("granting frame {frame:#x}")))
    }

    /// For tests of the core: the guest grants a new page under a reference of their choice.
    #[cfg(test)]
    pub(crate) fn grant_as(&self, reference: u32, frame: u64, to: u16, writable: bool) {
        self.populate(frame..frame + 1).unwrap();
        let mut state = self.machine.state();
        let domain = state.get(self.number).unwrap();
        let page = domain.frames.page(frame).unwrap();
        domain.grants.insert(reference, Granted::new(page, to, writable));
    }

    /// The guest ends a grant, and may use the page for something else.
    ///
    /// # Errors
    /// EBUSY while somebody has it mapped, and then it stays granted; ENOENT if there is none; ESRCH once it is destroyed.
    pub fn end_grant(&self, reference: u32) -> Result<(), CallError> {
        let mut state = self.machine.state();
        let ended = state.get(self.number).and_then(|domain| grants::end(&mut domain.grants, reference));
        ended.map_err(self.refused(format_args!("ending grant {reference}")))
    }

    /// The page of a grant is not there for so many tries to map or to copy it; `u32::MAX` for ever.
    ///
    /// # Errors
    /// ENOENT if there is no such grant; ESRCH once it is destroyed.
    pub fn page_out_grant(&self, reference: u32, tries: u32) -> Result<(), CallError> {
        let mut state = self.machine.state();
        let found = state.get(self.number);
        let found = found.and_then(|domain| domain.grants.get_mut(&reference).ok_or(Errno::NOENT));
        let found = found.map_err(self.refused(format_args!("paging out grant {reference}")))?;
        found.away = tries;
        Ok(())
    }

    /// What device models signalled since it was asked last: each interrupt, and whether it was raised or taken back.
    ///
    /// # Errors
    /// ESRCH once it is destroyed.
    pub fn take_interrupts(&self) -> Result<Vec<(Interrupt, bool)>, CallError> {
        let mut state = self.machine.state();
        let domain = state.get(self.number).map_err(self.refused("taking the interrupts"))?;
        Ok(std::mem::take(&mut domain.signals)
            .into_iter()
            .map(|Signal { what, raised }| (what, raised))
            .collect())
    }

    /// A vCPU accesses addresses where no memory is, and waits for the answer: of the IOREQ server that has all of them; what
    /// an empty bus gives where none has.
    ///
    /// # Errors
    /// EBUSY while the vCPU waits for another; ESRCH once it is destroyed; [`CallError::Argument`] for a vCPU or a size that
    /// there is not.
    pub fn access(&self, vcpu: usize, access: &VcpuAccess) -> Result<Access, CallError> {
        access.check().map_err(CallError::Argument)?;
        let mut state = self.machine.state();
        let vcpus = state.get(self.number).map_err(self.refused(access))?.vcpus.len();
        if vcpu >= vcpus {
            let text = format!("vCPU {vcpu}: simulated domain {} has {vcpus}", self.number);
            return Err(CallError::Argument(text));
        }
        state.access(self.machine.kind, self.number, vcpu, access).map_err(self.refused(access))
    }
}
