//! Eventfds in the place of calls: the kernel raises an interrupt when one is signalled, and signals one when a driver kicks a
//! queue. Where the kernel cannot, we do.
//!
//! Never an ioeventfd on a PV dom0: the kernel there takes the page of the IOREQ server for one of its own, and crashes.
//!
//! # Safety
//! Each ioctl gets a pointer to the structure that its number says, whose own pointers live across the call. What the kernel
//! keeps beyond it is the page of an IOREQ server: see [`IoreqServer::kick_in_kernel`](super::IoreqServer::kick_in_kernel).
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::io::Errno;

use super::{
    abi::{
        dm_op::DmOp,
        eventfd::{DEASSIGN, IOEVENTFD, IRQFD, IoEventFd, IrqFd},
    },
    call_error::CallError,
    dm_op::{DeviceModel, Interrupt},
    privcmd::Privcmd,
};
use crate::{event_loop::EventFd, memory::Owner};

/// Bytes of a write to QueueNotify (virtio 1.3, 4.2.2.2).
const QUEUE_NOTIFY_LEN: u32 = 4;

/// What the kernel does with eventfds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFdSupport {
    /// It raises interrupts, and signals kicks.
    Both,
    /// It raises interrupts. For kicks it would take what would crash it: this is a PV dom0, or it is not known to be none.
    InterruptsOnly,
    /// Nothing: it is older than 6.7, or without XEN_PRIVCMD_EVENTFD.
    Nothing,
}

impl EventFdSupport {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Both => "the kernel raises interrupts and signals kicks",
            Self::InterruptsOnly => {
                "the kernel raises interrupts; kicks would crash the kernel of a PV dom0, and this is one, or not known to be none"
            }
            Self::Nothing => "the kernel is older than 6.7, or without XEN_PRIVCMD_EVENTFD",
        }
    }
}

/// Which kicks are to be signalled.
#[derive(Clone, Copy, Debug)]
pub struct Kick<'a> {
    /// The domain.
    pub domain: u16,
    /// Where the page of the IOREQ server is mapped here.
    pub page: u64,
    /// Our port of each vCPU.
    pub ports: &'a [u32],
    /// Guest physical address of the registers of a virtio-mmio device.
    pub registers: u64,
    /// The queue.
    pub queue: u16,
}

/// The calls: the kernel's, or those of a simulated hypervisor.
pub trait EventFdCalls: fmt::Debug + Send + Sync {
    /// What is there.
    fn support(&self) -> EventFdSupport;

    /// Makes the operation on the domain whenever the eventfd is signalled, or no longer.
    fn irqfd(
        &self,
        domain: u16,
        operation: &DmOp,
        eventfd: BorrowedFd<'_>,
        assign: bool,
    ) -> Result<(), Errno>;

    /// Signals the eventfd when a queue is kicked, and answers the vCPU; or no longer.
    ///
    /// # Safety
    /// The page is the first of a mapping by the device, and it and the ports stay until the eventfd is taken back. The
    /// dom0 is not PV.
    unsafe fn ioeventfd(&self, kick: &Kick<'_>, eventfd: BorrowedFd<'_>, assign: bool) -> Result<(), Errno>;
}

fn flags(assign: bool) -> u32 {
    if assign { 0 } else { DEASSIGN }
}

impl EventFdCalls for Privcmd {
    fn support(&self) -> EventFdSupport {
        // Taking back what cannot be an eventfd says EBADF where somebody looks at it.
        let nothing = u32::MAX;
        let mut irqfd =
            IrqFd { operation: 0, size: 0, eventfd: nothing, flags: DEASSIGN, domain: 0, padding: [0; 2] };
        let mut kick = IoEventFd { eventfd: nothing, flags: DEASSIGN, ..bytemuck::Zeroable::zeroed() };
        let has = |error: Result<_, Errno>| {
            !matches!(error, Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL))
        };
        if !has(self.ioctl(IRQFD, &raw mut irqfd)) {
            EventFdSupport::Nothing
        } else if is_auto_translated() && has(self.ioctl(IOEVENTFD, &raw mut kick)) {
            EventFdSupport::Both
        } else {
            EventFdSupport::InterruptsOnly
        }
    }

    fn irqfd(
        &self,
        domain: u16,
        operation: &DmOp,
        eventfd: BorrowedFd<'_>,
        assign: bool,
    ) -> Result<(), Errno> {
        let mut request = IrqFd {
            operation: std::ptr::from_ref(operation) as u64,
            size: size_of::<DmOp>() as u32,
            eventfd: number(eventfd)?,
            flags: flags(assign),
            domain,
            padding: [0; 2],
        };
        self.ioctl(IRQFD, &raw mut request).map(drop)
    }

    unsafe fn ioeventfd(&self, kick: &Kick<'_>, eventfd: BorrowedFd<'_>, assign: bool) -> Result<(), Errno> {
        let mut request = IoEventFd {
            page: kick.page,
            ports: kick.ports.as_ptr() as u64,
            address: kick.registers,
            address_len: QUEUE_NOTIFY_LEN,
            eventfd: number(eventfd)?,
            vcpus: u32::try_from(kick.ports.len()).map_err(|_| Errno::INVAL)?,
            queue: kick.queue.into(),
            flags: flags(assign),
            domain: kick.domain,
            padding: [0; 2],
        };
        self.ioctl(IOEVENTFD, &raw mut request).map(drop)
    }
}

