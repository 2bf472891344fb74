//! Device model operations: what stands in for a device of another domain asks Xen for, and nothing more than that.
//!
//! # Safety
//! The ioctl gets pointers to one operation, which lives across the call.
#![allow(unsafe_code)]

use std::{fmt, ops::RangeInclusive, sync::Arc};

use rustix::io::Errno;

use super::{
    abi::dm_op::{
        BUFIOREQ_OFF, CREATE_IOREQ_SERVER, CreateIoreqServer, DESTROY_IOREQ_SERVER, DM_OP,
        DestroyIoreqServer, DmOp, DmOpBuffer, DmOpCall, GET_IOREQ_SERVER_INFO, GetIoreqServerInfo,
        INJECT_MSI, IO_RANGE_MEMORY, IO_RANGE_PORT, InjectMsi, IoreqServerRange, MAP_IO_RANGE, NR_VCPUS,
        NrVcpus, SET_IOREQ_SERVER_STATE, SET_IRQ_LEVEL, SET_ISA_IRQ_LEVEL, SET_PCI_INTX_LEVEL,
        SetIoreqServerState, SetIrqLevel, SetIsaIrqLevel, SetPciIntxLevel, UNMAP_IO_RANGE,
    },
    call_error::{CallError, check_owner},
    privcmd::Privcmd,
};
use crate::memory::Owner;

/// The one call behind all of them: the kernel's, or that of a simulated hypervisor.
pub trait DeviceModelCalls: fmt::Debug + Send + Sync {
    /// Does an operation on a domain; what Xen answers is in the operation.
    fn dm_op(&self, domain: u16, op: &mut DmOp) -> Result<(), Errno>;
}

impl DeviceModelCalls for Privcmd {
    fn dm_op(&self, domain: u16, op: &mut DmOp) -> Result<(), Errno> {
        let op: *mut DmOp = op;
        let buffer = DmOpBuffer { address: op as u64, size: size_of::<DmOp>() as u64 };
        let mut call = DmOpCall { domain, num: 1, padding: 0, buffers: (&raw const buffer) as u64 };
        // The kernel locks the pages of the buffer, so that no hypercall buffer is needed.
        self.ioctl(DM_OP, &raw mut call).map(drop)
    }
}

/// Addresses whose accesses go to an IOREQ server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoRange {
    /// Guest physical addresses.
    Memory(RangeInclusive<u64>),
    /// I/O ports (x86).
    Ports(RangeInclusive<u16>),
}

impl IoRange {
    fn structure(&self, id: u16) -> IoreqServerRange {
        let (kind, start, end) = match self {
            Self::Memory(range) => (IO_RANGE_MEMORY, *range.start(), *range.end()),
            Self::Ports(range) => (IO_RANGE_PORT, u64::from(*range.start()), u64::from(*range.end())),
        };
        IoreqServerRange { id, padding: 0, kind, start, end }
    }
}

impl fmt::Display for IoRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(range) => write!(formatter, "memory {:#x} to {:#x}", range.start(), range.end()),
            Self::Ports(range) => write!(formatter, "ports {:#x} to {:#x}", range.start(), range.end()),
        }
    }
}

/// The first input of the I/O APIC that PCI interrupts go to.
const FIRST_INTX_GSI: u32 = 16;
const FIRST_DEVICE: u8 = 24;

/// An interrupt of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// A shared peripheral interrupt of an Arm domain, as the GIC counts: from 32.
    Spi(u32),
    /// An ISA interrupt, 0 to 15, of an HVM domain. **For a PVH domain, which has none, Xen 4.17 panics.**
    Isa(u8),
    /// A PCI interrupt of an HVM domain, which its I/O APIC takes as a level. For a PVH domain, which has none, Xen does nothing.
    Intx {
        /// 0 to 31, on bus 0.
        device: u8,
        /// 0 to 3.
        pin: u8,
    },
    /// A message of an x86 domain: what a device would write, and where (0xfeexxxxx). It has no level.
    Msi {
        /// Where.
        address: u64,
        /// What.
        data: u32,
    },
}

impl Interrupt {
    /// The level that goes to this input of an HVM domain's I/O APIC, 16 to 47; None for another number.
    ///
    /// Four PCI interrupts go to each such input (`hvm_pci_intx_gsi` in xen/arch/x86/include/asm/hvm/irq.h). The one that is
    /// taken is of a device from 24 on, where a device model has none unless it has a great many.
    pub fn gsi(gsi: u32) -> Option<Self> {
        let input = u8::try_from(gsi.checked_sub(FIRST_INTX_GSI)?).ok().filter(|input| *input < 32)?;
        let from_24 = input.wrapping_sub(FIRST_DEVICE >> 3) & 31;
        Some(Self::Intx { device: FIRST_DEVICE + from_24 / 4, pin: from_24 % 4 })
    }

