//! Device model operations of the machine: xen/common/ioreq.c and xen/arch/*/dm.c.
//!
//! # Safety
//! A call that is unsafe for what the kernel would keep is refused, and keeps nothing.
#![allow(unsafe_code)]

use std::{ops::RangeInclusive, os::fd::BorrowedFd};

use rustix::io::Errno;

use super::{
    machine::{DOM0, DomainState, Kind, State},
    privcmd::SimulatedPrivcmd,
    server::Server,
};
use crate::xen::{
    DeviceModelCalls, EventFdCalls, EventFdSupport, Interrupt, Kick,
    abi::dm_op::{
        CREATE_IOREQ_SERVER, CreateIoreqServer, DESTROY_IOREQ_SERVER, DestroyIoreqServer, DmOp,
        GET_IOREQ_SERVER_INFO, GetIoreqServerInfo, INJECT_MSI, InjectMsi, IoreqServerRange, MAP_IO_RANGE,
        NR_VCPUS, NrVcpus, SET_IOREQ_SERVER_STATE, SET_IRQ_LEVEL, SET_ISA_IRQ_LEVEL, SET_PCI_INTX_LEVEL,
        SetIoreqServerState, SetIrqLevel, UNMAP_IO_RANGE,
    },
};

/// How many IOREQ servers a domain may have (MAX_NR_IOREQ_SERVERS).
const MOST_SERVERS: u16 = 8;
/// Shared peripheral interrupts of a domain: xl gives it so many that are not of devices.
const SPIS: std::ops::Range<u32> = 32..992;

/// An interrupt that a device model signalled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signal {
    pub(super) what: Interrupt,
    pub(super) raised: bool,
}

impl DeviceModelCalls for SimulatedPrivcmd {
    fn dm_op(&self, domain: u16, op: &mut DmOp) -> Result<(), Errno> {
        self.check(domain)?;
        let kind = self.machine().kind;
        let mut state = self.machine().state();
        state.get(domain)?;
        if self.own() != DOM0 || domain == self.own() {
            return Err(Errno::PERM);
        }
        match op.op {
            CREATE_IOREQ_SERVER => {
                let id = create(state.get(domain)?, self.own())?;
                *op = DmOp::new(op.op, &CreateIoreqServer { id, ..op.arguments() });
                Ok(())
            }
            GET_IOREQ_SERVER_INFO => {
                server(&mut state, domain, op.arguments::<GetIoreqServerInfo>().id)?;
                // xl leaves no room for the page in the memory of a PVH guest; on Arm there is none at all.
                Err(if kind == Kind::Arm { Errno::OPNOTSUPP } else { Errno::NOMEM })
            }
            MAP_IO_RANGE | UNMAP_IO_RANGE => {
                let IoreqServerRange { id, kind, start, end, .. } = op.arguments();
                let ranges = &mut server(&mut state, domain, id)?.ranges;
                if op.op == MAP_IO_RANGE {
                    add(ranges, kind, start..=end)
                } else {
                    take(ranges, kind, start..=end)
                }
            }
            SET_IOREQ_SERVER_STATE => {
                let SetIoreqServerState { id, enabled, .. } = op.arguments();
                if enabled == 1 {
                    return state.enable_server(domain, id);
                }
                server(&mut state, domain, id)?.enabled = false;
                Ok(())
            }
            DESTROY_IOREQ_SERVER => state.end_server(domain, op.arguments::<DestroyIoreqServer>().id),
            NR_VCPUS => {
                let vcpus = state.get(domain)?.vcpus.len() as u32;
                *op = DmOp::new(op.op, &NrVcpus { vcpus });
                Ok(())
            }
            // There are no HVM guests here, and for a PVH one, which has no PCI interrupts, Xen does nothing.
            SET_PCI_INTX_LEVEL if kind != Kind::Arm => Ok(()),
            _ => {
                let signal = interrupt(kind, op)?;
                state.get(domain)?.signals.push(signal);
                Ok(())
            }
        }
    }
}

fn server(state: &mut State, domain: u16, id: u16) -> Result<&mut Server, Errno> {
    state.get(domain)?.servers.get_mut(&id).ok_or(Errno::NOENT)
}

fn create(domain: &mut DomainState, emulator: u16) -> Result<u16, Errno> {
    let free = (0..MOST_SERVERS).find(|id| !domain.servers.contains_key(id)).ok_or(Errno::NOSPC)?;
    domain.servers.insert(free, Server::new(emulator)?);
    Ok(free)
}

type Ranges = Vec<(u32, RangeInclusive<u64>)>;

fn add(ranges: &mut Ranges, kind: u32, new: RangeInclusive<u64>) -> Result<(), Errno> {
    if new.is_empty() {
        return Err(Errno::INVAL);
    }
    let overlaps = |range: &RangeInclusive<u64>| range.start() <= new.end() && new.start() <= range.end();
    if ranges.iter().any(|(of, range)| *of == kind && overlaps(range)) {
        return Err(Errno::EXIST);
    }
    ranges.push((kind, new));
    Ok(())
}

fn take(ranges: &mut Ranges, kind: u32, old: RangeInclusive<u64>) -> Result<(), Errno> {
    let found = ranges.iter().position(|(of, range)| *of == kind && *range == old);
    ranges.swap_remove(found.ok_or(Errno::NOENT)?);
    Ok(())
}

/// What an operation signals, where the architecture has it.
fn interrupt(kind: Kind, op: &DmOp) -> Result<Signal, Errno> {
    let arm = kind == Kind::Arm;
    match op.op {
        SET_IRQ_LEVEL if arm => {
            let SetIrqLevel { irq, level, .. } = op.arguments();
            if !SPIS.contains(&irq) || level > 1 {
                return Err(Errno::INVAL);
            }
            Ok(Signal { what: Interrupt::Spi(irq), raised: level == 1 })
        }
        INJECT_MSI if !arm => {
            let InjectMsi { data, address, .. } = op.arguments();
            Ok(Signal { what: Interrupt::Msi { address, data }, raised: true })
        }
        // There are no HVM guests here; for a PVH one Xen 4.17 panics, which serves no test.
        SET_ISA_IRQ_LEVEL => Err(Errno::INVAL),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// The kernel of the simulation takes no eventfds, as Debian's does not: what is signalled is ours to deliver.
impl EventFdCalls for SimulatedPrivcmd {
    fn support(&self) -> EventFdSupport {
        EventFdSupport::Nothing
    }

    fn irqfd(&self, _: u16, _: &DmOp, _: BorrowedFd<'_>, _: bool) -> Result<(), Errno> {
        Err(Errno::NOTTY)
    }

    unsafe fn ioeventfd(&self, _: &Kick<'_>, _: BorrowedFd<'_>, _: bool) -> Result<(), Errno> {
        Err(Errno::NOTTY)
    }
}
