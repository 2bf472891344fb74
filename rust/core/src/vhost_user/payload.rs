//! The structures inside payloads, and a cursor that reads and writes them. All numbers are in native
//! byte order, as the protocol has them.

use std::os::fd::OwnedFd;

use bitflags::bitflags;

use super::{ProtocolError, RequestName, VringFlags};

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

/// The specification calls NO_ADVANCE_MAP "bit 8", the only implementation (rust-vmm) has the value 8. We
/// send the value 8 and take both.
const NO_ADVANCE_MAP_BIT_8: u32 = 1 << 8;

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

/// Bits of the number in SET_VRING_KICK, CALL and ERR.
const INDEX_MASK: u64 = 0xff;
const NO_FD: u64 = 1 << 8;

/// Bytes before the data in a payload of configuration space.
const CONFIG_HEADER: usize = 12;

/// Reads one payload and its file descriptors. Sizes and counts are settled by `expect` or its
/// siblings; the readers behind it give an error rather than a panic where that was forgotten.
pub(super) struct Input<'a> {
    request: RequestName,
    payload: &'a [u8],
    at: usize,
    fds: std::vec::IntoIter<OwnedFd>,
}

impl<'a> Input<'a> {
    pub(super) fn new(request: impl Into<RequestName>, payload: &'a [u8], fds: Vec<OwnedFd>) -> Self {
        Self { request: request.into(), payload, at: 0, fds: fds.into_iter() }
    }

    pub(super) fn len(&self) -> usize {
        self.payload.len()
    }

    /// The payload has exactly `size` bytes, and `fds` file descriptors came with it.
    pub(super) fn expect(&self, size: usize, fds: usize) -> Result<(), ProtocolError> {
        self.size(size == self.payload.len(), || format!("{size}"))?;
        self.fds(fds == self.fds.len(), || format!("{fds}"))
    }

    pub(super) fn size(&self, good: bool, allowed: impl FnOnce() -> String) -> Result<(), ProtocolError> {
        if good {
            return Ok(());
        }
        Err(ProtocolError::Size { request: self.request, size: self.payload.len(), allowed: allowed() })
    }

    pub(super) fn fds(&self, good: bool, allowed: impl FnOnce() -> String) -> Result<(), ProtocolError> {
        if good {
            return Ok(());
        }
        Err(ProtocolError::Fds { request: self.request, count: self.fds.len(), allowed: allowed() })
    }

    pub(super) fn value(
        &self,
        what: &'static str,
        value: u64,
        good: bool,
        allowed: impl FnOnce() -> String,
    ) -> Result<(), ProtocolError> {
        if good {
            return Ok(());
        }
        Err(ProtocolError::Value { request: self.request, what, value, allowed: allowed() })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let bytes = self.payload.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let size = self.payload.len();
        let request = self.request;
        let at_least = self.at + N;
        let bytes = *bytes.ok_or_else(|| ProtocolError::Size {
            request,
            size,
            allowed: format!("at least {at_least}"),
        })?;
        self.at += N;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.take().map(u64::from_ne_bytes)
    }

    pub(super) fn fd(&mut self) -> Result<OwnedFd, ProtocolError> {
        let request = self.request;
        self.fds.next().ok_or_else(|| ProtocolError::Fds { request, count: 0, allowed: "at least 1".into() })
    }

    pub(super) fn optional_fd(&mut self) -> Option<OwnedFd> {
        self.fds.next()
    }

    pub(super) fn fd_count(&self) -> usize {
        self.fds.len()
    }

