//! Layouts, numbers and flags, as a C compiler sees them in the headers of Debian's libxen-dev.

use std::mem::{offset_of, size_of};

use xenvirt_core::xen::abi::{dm_op::*, evtchn, gnttab, ioreq, privcmd};

#[path = "../../core/src/xen/abi/headers.rs"]
mod headers;

/// What is ours, by the expression in C.
type Known<'a> = &'a [(&'a str, u64)];

/// `sizeof(c)` and `offsetof(c, field)` of structures, in C and in ours.
macro_rules! layout {
    ($list:expr, $ours:ty, $c:literal, $($field:ident = $theirs:literal),* $(,)?) => {
        $list.push((concat!("sizeof(", $c, ")"), size_of::<$ours>() as u64));
        $($list.push((concat!("offsetof(", $c, ", ", $theirs, ")"), offset_of!($ours, $field) as u64));)*
    };
}

fn compare(includes: &str, known: Known<'_>) {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let Some(values) = headers::values(includes, &names) else { return };
    assert_eq!(values.len(), known.len());
    for ((name, ours), theirs) in known.iter().zip(values) {
        assert_eq!(*ours, theirs, "{name}");
    }
}

/// Those of Linux's devices, which libxen-dev has a copy of.
const DEVICES: &str = "#include <stdint.h>
    #include <linux/ioctl.h>
    #include <xenctrl.h>
    #include <xen/sys/privcmd.h>
    #include <xen/sys/evtchn.h>
    #include <xen/sys/gntdev.h>
    #include <xen/sys/gntalloc.h>";

#[test]
fn privcmd() {
    let mut known = vec![
        ("IOCTL_PRIVCMD_MMAPBATCH_V2", privcmd::MMAPBATCH_V2.into()),
        ("IOCTL_PRIVCMD_DM_OP", DM_OP.into()),
        ("IOCTL_PRIVCMD_RESTRICT", privcmd::RESTRICT.into()),
        ("IOCTL_PRIVCMD_MMAP_RESOURCE", privcmd::MMAP_RESOURCE.into()),
    ];
    layout!(
        known,
        privcmd::MmapBatchV2,
        "privcmd_mmapbatch_v2_t",
        num = "num",
        domain = "dom",
        address = "addr",
        frames = "arr",
        errors = "err"
    );
    layout!(
        known,
        privcmd::MmapResource,
        "privcmd_mmap_resource_t",
        domain = "dom",
        kind = "type",
        id = "id",
        index = "idx",
        num = "num",
        address = "addr"
    );
    layout!(known, DmOpCall, "privcmd_dm_op_t", domain = "dom", num = "num", buffers = "ubufs");
    layout!(known, DmOpBuffer, "privcmd_dm_op_buf_t", address = "uptr", size = "size");
    compare(DEVICES, &known);
}

#[test]
fn event_channels() {
    let mut known = vec![
        ("IOCTL_EVTCHN_BIND_VIRQ", evtchn::BIND_VIRQ.into()),
        ("IOCTL_EVTCHN_BIND_INTERDOMAIN", evtchn::BIND_INTERDOMAIN.into()),
        ("IOCTL_EVTCHN_BIND_UNBOUND_PORT", evtchn::BIND_UNBOUND_PORT.into()),
        ("IOCTL_EVTCHN_UNBIND", evtchn::UNBIND.into()),
        ("IOCTL_EVTCHN_NOTIFY", evtchn::NOTIFY.into()),
        ("IOCTL_EVTCHN_RESTRICT_DOMID", evtchn::RESTRICT.into()),
        ("sizeof(struct ioctl_evtchn_bind_virq)", 4),
        ("sizeof(struct ioctl_evtchn_bind_unbound_port)", 4),
        ("sizeof(struct ioctl_evtchn_unbind)", 4),
        ("sizeof(struct ioctl_evtchn_notify)", 4),
        ("sizeof(struct ioctl_evtchn_restrict_domid)", 2),
    ];
    layout!(
        known,
        evtchn::BindInterdomain,
        "struct ioctl_evtchn_bind_interdomain",
        remote_domain = "remote_domain",
        remote_port = "remote_port"
    );
    compare(DEVICES, &known);
}

#[test]
fn grants() {
    let mut known = vec![
        ("IOCTL_GNTDEV_MAP_GRANT_REF", gnttab::MAP_GRANT_REF.into()),
        ("IOCTL_GNTDEV_UNMAP_GRANT_REF", gnttab::UNMAP_GRANT_REF.into()),
        ("IOCTL_GNTDEV_SET_UNMAP_NOTIFY", gnttab::SET_UNMAP_NOTIFY.into()),
        ("IOCTL_GNTALLOC_ALLOC_GREF", gnttab::ALLOC_GREF.into()),
        ("IOCTL_GNTALLOC_DEALLOC_GREF", gnttab::DEALLOC_GREF.into()),
        ("IOCTL_GNTALLOC_SET_UNMAP_NOTIFY", gnttab::SET_UNMAP_NOTIFY.into()),
        ("UNMAP_NOTIFY_CLEAR_BYTE", gnttab::NOTIFY_CLEAR_BYTE.into()),
        ("UNMAP_NOTIFY_SEND_EVENT", gnttab::NOTIFY_SEND_EVENT.into()),
        ("GNTALLOC_FLAG_WRITABLE", gnttab::SHARE_WRITABLE.into()),
        ("GNTCOPY_source_gref", gnttab::COPY_SOURCE_GRANT.into()),
        ("GNTCOPY_dest_gref", gnttab::COPY_TARGET_GRANT.into()),
        ("offsetof(struct ioctl_gntdev_map_grant_ref, refs)", size_of::<gnttab::MapGrantRef>() as u64),
        ("offsetof(struct ioctl_gntalloc_alloc_gref, gref_ids)", size_of::<gnttab::AllocGref>() as u64),
    ];
    layout!(known, gnttab::GrantRef, "struct ioctl_gntdev_grant_ref", domain = "domid", reference = "ref");
    layout!(
        known,
        gnttab::UnmapGrantRef,
        "struct ioctl_gntdev_unmap_grant_ref",
        index = "index",
        count = "count"
    );
    layout!(
        known,
        gnttab::UnmapGrantRef,
        "struct ioctl_gntalloc_dealloc_gref",
        index = "index",
        count = "count"
    );
    layout!(
        known,
        gnttab::UnmapNotify,
        "struct ioctl_gntdev_unmap_notify",
        index = "index",
        action = "action",
        port = "event_channel_port"
    );
    layout!(
        known,
        gnttab::UnmapNotify,
        "struct ioctl_gntalloc_unmap_notify",
        index = "index",
        action = "action",
        port = "event_channel_port"
    );
    compare(DEVICES, &known);
}

#[test]
fn device_model_operations() {
    let includes = "#define __XEN_TOOLS__
        #include <stdint.h>
        #include <xen/xen.h>
        #include <xen/hvm/dm_op.h>";
    let mut known = vec![
        ("XEN_DMOP_create_ioreq_server", CREATE_IOREQ_SERVER.into()),
        ("XEN_DMOP_get_ioreq_server_info", GET_IOREQ_SERVER_INFO.into()),
        ("XEN_DMOP_map_io_range_to_ioreq_server", MAP_IO_RANGE.into()),
        ("XEN_DMOP_unmap_io_range_from_ioreq_server", UNMAP_IO_RANGE.into()),
        ("XEN_DMOP_set_ioreq_server_state", SET_IOREQ_SERVER_STATE.into()),
        ("XEN_DMOP_destroy_ioreq_server", DESTROY_IOREQ_SERVER.into()),
        ("XEN_DMOP_set_isa_irq_level", SET_ISA_IRQ_LEVEL.into()),
        ("XEN_DMOP_set_pci_intx_level", SET_PCI_INTX_LEVEL.into()),
        ("XEN_DMOP_inject_msi", INJECT_MSI.into()),
        ("XEN_DMOP_set_irq_level", SET_IRQ_LEVEL.into()),
        ("XEN_DMOP_nr_vcpus", NR_VCPUS.into()),
        ("XEN_DMOP_IO_RANGE_PORT", IO_RANGE_PORT.into()),
        ("XEN_DMOP_IO_RANGE_MEMORY", IO_RANGE_MEMORY.into()),
    ];
    layout!(
        known,
        CreateIoreqServer,
        "struct xen_dm_op_create_ioreq_server",
        handle_bufioreq = "handle_bufioreq",
        id = "id"
    );
    layout!(
        known,
        GetIoreqServerInfo,
        "struct xen_dm_op_get_ioreq_server_info",
        id = "id",
        flags = "flags",
        bufioreq_port = "bufioreq_port",
        ioreq_gfn = "ioreq_gfn",
        bufioreq_gfn = "bufioreq_gfn"
    );
    layout!(
        known,
        IoreqServerRange,
        "struct xen_dm_op_ioreq_server_range",
        id = "id",
        kind = "type",
        start = "start",
        end = "end"
    );
    layout!(
        known,
        SetIoreqServerState,
        "struct xen_dm_op_set_ioreq_server_state",
        id = "id",
        enabled = "enabled"
    );
    layout!(known, DestroyIoreqServer, "struct xen_dm_op_destroy_ioreq_server", id = "id");
    layout!(
        known,
        SetIsaIrqLevel,
        "struct xen_dm_op_set_isa_irq_level",
        isa_irq = "isa_irq",
        level = "level"
    );
    layout!(
        known,
        SetPciIntxLevel,
        "struct xen_dm_op_set_pci_intx_level",
        pci_domain = "domain",
        bus = "bus",
        device = "device",
        pin = "intx",
        level = "level"
    );
    layout!(known, InjectMsi, "struct xen_dm_op_inject_msi", data = "data", address = "addr");
    layout!(known, SetIrqLevel, "struct xen_dm_op_set_irq_level", irq = "irq", level = "level");
    layout!(known, NrVcpus, "struct xen_dm_op_nr_vcpus", vcpus = "vcpus");
    // The union of the operations may be longer than those that we have.
    known.push(("offsetof(struct xen_dm_op, u)", offset_of!(DmOp, arguments) as u64));
    compare(includes, &known);
}

#[test]
fn the_page_of_an_ioreq_server() {
    let includes = "#define __XEN_TOOLS__
        #include <stdint.h>
        #include <xen/xen.h>
        #include <xen/hvm/hvm_op.h>
        #include <xen/hvm/ioreq.h>
        static struct ioreq bits(int state, int pointer, int read, int down) {
            struct ioreq made = { .state = state, .data_is_ptr = pointer, .dir = read, .df = down };
            return made;
        }
        static unsigned byte(struct ioreq made) { return ((unsigned char *)&made)[30]; }";
    let mut known = vec![
        ("STATE_IOREQ_NONE", ioreq::STATE_NONE.into()),
        ("STATE_IOREQ_READY", ioreq::STATE_READY.into()),
        ("STATE_IOREQ_INPROCESS", ioreq::STATE_IN_PROCESS.into()),
        ("STATE_IORESP_READY", ioreq::STATE_ANSWERED.into()),
        ("IOREQ_TYPE_PIO", ioreq::TYPE_PORT.into()),
        ("IOREQ_TYPE_COPY", ioreq::TYPE_MEMORY.into()),
        ("IOREQ_TYPE_INVALIDATE", ioreq::TYPE_INVALIDATE.into()),
        ("HVM_IOREQSRV_BUFIOREQ_OFF", BUFIOREQ_OFF.into()),
        ("byte(bits(15, 0, 0, 0))", ioreq::STATE_MASK.into()),
        ("byte(bits(0, 1, 0, 0))", ioreq::IS_POINTER.into()),
        ("byte(bits(0, 0, IOREQ_READ, 0))", ioreq::IS_READ.into()),
        ("byte(bits(0, 0, 0, 1))", ioreq::IS_BACKWARDS.into()),
    ];
    layout!(
        known,
        ioreq::Ioreq,
        "struct ioreq",
        address = "addr",
        data = "data",
        count = "count",
        size = "size",
        port = "vp_eport",
        kind = "type"
    );
    compare(includes, &known);
}