    /// The operation that raises it, or takes it back. A message is only ever raised.
    pub fn operation(self, asserted: bool) -> DmOp {
        let level = u8::from(asserted);
        match self {
            Self::Spi(irq) => DmOp::new(SET_IRQ_LEVEL, &SetIrqLevel { irq, level, padding: [0; 3] }),
            Self::Isa(isa_irq) => DmOp::new(SET_ISA_IRQ_LEVEL, &SetIsaIrqLevel { isa_irq, level }),
            Self::Intx { device, pin } => {
                DmOp::new(SET_PCI_INTX_LEVEL, &SetPciIntxLevel { pci_domain: 0, bus: 0, device, pin, level })
            }
            Self::Msi { address, data } => DmOp::new(INJECT_MSI, &InjectMsi { data, padding: 0, address }),
        }
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spi(irq) => write!(formatter, "interrupt {irq}"),
            Self::Isa(irq) => write!(formatter, "ISA interrupt {irq}"),
            Self::Intx { device, pin } => {
                let (device, pin) = (*device, *pin);
                let input = (u32::from(device) * 4 + u32::from(device >> 3) + u32::from(pin)) & 31;
                let gsi = FIRST_INTX_GSI + input;
                write!(
                    formatter,
                    "I/O APIC input {gsi} (PCI device {device}, INT{})",
                    char::from(b'A' + (pin & 3))
                )
            }
            Self::Msi { address, data } => write!(formatter, "message {data:#x} to {address:#x}"),
        }
    }
}

/// What a device model does to one domain.
#[derive(Clone, Debug)]
pub struct DeviceModel {
    calls: Arc<dyn DeviceModelCalls>,
    domain: u16,
    owner: Owner,
}

impl DeviceModel {
    /// By these calls, to this domain.
    pub fn new(calls: Arc<dyn DeviceModelCalls>, domain: u16) -> Self {
        Self { calls, domain, owner: Owner::this_process() }
    }

    /// The domain.
    pub fn domain(&self) -> u16 {
        self.domain
    }

    fn call(&self, mut op: DmOp, what: impl FnOnce() -> String) -> Result<DmOp, CallError> {
        check_owner(self.owner, "the device model")?;
        match self.calls.dm_op(self.domain, &mut op) {
            Ok(()) => Ok(op),
            Err(errno) => Err(CallError::refused(format!("{} of domain {}", what(), self.domain), errno)),
        }
    }

    /// How many vCPUs the domain has, offline ones included. Since Xen 4.15.
    ///
    /// # Errors
    /// What Xen says: EOPNOTSUPP from an older one.
    pub fn vcpus(&self) -> Result<u32, CallError> {
        let op = self.call(DmOp::new(NR_VCPUS, &NrVcpus { vcpus: 0 }), || "counting the vCPUs".to_owned())?;
        Ok(op.arguments::<NrVcpus>().vcpus)
    }

    /// Makes an IOREQ server without a buffered page; gives its id. It is disabled.
    ///
    /// # Errors
    /// What Xen says: EOPNOTSUPP for a PV domain, ENOSPC for more than eight.
    pub fn create_ioreq_server(&self) -> Result<u16, CallError> {
        let arguments = CreateIoreqServer { handle_bufioreq: BUFIOREQ_OFF, padding: [0; 3], id: 0 };
        let op = DmOp::new(CREATE_IOREQ_SERVER, &arguments);
        let op = self.call(op, || "making an IOREQ server".to_owned())?;
        Ok(op.arguments::<CreateIoreqServer>().id)
    }

    /// Puts the page of an IOREQ server into the domain's memory; gives its frame. For a kernel that cannot map it as a
    /// resource, and on x86.
    ///
    /// # Errors
    /// What Xen says.
    pub fn ioreq_server_frame(&self, id: u16) -> Result<u64, CallError> {
        let arguments = GetIoreqServerInfo { id, flags: 0, bufioreq_port: 0, ioreq_gfn: 0, bufioreq_gfn: 0 };
        let op = DmOp::new(GET_IOREQ_SERVER_INFO, &arguments);
        let op = self.call(op, || format!("asking for the frame of IOREQ server {id}"))?;
        Ok(op.arguments::<GetIoreqServerInfo>().ioreq_gfn)
    }

    /// Lets accesses to a range go to an IOREQ server. One that does not lie wholly inside does not go there.
    ///
    /// # Errors
    /// What Xen says: EEXIST where the server has a part of it already.
    pub fn map_range(&self, id: u16, range: &IoRange) -> Result<(), CallError> {
        let op = DmOp::new(MAP_IO_RANGE, &range.structure(id));
        self.call(op, || format!("giving {range} to IOREQ server {id}")).map(drop)
    }

    /// No longer.
    ///
    /// # Errors
    /// What Xen says: ENOENT where it is not exactly a range that was mapped.
    pub fn unmap_range(&self, id: u16, range: &IoRange) -> Result<(), CallError> {
        let op = DmOp::new(UNMAP_IO_RANGE, &range.structure(id));
        self.call(op, || format!("taking {range} from IOREQ server {id}")).map(drop)
    }