    /// A queue's index and a file descriptor, or the bit that says that there is none; `size` bytes in all.
    pub(super) fn vring_fd(&mut self, size: usize) -> Result<(u8, Option<OwnedFd>), ProtocolError> {
        self.size(self.len() == size, || size.to_string())?;
        let value = self.u64()?;
        self.value("index and flags", value, value & !(INDEX_MASK | NO_FD) == 0, || {
            "an index in bits 0 to 7 and the no-fd flag in bit 8".into()
        })?;
        if value & NO_FD == 0 {
            self.fds(self.fds.len() == 1, || "1 (bit 8, which says that there is none, is not set)".into())?;
        } else {
            self.fds(self.fds.len() == 0, || "0 (bit 8 says that there is none)".into())?;
        }
        Ok(((value & INDEX_MASK) as u8, self.fds.next()))
    }

    pub(super) fn vring_state(&mut self) -> Result<VringState, ProtocolError> {
        self.expect(8, 0)?;
        Ok(VringState { index: self.u32()?, value: self.u32()? })
    }

    pub(super) fn vring_address(&mut self) -> Result<VringAddress, ProtocolError> {
        self.expect(40, 0)?;
        let index = self.u32()?;
        let bits = self.u32()?;
        let flags = VringFlags::from_bits(bits);
        self.value("flags", bits.into(), flags.is_some(), || "0 or 1 (the log flag)".into())?;
        Ok(VringAddress {
            index,
            flags: flags.unwrap_or_default(),
            descriptors: self.u64()?,
            used: self.u64()?,
            available: self.u64()?,
            log: self.u64()?,
        })
    }

    pub(super) fn region(&mut self, format: RegionFormat) -> Result<MemoryRegion, ProtocolError> {
        let mut region = MemoryRegion {
            guest_address: self.u64()?,
            size: self.u64()?,
            user_address: self.u64()?,
            mmap_offset: self.u64()?,
            ..MemoryRegion::default()
        };
        self.value("region size", region.size, region.size != 0, || "more than 0".into())?;
        for (what, start) in [
            ("guest address", region.guest_address),
            ("user address", region.user_address),
            ("mmap offset", region.mmap_offset),
        ] {
            self.value(what, start, start.checked_add(region.size).is_some(), || {
                format!("such that {:#x} bytes from there do not wrap", region.size)
            })?;
        }
        if format == RegionFormat::Xen {
            let bits = self.u32()?;
            let known = bits & !NO_ADVANCE_MAP_BIT_8;
            let mut flags = XenMapFlags::from_bits(known).unwrap_or_default();
            flags.set(XenMapFlags::NO_ADVANCE_MAP, bits & (NO_ADVANCE_MAP_BIT_8 | 8) != 0);
            let one_kind = !flags.contains(XenMapFlags::FOREIGN | XenMapFlags::GRANT);
            let late_is_grant =
                !flags.contains(XenMapFlags::NO_ADVANCE_MAP) || flags.contains(XenMapFlags::GRANT);
            let good = XenMapFlags::from_bits(known).is_some() && one_kind && late_is_grant;
            self.value("Xen mapping flags", bits.into(), good, || {
                "0 (a file), 1 (foreign), 2 (grant) or 0xa (grant, mapped when accessed)".into()
            })?;
            region.xen_flags = flags;
            region.xen_domain = self.u32()?;
        }
        Ok(region)
    }

    /// Configuration space. `size` says how many bytes follow; they may be missing where `data_optional`.
    pub(super) fn config(&mut self, data_optional: bool) -> Result<ConfigSpace, ProtocolError> {
        let len = self.len();
        self.size(len >= CONFIG_HEADER, || format!("at least {CONFIG_HEADER}"))?;
        self.fds(self.fds.len() == 0, || "0".into())?;
        let (offset, size, flags) = (self.u32()?, self.u32()?, self.u32()?);
        let data = self.payload.get(CONFIG_HEADER..).unwrap_or_default();
        let most = (MAX_PAYLOAD - CONFIG_HEADER) as u64;
        self.value("config size", size.into(), u64::from(size) <= most, || format!("at most {most}"))?;
        self.value("config offset", offset.into(), offset.checked_add(size).is_some(), || {
            format!("such that {size} bytes from there do not wrap")
        })?;
        let wanted = size as usize;
        if data.is_empty() && data_optional {
            return Ok(ConfigSpace { offset, flags, data: vec![0; wanted] });
        }
        self.size(data.len() == wanted, || format!("{CONFIG_HEADER} + {wanted}, the size that it names"))?;
        Ok(ConfigSpace { offset, flags, data: data.to_vec() })
    }

