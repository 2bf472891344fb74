//! Device model operations: xen/include/public/hvm/dm_op.h, and how Linux passes them on (include/uapi/xen/privcmd.h).

use bytemuck::{Pod, Zeroable};

use super::ioctl;

/// `IOCTL_PRIVCMD_DM_OP`.
pub const DM_OP: u32 = ioctl(b'P', 5, size_of::<DmOpCall>());

/// `XEN_DMOP_create_ioreq_server`.
pub const CREATE_IOREQ_SERVER: u32 = 1;
/// `XEN_DMOP_get_ioreq_server_info`.
pub const GET_IOREQ_SERVER_INFO: u32 = 2;
/// `XEN_DMOP_map_io_range_to_ioreq_server`.
pub const MAP_IO_RANGE: u32 = 3;
/// `XEN_DMOP_unmap_io_range_from_ioreq_server`.
pub const UNMAP_IO_RANGE: u32 = 4;
/// `XEN_DMOP_set_ioreq_server_state`.
pub const SET_IOREQ_SERVER_STATE: u32 = 5;
/// `XEN_DMOP_destroy_ioreq_server`.
pub const DESTROY_IOREQ_SERVER: u32 = 6;
/// `XEN_DMOP_set_pci_intx_level`.
pub const SET_PCI_INTX_LEVEL: u32 = 8;
/// `XEN_DMOP_set_isa_irq_level`.
pub const SET_ISA_IRQ_LEVEL: u32 = 9;
/// `XEN_DMOP_inject_msi`.
pub const INJECT_MSI: u32 = 14;
/// `XEN_DMOP_set_irq_level`.
pub const SET_IRQ_LEVEL: u32 = 19;
/// `XEN_DMOP_nr_vcpus`.
pub const NR_VCPUS: u32 = 20;

/// `HVM_IOREQSRV_BUFIOREQ_OFF`: every request waits for its answer.
pub const BUFIOREQ_OFF: u8 = 0;
/// `XEN_DMOP_IO_RANGE_PORT`.
pub const IO_RANGE_PORT: u32 = 0;
/// `XEN_DMOP_IO_RANGE_MEMORY`.
pub const IO_RANGE_MEMORY: u32 = 1;

/// `struct privcmd_dm_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct DmOpCall {
    /// The domain.
    pub domain: u16,
    /// How many buffers.
    pub num: u16,
    /// Zero.
    pub padding: u32,
    /// Address of the array of them.
    pub buffers: u64,
}

/// `struct privcmd_dm_op_buf`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct DmOpBuffer {
    /// Its address.
    pub address: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// `struct xen_dm_op`: what is to be done, and a union of what it takes and gives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct DmOp {
    /// XEN_DMOP_*.
    pub op: u32,
    /// Zero.
    pub padding: u32,
    /// The structure of the operation, from the first byte on.
    pub arguments: [u64; 3],
}

impl DmOp {
    /// An operation with its structure.
    pub fn new<T: Pod>(op: u32, arguments: &T) -> Self {
        const { assert!(size_of::<T>() <= size_of::<[u64; 3]>()) };
        let mut new = Self { op, padding: 0, arguments: [0; 3] };
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut new.arguments);
        target.iter_mut().zip(bytemuck::bytes_of(arguments)).for_each(|(to, from)| *to = *from);
        new
    }

    /// The structure, as Xen may have changed it.
    pub fn arguments<T: Pod>(&self) -> T {
        const { assert!(size_of::<T>() <= size_of::<[u64; 3]>()) };
        let mut structure = T::zeroed();
        let source: &[u8] = bytemuck::cast_slice(&self.arguments);
        bytemuck::bytes_of_mut(&mut structure).iter_mut().zip(source).for_each(|(to, from)| *to = *from);
        structure
    }
}

/// `struct xen_dm_op_create_ioreq_server`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct CreateIoreqServer {
    /// HVM_IOREQSRV_BUFIOREQ_*.
    pub handle_bufioreq: u8,
    /// Zero.
    pub padding: [u8; 3],
    /// Xen answers with the server's id.
    pub id: u16,
}

/// `struct xen_dm_op_get_ioreq_server_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct GetIoreqServerInfo {
    /// The server.
    pub id: u16,
    /// XEN_DMOP_no_gfns, or 0 to make the pages be frames of the guest.
    pub flags: u16,
    /// Xen answers with the port of buffered requests.
    pub bufioreq_port: u32,
    /// Xen answers with the guest frame of the requests.
    pub ioreq_gfn: u64,
    /// And that of the buffered ones.
    pub bufioreq_gfn: u64,
}

/// `struct xen_dm_op_ioreq_server_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct IoreqServerRange {
    /// The server.
    pub id: u16,
    /// Zero.
    pub padding: u16,
    /// XEN_DMOP_IO_RANGE_*.
    pub kind: u32,
    /// The first address or port.
    pub start: u64,
    /// The last one.
    pub end: u64,
}