fn number(eventfd: BorrowedFd<'_>) -> Result<u32, Errno> {
    u32::try_from(eventfd.as_raw_fd()).map_err(|_| Errno::BADF)
}

/// Is this domain's memory translated by the hardware, as it always is on Arm, and on x86 unless it is PV? False where it
/// is not known.
fn is_auto_translated() -> bool {
    cfg!(target_arch = "aarch64")
        || std::fs::read_to_string("/sys/hypervisor/guest_type").is_ok_and(|kind| kind.trim() != "PV")
}

/// An eventfd that raises an interrupt of a domain: by the kernel, or by us, where the kernel cannot.
#[derive(Debug)]
pub struct InterruptFd {
    eventfd: EventFd,
    model: DeviceModel,
    interrupt: Interrupt,
    /// None where it is ours to raise.
    kernel: Option<Arc<dyn EventFdCalls>>,
    owner: Owner,
}

impl InterruptFd {
    /// Makes one.
    ///
    /// # Errors
    /// No eventfd can be made, or the kernel knows this and refused.
    pub fn new(
        calls: &Arc<dyn EventFdCalls>,
        model: &DeviceModel,
        interrupt: Interrupt,
    ) -> Result<Self, CallError> {
        let refused = |errno| {
            let what = format!("an eventfd for {interrupt} of domain {}", model.domain());
            CallError::refused(what, errno)
        };
        let eventfd = EventFd::new().map_err(refused)?;
        let kernel = match calls.support() {
            EventFdSupport::Nothing => None,
            _ => {
                let operation = interrupt.operation(true);
                calls.irqfd(model.domain(), &operation, eventfd.as_fd(), true).map_err(refused)?;
                Some(Arc::clone(calls))
            }
        };
        Ok(Self { eventfd, model: model.clone(), interrupt, kernel, owner: Owner::this_process() })
    }

    /// Does the kernel raise it? Else wait on the descriptor, and [`deliver`](Self::deliver).
    pub fn in_kernel(&self) -> bool {
        self.kernel.is_some()
    }

    /// Raises the interrupt if the eventfd was signalled; does nothing where the kernel does. The level stays asserted, as the
    /// kernel leaves it: which is enough for an interrupt that the domain takes by its edge.
    ///
    /// # Errors
    /// What Xen says.
    pub fn deliver(&self) -> Result<(), CallError> {
        if self.in_kernel() || !take(self.eventfd.as_fd()) {
            return Ok(());
        }
        self.model.set_interrupt(self.interrupt, true)
    }
}

impl AsFd for InterruptFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl Drop for InterruptFd {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.take().filter(|_| self.owner.is_this_process()) {
            let operation = self.interrupt.operation(true);
            let _ = kernel.irqfd(self.model.domain(), &operation, self.eventfd.as_fd(), false);
        }
    }
}

/// Takes an eventfd back to zero; was it above?
fn take(eventfd: BorrowedFd<'_>) -> bool {
    rustix::io::retry_on_intr(|| rustix::io::read(eventfd, &mut [0u8; 8])).is_ok()
}

/// A kick that the kernel is to signal, kept by the IOREQ server whose page it is found in.
#[derive(Debug)]
pub(crate) struct AssignedKick {
    pub(crate) eventfd: OwnedFd,
    pub(crate) registers: u64,
    pub(crate) queue: u16,
}

#[cfg(test)]
mod tests {
    use super::{super::fake_model::FakeModel, *};
    use crate::xen::abi::dm_op::SET_IRQ_LEVEL;

    #[test]
    fn the_kernel_raises_where_it_can() {
        let fake = FakeModel::new(1);
        fake.set_support(EventFdSupport::Both);
        let calls: Arc<dyn EventFdCalls> = fake.clone();
        let model = DeviceModel::new(fake.clone(), FakeModel::DOMAIN);
        let interrupt = InterruptFd::new(&calls, &model, Interrupt::Spi(34)).unwrap();
        assert!(interrupt.in_kernel());
        assert_eq!(fake.assigned(), (1, 0));
        crate::event_loop::signal(interrupt.as_fd());
        interrupt.deliver().unwrap();
        assert!(fake.operations().is_empty());
        drop(interrupt);
        assert_eq!(fake.assigned(), (0, 0));
    }

    #[test]
    fn we_raise_where_it_cannot() {
        let fake = FakeModel::new(1);
        let calls: Arc<dyn EventFdCalls> = fake.clone();
        let model = DeviceModel::new(fake.clone(), FakeModel::DOMAIN);
        let interrupt = InterruptFd::new(&calls, &model, Interrupt::Spi(34)).unwrap();
        assert!(!interrupt.in_kernel());
        interrupt.deliver().unwrap();
        assert!(fake.operations().is_empty());
        crate::event_loop::signal(interrupt.as_fd());
        interrupt.deliver().unwrap();
        interrupt.deliver().unwrap();
        let raised: Vec<_> = fake.operations().iter().map(|op| op.op).collect();
        assert_eq!(raised, [SET_IRQ_LEVEL]);
    }
}