    pub(super) fn iotlb(&mut self) -> Result<IotlbMessage, ProtocolError> {
        self.expect(32, 0)?;
        Ok(IotlbMessage {
            iova: self.u64()?,
            size: self.u64()?,
            user_address: self.u64()?,
            permission: self.u8()?,
            kind: self.u8()?,
        })
    }

    /// 24 bytes as C has the structure, or the 20 of its fields.
    pub(super) fn inflight(&mut self) -> Result<Inflight, ProtocolError> {
        self.size(matches!(self.len(), 20 | 24), || "20 or 24".into())?;
        Ok(Inflight {
            mmap_size: self.u64()?,
            mmap_offset: self.u64()?,
            queues: self.u16()?,
            queue_size: self.u16()?,
        })
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, ProtocolError> {
        self.expect(16, 0)?;
        self.take()
    }

    pub(super) fn shared_memory_map(&mut self) -> Result<SharedMemoryMap, ProtocolError> {
        self.size(self.len() == 40, || "40".into())?;
        let region = self.u8()?;
        let _padding: [u8; 7] = self.take()?;
        Ok(SharedMemoryMap {
            region,
            fd_offset: self.u64()?,
            offset: self.u64()?,
            size: self.u64()?,
            flags: self.u64()?,
        })
    }
}

/// Writes one payload.
#[derive(Default)]
pub(super) struct Output(pub(super) Vec<u8>);

impl Output {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn zeroes(&mut self, count: usize) {
        self.0.resize(self.0.len() + count, 0);
    }

    pub(super) fn vring_fd(&mut self, index: u8, has_fd: bool) {
        self.u64(u64::from(index) | if has_fd { 0 } else { NO_FD });
    }

    pub(super) fn vring_state(&mut self, state: &VringState) {
        self.u32(state.index);
        self.u32(state.value);
    }

    pub(super) fn vring_address(&mut self, address: &VringAddress) {
        self.u32(address.index);
        self.u32(address.flags.bits());
        self.u64(address.descriptors);
        self.u64(address.used);
        self.u64(address.available);
        self.u64(address.log);
    }

    pub(super) fn region(&mut self, region: &MemoryRegion, format: RegionFormat) {
        self.u64(region.guest_address);
        self.u64(region.size);
        self.u64(region.user_address);
        self.u64(region.mmap_offset);
        if format == RegionFormat::Xen {
            self.u32(region.xen_flags.bits());
            self.u32(region.xen_domain);
        }
    }

    pub(super) fn config(&mut self, config: &ConfigSpace) {
        self.u32(config.offset);
        self.u32(config.data.len() as u32);
        self.u32(config.flags);
        self.0.extend_from_slice(&config.data);
    }

    pub(super) fn iotlb(&mut self, message: &IotlbMessage) {
        self.u64(message.iova);
        self.u64(message.size);
        self.u64(message.user_address);
        self.u8(message.permission);
        self.u8(message.kind);
        self.zeroes(6);
    }

    pub(super) fn inflight(&mut self, inflight: &Inflight) {
        self.u64(inflight.mmap_size);
        self.u64(inflight.mmap_offset);
        self.u16(inflight.queues);
        self.u16(inflight.queue_size);
        self.zeroes(4);
    }

    pub(super) fn shared_memory_map(&mut self, map: &SharedMemoryMap) {
        self.u8(map.region);
        self.zeroes(7);
        self.u64(map.fd_offset);
        self.u64(map.offset);
        self.u64(map.size);
        self.u64(map.flags);
    }
}
