//! The frontend shares its memory and its rings.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{
    Frontend, FrontendCode as Code, FrontendError, FrontendRequest, MemoryRegion, ProtocolFeatures,
    RegionFormat, Reply, VringAddress, VringFlags, VringState, XenMapFlags,
    frontend::{argument, socket_error, wrong_answer},
    virtio_features,
};

/// One ring, as [`Frontend::set_ring`] wants it. Addresses are guest physical and lie in the memory table.
#[derive(Clone, Copy, Debug)]
pub struct RingSetup<'a> {
    /// Which queue.
    pub index: u8,
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// The available index to go on from; 0 for a new ring.
    pub base: u16,
    /// Signalled by the driver. None: the device polls.
    pub kick: Option<BorrowedFd<'a>>,
    /// Signalled by the device. None: the driver polls.
    pub call: Option<BorrowedFd<'a>>,
    /// Signalled by the device when the ring is broken. Not sent at all if None.
    pub err: Option<BorrowedFd<'a>>,
}

impl Frontend {
    /// Gives the peer the whole memory table.
    pub fn set_memory(&mut self, regions: &[(MemoryRegion, BorrowedFd<'_>)]) -> Result<(), FrontendError> {
        let most = super::MAX_FDS;
        argument("number of regions", regions.len() as u64, regions.len() <= most, || {
            format!("at most {most}")
        })?;
        let regions = regions.iter().map(|(region, fd)| Ok((self.region(region)?, duplicate(*fd)?)));
        let regions = regions.collect::<Result<Vec<_>, FrontendError>>()?;
        let table = regions.iter().map(|(region, _)| *region).collect();
        self.confirm(&FrontendRequest::SetMemTable(regions))?;
        self.barrier()?;
        self.memory = table;
        Ok(())
    }

    /// How many regions the peer takes (CONFIGURE_MEM_SLOTS).
    pub fn max_memory_slots(&mut self) -> Result<u64, FrontendError> {
        self.need(Code::GetMaxMemSlots, ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        self.ask(&FrontendRequest::GetMaxMemSlots)
    }

    /// One more region (CONFIGURE_MEM_SLOTS).
    pub fn add_region(&mut self, region: &MemoryRegion, fd: BorrowedFd<'_>) -> Result<(), FrontendError> {
        self.need(Code::AddMemReg, ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        let region = self.region(region)?;
        self.confirm(&FrontendRequest::AddMemReg { region, fd: duplicate(fd)? })?;
        self.barrier()?;
        self.memory.push(region);
        Ok(())
    }

    /// Away with a region (CONFIGURE_MEM_SLOTS).
    pub fn remove_region(&mut self, region: &MemoryRegion) -> Result<(), FrontendError> {
        self.need(Code::RemMemReg, ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        let region = self.region(region)?;
        self.confirm(&FrontendRequest::RemMemReg(region))?;
        self.barrier()?;
        self.memory.retain(|known| {
            (known.guest_address, known.user_address, known.size)
                != (region.guest_address, region.user_address, region.size)
        });
        Ok(())
    }

    /// Sets one ring up; enable it when all are. The kick comes last: it is what starts the ring.
    pub fn set_ring(&mut self, ring: &RingSetup<'_>) -> Result<(), FrontendError> {
        let index = u32::from(ring.index);
        let address = VringAddress {
            index,
            flags: VringFlags::empty(),
            descriptors: self.user_address("descriptor table", ring.descriptors)?,
            available: self.user_address("available ring", ring.available)?,
            used: self.user_address("used ring", ring.used)?,
            log: 0,
        };
        let duplicate = |fd: Option<BorrowedFd<'_>>| fd.map(duplicate).transpose();
        self.confirm(&FrontendRequest::SetVringNum(VringState { index, value: ring.size.into() }))?;
        self.confirm(&FrontendRequest::SetVringAddr(address))?;
        self.confirm(&FrontendRequest::SetVringBase(VringState { index, value: ring.base.into() }))?;
        self.confirm(&FrontendRequest::SetVringCall { index: ring.index, fd: duplicate(ring.call)? })?;
        if ring.err.is_some() {
            self.confirm(&FrontendRequest::SetVringErr { index: ring.index, fd: duplicate(ring.err)? })?;
        }
        self.confirm(&FrontendRequest::SetVringKick { index: ring.index, fd: duplicate(ring.kick)? })?;
        self.barrier()
    }

    /// Enables or disables a ring. Without protocol features there is nothing to say: it runs from the start.
    pub fn enable_ring(&mut self, index: u8, enable: bool) -> Result<(), FrontendError> {
        argument("virtio features", self.acked, self.acked != 0, || {
            "settled by set_features before a ring is enabled".into()
        })?;
        if self.acked & virtio_features::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.confirm(&FrontendRequest::SetVringEnable { index: index.into(), enable })?;
        self.barrier()
    }

    /// Stops a ring and says at which available index: the base to go on from.
    pub fn stop_ring(&mut self, index: u8) -> Result<u32, FrontendError> {
        match self.call(&FrontendRequest::GetVringBase { index: index.into() })? {
            Reply::VringBase(state) if state.index == u32::from(index) => Ok(state.value),
            answer => Err(wrong_answer(Code::GetVringBase, &answer, format!("queue {index} was asked for"))),
        }
    }

    /// The region as the negotiated format can carry it.
    fn region(&self, region: &MemoryRegion) -> Result<MemoryRegion, FrontendError> {
        let plain = region.xen_flags == XenMapFlags::empty() && region.xen_domain == 0;
        let bits = u64::from(region.xen_flags.bits());
        argument("Xen mapping flags", bits, plain || self.format() == RegionFormat::Xen, || {
            "0 where XEN_MMAP was not acked".into()
        })?;
        argument("region size", region.size, region.size > 0, || "more than 0".into())?;
        for (what, start) in [
            ("guest address", region.guest_address),
            ("user address", region.user_address),
            ("mmap offset", region.mmap_offset),
        ] {
            argument(what, start, start.checked_add(region.size).is_some(), || {
                format!("such that the region's {:#x} bytes do not wrap", region.size)
            })?;
        }
        Ok(*region)
    }

    fn user_address(&self, what: &'static str, address: u64) -> Result<u64, FrontendError> {
        let region =
            self.memory.iter().find(|region| address.wrapping_sub(region.guest_address) < region.size);
        match region {
            Some(region) => Ok(region.user_address + (address - region.guest_address)),
            None => Err(FrontendError::Argument {
                what,
                value: address,
                allowed: format!("in one of the {} regions that were set", self.memory.len()),
            }),
        }
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, FrontendError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(socket_error)
}
