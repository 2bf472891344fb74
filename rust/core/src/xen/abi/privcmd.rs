//! /dev/xen/privcmd: Linux's include/uapi/xen/privcmd.h.

use bytemuck::{Pod, Zeroable};

use super::ioctl;

/// `IOCTL_PRIVCMD_MMAPBATCH_V2`.
pub const MMAPBATCH_V2: u32 = ioctl(b'P', 4, size_of::<MmapBatchV2>());
/// `IOCTL_PRIVCMD_RESTRICT`.
pub const RESTRICT: u32 = ioctl(b'P', 6, size_of::<u16>());
/// `IOCTL_PRIVCMD_MMAP_RESOURCE`.
pub const MMAP_RESOURCE: u32 = ioctl(b'P', 7, size_of::<MmapResource>());

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct MmapBatchV2 {
    /// Frames to map.
    pub num: u32,
    /// The domain whose frames they are.
    pub domain: u16,
    /// Zero.
    pub padding: u16,
    /// Where in our address space.
    pub address: u64,
    /// Address of the array of `num` frame numbers.
    pub frames: u64,
    /// Address of the array of `num` errors (int), which the kernel fills.
    pub errors: u64,
}

/// `struct privcmd_mmap_resource`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct MmapResource {
    /// The domain whose resource it is.
    pub domain: u16,
    /// Zero.
    pub padding: u16,
    /// XENMEM_resource_*.
    pub kind: u32,
    /// Which one of that kind.
    pub id: u32,
    /// The first frame of it.
    pub index: u32,
    /// How many frames; the kernel answers 0 at address 0 with the size of the resource.
    pub num: u64,
    /// Where in our address space.
    pub address: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layouts_and_numbers_are_those_of_the_kernel() {
        assert_eq!((size_of::<MmapBatchV2>(), MMAPBATCH_V2), (32, 0x0020_5004));
        assert_eq!(
            [
                offset_of!(MmapBatchV2, domain),
                offset_of!(MmapBatchV2, address),
                offset_of!(MmapBatchV2, frames),
                offset_of!(MmapBatchV2, errors)
            ],
            [4, 8, 16, 24]
        );
        assert_eq!((size_of::<MmapResource>(), MMAP_RESOURCE), (32, 0x0020_5007));
        assert_eq!(
            [
                offset_of!(MmapResource, kind),
                offset_of!(MmapResource, id),
                offset_of!(MmapResource, index),
                offset_of!(MmapResource, num),
                offset_of!(MmapResource, address)
            ],
            [4, 8, 12, 16, 24]
        );
        assert_eq!(RESTRICT, 0x0002_5006);
    }
}
