//! /dev/xen/gntdev and /dev/xen/gntalloc: Linux's include/uapi/xen/gntdev.h and gntalloc.h.

use bytemuck::{Pod, Zeroable};

use super::ioctl;

/// `IOCTL_GNTDEV_MAP_GRANT_REF`.
pub const MAP_GRANT_REF: u32 = ioctl(b'G', 0, size_of::<MapGrantRef>() + size_of::<GrantRef>());
/// `IOCTL_GNTDEV_UNMAP_GRANT_REF`.
pub const UNMAP_GRANT_REF: u32 = ioctl(b'G', 1, size_of::<UnmapGrantRef>());
/// `IOCTL_GNTALLOC_ALLOC_GREF`: the structure ends with one reference and is padded.
pub const ALLOC_GREF: u32 = ioctl(b'G', 5, size_of::<AllocGref>() + size_of::<u64>());
/// `IOCTL_GNTALLOC_DEALLOC_GREF`.
pub const DEALLOC_GREF: u32 = ioctl(b'G', 6, size_of::<UnmapGrantRef>());
/// `IOCTL_GNTDEV_SET_UNMAP_NOTIFY` and `IOCTL_GNTALLOC_SET_UNMAP_NOTIFY`.
pub const SET_UNMAP_NOTIFY: u32 = ioctl(b'G', 7, size_of::<UnmapNotify>());
/// `IOCTL_GNTDEV_GRANT_COPY`.
pub const GRANT_COPY: u32 = ioctl(b'G', 8, size_of::<GrantCopy>());

/// `UNMAP_NOTIFY_CLEAR_BYTE`.
pub const NOTIFY_CLEAR_BYTE: u32 = 1;
/// `UNMAP_NOTIFY_SEND_EVENT`.
pub const NOTIFY_SEND_EVENT: u32 = 2;
/// `GNTALLOC_FLAG_WRITABLE`.
pub const SHARE_WRITABLE: u16 = 1;
/// `GNTCOPY_source_gref` (xen/include/public/grant_table.h).
pub const COPY_SOURCE_GRANT: u16 = 1;
/// `GNTCOPY_dest_gref`.
pub const COPY_TARGET_GRANT: u16 = 2;

/// `struct ioctl_gntdev_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct GrantRef {
    /// The domain that granted.
    pub domain: u32,
    /// The reference, in its table.
    pub reference: u32,
}

/// `struct ioctl_gntdev_map_grant_ref`, without the array of [`GrantRef`] that follows at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct MapGrantRef {
    /// References in the array.
    pub count: u32,
    /// Zero.
    pub padding: u32,
    /// What the kernel answers: the offset for `mmap`.
    pub index: u64,
}

/// `struct ioctl_gntdev_unmap_grant_ref`, and `struct ioctl_gntalloc_dealloc_gref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct UnmapGrantRef {
    /// The offset for `mmap`.
    pub index: u64,
    /// Pages.
    pub count: u32,
    /// Zero.
    pub padding: u32,
}

/// `struct ioctl_gntdev_unmap_notify`, and `struct ioctl_gntalloc_unmap_notify`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct UnmapNotify {
    /// The offset for `mmap`, and that of the byte in it.
    pub index: u64,
    /// NOTIFY_*.
    pub action: u32,
    /// A port that is bound by /dev/xen/evtchn.
    pub port: u32,
}

/// `struct ioctl_gntalloc_alloc_gref`, without the array of references that follows at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct AllocGref {
    /// To whom.
    pub domain: u16,
    /// SHARE_*.
    pub flags: u16,
    /// Pages.
    pub count: u32,
    /// What the kernel answers: the offset for `mmap`.
    pub index: u64,
}

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct GrantCopy {
    /// Segments.
    pub count: u32,
    /// Zero.
    pub padding: u32,
    /// Address of the array of [`CopySegment`].
    pub segments: u64,
}

/// `struct gntdev_grant_copy_segment`. An end is an address of ours, or for a grant [`grant_end`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct CopySegment {
    /// From where.
    pub source: u64,
    /// To where.
    pub target: u64,
    /// Bytes.
    pub len: u16,
    /// COPY_*.
    pub flags: u16,
    /// What the kernel answers: 0, or a GNTST_* below it.
    pub status: i16,
    /// Zero.
    pub padding: u16,
}

/// `foreign` of a segment's end: u32 reference, u16 offset in the page, u16 domain.
pub const fn grant_end(domain: u16, reference: u32, offset: u16) -> u64 {
    let ([r0, r1, r2, r3], [o0, o1], [d0, d1]) =
        (reference.to_ne_bytes(), offset.to_ne_bytes(), domain.to_ne_bytes());
    u64::from_ne_bytes([r0, r1, r2, r3, o0, o1, d0, d1])
}

#[cfg(test)]
mod tests {
    use super::{super::headers, *};
    use std::mem::offset_of;

