//! Reads and writes the structures inside payloads. All numbers are in native byte order, as the protocol
//! has them.

use std::os::fd::OwnedFd;

use super::{
    ConfigSpace, Inflight, IotlbMessage, MAX_PAYLOAD, MemoryRegion, ProtocolError, RegionFormat, RequestName,
    SharedMemoryMap, Uuid, VringAddress, VringFlags, VringState, XenMapFlags,
};

/// The specification calls NO_ADVANCE_MAP "bit 8", the only implementation (rust-vmm) has the value 8. We
/// send the value 8 and take both.
const NO_ADVANCE_MAP_BIT_8: u32 = 1 << 8;

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
