//! The structures inside payloads.

use bitflags::bitflags;

use super::VringFlags;

/// The longest payload that is taken or sent, in bytes. The longest of the known ones is
/// GET_SHMEM_CONFIG's reply with 2,056.
pub const MAX_PAYLOAD: usize = 4096;

/// How a memory region looks on the wire: settled by XEN_MMAP among the acked protocol features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RegionFormat {
    /// 32 bytes.
    #[default]
    Plain,
    /// 40 bytes: flags and a domain follow.
    Xen,
}

impl RegionFormat {
    /// Bytes of one region.
    pub const fn size(self) -> usize {
        match self {
            Self::Plain => 32,
            Self::Xen => 40,
        }
    }
}

bitflags! {
    /// How Xen maps a region (protocol feature XEN_MMAP). None of them: an ordinary shared file.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct XenMapFlags: u32 {
        /// A foreign mapping through privcmd.
        const FOREIGN = 1;
        /// A grant mapping through gntdev.
        const GRANT = 2;
        /// Not mapped in advance, only for the time of an access.
        const NO_ADVANCE_MAP = 8;
    }
}

/// One region of guest memory as the frontend describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of the first byte in the frontend, which ring addresses refer to.
    pub user_address: u64,
    /// Where the region begins in its file.
    pub mmap_offset: u64,
    /// How Xen maps it; empty in the plain format.
    pub xen_flags: XenMapFlags,
    /// The domain whose memory it is; 0 in the plain format.
    pub xen_domain: u32,
}

/// Index and a number: SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE and others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Which queue.
    pub index: u32,
    /// The number; what it means is the request's affair.
    pub value: u32,
}

/// SET_VRING_ADDR: where the three parts of a split ring lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddress {
    /// Which queue.
    pub index: u32,
    /// Flags.
    pub flags: VringFlags,
    /// The descriptor table, a user address of the frontend.
    pub descriptors: u64,
    /// The used ring, likewise.
    pub used: u64,
    /// The available ring, likewise.
    pub available: u64,
    /// Guest address at which writes to the used ring are logged.
    pub log: u64,
}

/// A stretch of configuration space: GET_CONFIG, SET_CONFIG and the reply to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Byte offset in the configuration space.
    pub offset: u32,
    /// 0: the guest's write; 1: the frontend's, for live migration.
    pub flags: u32,
    /// The bytes. In a GET_CONFIG only their number means something.
    pub data: Vec<u8>,
}

/// SET_LOG_BASE: where the dirty log lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogArea {
    /// Length in bytes.
    pub size: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// A message of an IOMMU's translation cache, `struct vhost_iotlb_msg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IotlbMessage {
    /// I/O virtual address.
    pub iova: u64,
    /// Length in bytes.
    pub size: u64,
    /// User address in the frontend.
    pub user_address: u64,
    /// 0 to 3: none, read, write, both.
    pub permission: u8,
    /// 1 miss, 2 update, 3 invalidate, 4 access fail, 5 batch begin, 6 batch end.
    pub kind: u8,
}

/// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// Length of the shared area in bytes.
    pub mmap_size: u64,
    /// Its offset in the file.
    pub mmap_offset: u64,
    /// How many queues it has room for.
    pub queues: u16,
    /// Entries a queue.
    pub queue_size: u16,
}

/// SET_DEVICE_STATE_FD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStateTransfer {
    /// 0 save, 1 load.
    pub direction: u32,
    /// 0: the device is stopped.
    pub phase: u32,
}

/// BACKEND_VRING_HOST_NOTIFIER_MSG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringArea {
    /// Which queue.
    pub index: u8,
    /// Length of the area in bytes.
    pub size: u64,
    /// Its offset in the file.
    pub offset: u64,
}

/// BACKEND_SHMEM_MAP and BACKEND_SHMEM_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryMap {
    /// Which shared memory region.
    pub region: u8,
    /// Offset in the file.
    pub fd_offset: u64,
    /// Offset in the shared memory region.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// Bit 0: writable.
    pub flags: u64,
}

/// The name of a shared object.
pub type Uuid = [u8; 16];