    /// Lets an IOREQ server be given requests, or no longer.
    ///
    /// # Errors
    /// What Xen says.
    pub fn set_ioreq_server_state(&self, id: u16, enabled: bool) -> Result<(), CallError> {
        let arguments = SetIoreqServerState { id, enabled: enabled.into(), padding: 0 };
        let op = DmOp::new(SET_IOREQ_SERVER_STATE, &arguments);
        let verb = if enabled { "enabling" } else { "disabling" };
        self.call(op, || format!("{verb} IOREQ server {id}")).map(drop)
    }

    /// Ends an IOREQ server, and its ranges. A vCPU that waits for an answer of it waits for ever: they are answered first.
    ///
    /// # Errors
    /// What Xen says.
    pub fn destroy_ioreq_server(&self, id: u16) -> Result<(), CallError> {
        let op = DmOp::new(DESTROY_IOREQ_SERVER, &DestroyIoreqServer { id, padding: 0 });
        self.call(op, || format!("ending IOREQ server {id}")).map(drop)
    }

    /// Raises an interrupt, or takes it back.
    ///
    /// # Errors
    /// What Xen says; [`CallError::Argument`] for a message that is to be taken back.
    pub fn set_interrupt(&self, interrupt: Interrupt, asserted: bool) -> Result<(), CallError> {
        if !asserted && matches!(interrupt, Interrupt::Msi { .. }) {
            return Err(CallError::Argument(format!("{interrupt} has no level that could be taken back")));
        }
        let verb = if asserted { "raising" } else { "taking back" };
        self.call(interrupt.operation(asserted), || format!("{verb} {interrupt}")).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake_model::FakeModel, *};

    #[test]
    fn interrupts_are_raised_and_taken_back() {
        let fake = FakeModel::new(1);
        let model = DeviceModel::new(fake.clone(), FakeModel::DOMAIN);
        model.set_interrupt(Interrupt::Spi(34), true).unwrap();
        model.set_interrupt(Interrupt::Isa(5), false).unwrap();
        let message = Interrupt::Msi { address: 0xfee0_0000, data: 0x41 };
        model.set_interrupt(message, true).unwrap();
        model.set_interrupt(Interrupt::Intx { device: 24, pin: 3 }, true).unwrap();
        let seen: Vec<_> = fake.operations().iter().map(|op| (op.op, op.arguments)).collect();
        assert_eq!(
            seen,
            [
                (SET_IRQ_LEVEL, [0x1_0000_0022, 0, 0]),
                (SET_ISA_IRQ_LEVEL, [5, 0, 0]),
                (INJECT_MSI, [0x41, 0xfee0_0000, 0]),
                (SET_PCI_INTX_LEVEL, [0x0103_1800_0000, 0, 0])
            ]
        );
    }

    /// Against `hvm_pci_intx_gsi`: `((((device << 2) + (device >> 3) + pin) & 31) + 16`.
    #[test]
    fn an_input_of_the_io_apic_is_a_pci_interrupt_that_goes_there() {
        for gsi in 16..48 {
            let Some(Interrupt::Intx { device, pin }) = Interrupt::gsi(gsi) else { panic!("no {gsi}") };
            assert!((24..32).contains(&device) && pin < 4, "{gsi}: {device} {pin}");
            let (device, pin) = (u32::from(device), u32::from(pin));
            assert_eq!((((device << 2) + (device >> 3) + pin) & 31) + 16, gsi);
        }
        let text = Interrupt::gsi(40).map(|interrupt| interrupt.to_string());
        assert_eq!(text.as_deref(), Some("I/O APIC input 40 (PCI device 29, INTB)"));
        assert_eq!([0, 15, 48, u32::MAX].map(Interrupt::gsi), [None; 4]);
    }

    #[test]
    fn a_message_cannot_be_taken_back() {
        let fake = FakeModel::new(1);
        let model = DeviceModel::new(fake.clone(), FakeModel::DOMAIN);
        let error = model.set_interrupt(Interrupt::Msi { address: 0xfee0_0000, data: 0 }, false).unwrap_err();
        assert!(matches!(error, CallError::Argument(_)), "{error}");
        assert!(fake.operations().is_empty());
    }

    #[test]
    fn a_range_that_is_not_there_cannot_be_taken() {
        let model = DeviceModel::new(FakeModel::new(1), FakeModel::DOMAIN);
        let range = IoRange::Ports(0x3f8..=0x3ff);
        model.map_range(4, &range).unwrap();
        model.unmap_range(4, &range).unwrap();
        let error = model.unmap_range(4, &range).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT));
        let text = error.to_string();
        assert!(text.starts_with("taking ports 0x3f8 to 0x3ff from IOREQ server 4 of domain 7: "), "{text}");
    }
}