/// `struct xen_dm_op_set_ioreq_server_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct SetIoreqServerState {
    /// The server.
    pub id: u16,
    /// 1 to be given requests, else 0.
    pub enabled: u8,
    /// Zero.
    pub padding: u8,
}

/// `struct xen_dm_op_destroy_ioreq_server`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct DestroyIoreqServer {
    /// The server.
    pub id: u16,
    /// Zero.
    pub padding: u16,
}

/// `struct xen_dm_op_set_pci_intx_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct SetPciIntxLevel {
    /// Of PCI: 0.
    pub pci_domain: u16,
    /// 0.
    pub bus: u8,
    /// 0 to 31.
    pub device: u8,
    /// 0 to 3: INTA to INTD.
    pub pin: u8,
    /// 1 asserted, 0 not.
    pub level: u8,
}

/// `struct xen_dm_op_set_isa_irq_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct SetIsaIrqLevel {
    /// 0 to 15.
    pub isa_irq: u8,
    /// 1 asserted, 0 not.
    pub level: u8,
}

/// `struct xen_dm_op_inject_msi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct InjectMsi {
    /// What the device would write.
    pub data: u32,
    /// Zero.
    pub padding: u32,
    /// Where.
    pub address: u64,
}

/// `struct xen_dm_op_set_irq_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct SetIrqLevel {
    /// A shared peripheral interrupt, as the GIC counts: from 32.
    pub irq: u32,
    /// 1 asserted, 0 not.
    pub level: u8,
    /// Zero.
    pub padding: [u8; 3],
}

/// `struct xen_dm_op_nr_vcpus`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct NrVcpus {
    /// Xen answers with how many the domain has.
    pub vcpus: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layouts_and_numbers_are_those_of_the_kernel() {
        assert_eq!((size_of::<DmOpCall>(), DM_OP), (16, 0x0010_5005));
        assert_eq!([offset_of!(DmOpCall, num), offset_of!(DmOpCall, buffers)], [2, 8]);
        assert_eq!((size_of::<DmOpBuffer>(), offset_of!(DmOpBuffer, size)), (16, 8));
    }

    /// Against a C compiler's view of Xen 4.17's dm_op.h.
    #[test]
    fn layouts_are_those_of_xen() {
        assert_eq!((size_of::<DmOp>(), offset_of!(DmOp, arguments)), (32, 8));
        assert_eq!((size_of::<CreateIoreqServer>(), offset_of!(CreateIoreqServer, id)), (6, 4));
        assert_eq!(size_of::<GetIoreqServerInfo>(), 24);
        assert_eq!(
            [
                offset_of!(GetIoreqServerInfo, flags),
                offset_of!(GetIoreqServerInfo, bufioreq_port),
                offset_of!(GetIoreqServerInfo, ioreq_gfn),
                offset_of!(GetIoreqServerInfo, bufioreq_gfn)
            ],
            [2, 4, 8, 16]
        );
        assert_eq!(size_of::<IoreqServerRange>(), 24);
        assert_eq!(
            [
                offset_of!(IoreqServerRange, kind),
                offset_of!(IoreqServerRange, start),
                offset_of!(IoreqServerRange, end)
            ],
            [4, 8, 16]
        );
        assert_eq!((size_of::<SetIoreqServerState>(), offset_of!(SetIoreqServerState, enabled)), (4, 2));
        assert_eq!(size_of::<DestroyIoreqServer>(), 4);
        assert_eq!(
            [
                size_of::<SetPciIntxLevel>(),
                offset_of!(SetPciIntxLevel, device),
                offset_of!(SetPciIntxLevel, level)
            ],
            [6, 3, 5]
        );
        assert_eq!((size_of::<SetIsaIrqLevel>(), offset_of!(SetIsaIrqLevel, level)), (2, 1));
        assert_eq!((size_of::<InjectMsi>(), offset_of!(InjectMsi, address)), (16, 8));
        assert_eq!((size_of::<SetIrqLevel>(), offset_of!(SetIrqLevel, level)), (8, 4));
        assert_eq!(size_of::<NrVcpus>(), 4);
    }

    #[test]
    fn a_structure_comes_back_as_it_went_in() {
        let range = IoreqServerRange { id: 3, padding: 0, kind: IO_RANGE_MEMORY, start: 1 << 40, end: 7 };
        let again: IoreqServerRange = DmOp::new(MAP_IO_RANGE, &range).arguments();
        assert_eq!((again.id, again.kind, again.start, again.end), (3, 1, 1 << 40, 7));
        let level = DmOp::new(SET_ISA_IRQ_LEVEL, &SetIsaIrqLevel { isa_irq: 5, level: 1 });
        assert_eq!(level.arguments, [0x105, 0, 0]);
    }
}