    const HEADERS: &str = "#include <stdint.h>
        #include <linux/ioctl.h>
        typedef uint32_t grant_ref_t;
        typedef uint16_t domid_t;
        #include <xen/gntdev.h>
        #include <xen/gntalloc.h>";

    #[test]
    fn layouts_and_numbers_are_those_of_the_kernel() {
        let tail = size_of::<GrantRef>();
        let known = [
            ("IOCTL_GNTDEV_MAP_GRANT_REF", MAP_GRANT_REF as usize, 0x0018_4700),
            ("IOCTL_GNTDEV_UNMAP_GRANT_REF", UNMAP_GRANT_REF as usize, 0x0010_4701),
            ("IOCTL_GNTALLOC_ALLOC_GREF", ALLOC_GREF as usize, 0x0018_4705),
            ("IOCTL_GNTALLOC_DEALLOC_GREF", DEALLOC_GREF as usize, 0x0010_4706),
            ("IOCTL_GNTDEV_SET_UNMAP_NOTIFY", SET_UNMAP_NOTIFY as usize, 0x0010_4707),
            ("IOCTL_GNTALLOC_SET_UNMAP_NOTIFY", SET_UNMAP_NOTIFY as usize, 0x0010_4707),
            ("IOCTL_GNTDEV_GRANT_COPY", GRANT_COPY as usize, 0x0010_4708),
            ("UNMAP_NOTIFY_CLEAR_BYTE", NOTIFY_CLEAR_BYTE as usize, 1),
            ("UNMAP_NOTIFY_SEND_EVENT", NOTIFY_SEND_EVENT as usize, 2),
            ("GNTALLOC_FLAG_WRITABLE", SHARE_WRITABLE as usize, 1),
            ("sizeof(struct ioctl_gntdev_map_grant_ref)", size_of::<MapGrantRef>() + tail, 24),
            ("offsetof(struct ioctl_gntdev_map_grant_ref, index)", offset_of!(MapGrantRef, index), 8),
            ("offsetof(struct ioctl_gntdev_map_grant_ref, refs)", size_of::<MapGrantRef>(), 16),
            ("offsetof(struct ioctl_gntdev_grant_ref, ref)", offset_of!(GrantRef, reference), 4),
            ("offsetof(struct ioctl_gntdev_unmap_grant_ref, count)", offset_of!(UnmapGrantRef, count), 8),
            ("offsetof(struct ioctl_gntalloc_dealloc_gref, count)", offset_of!(UnmapGrantRef, count), 8),
            ("offsetof(struct ioctl_gntdev_unmap_notify, action)", offset_of!(UnmapNotify, action), 8),
            (
                "offsetof(struct ioctl_gntdev_unmap_notify, event_channel_port)",
                offset_of!(UnmapNotify, port),
                12,
            ),
            ("offsetof(struct ioctl_gntalloc_alloc_gref, flags)", offset_of!(AllocGref, flags), 2),
            ("offsetof(struct ioctl_gntalloc_alloc_gref, count)", offset_of!(AllocGref, count), 4),
            ("offsetof(struct ioctl_gntalloc_alloc_gref, index)", offset_of!(AllocGref, index), 8),
            ("offsetof(struct ioctl_gntalloc_alloc_gref, gref_ids)", size_of::<AllocGref>(), 16),
            ("offsetof(struct ioctl_gntdev_grant_copy, segments)", offset_of!(GrantCopy, segments), 8),
            ("sizeof(struct gntdev_grant_copy_segment)", size_of::<CopySegment>(), 24),
            ("offsetof(struct gntdev_grant_copy_segment, dest)", offset_of!(CopySegment, target), 8),
            ("offsetof(struct gntdev_grant_copy_segment, len)", offset_of!(CopySegment, len), 16),
            ("offsetof(struct gntdev_grant_copy_segment, flags)", offset_of!(CopySegment, flags), 18),
            ("offsetof(struct gntdev_grant_copy_segment, status)", offset_of!(CopySegment, status), 20),
        ];
        for (name, ours, wanted) in known {
            assert_eq!(ours, wanted, "{name}");
        }
        let names = known.map(|(name, ..)| name);
        let Some(values) = headers::values(HEADERS, &names) else { return };
        for ((name, ours, _), value) in known.iter().zip(values) {
            assert_eq!(*ours as u64, value, "{name} in the headers");
        }
    }

    #[test]
    fn an_end_of_a_copy_has_its_fields_in_the_order_of_the_kernel() {
        let bytes = grant_end(0x1122, 0x3344_5566, 0x0788).to_ne_bytes();
        assert_eq!(bytes[..4], 0x3344_5566u32.to_ne_bytes());
        assert_eq!((&bytes[4..6], &bytes[6..]), (&0x0788u16.to_ne_bytes()[..], &0x1122u16.to_ne_bytes()[..]));
    }
}
