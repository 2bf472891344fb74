//! What a connection agrees on, and which requests that allows; and the config space.

use super::{
    Backend, BackendError, ConfigSpace, FrontendRequest, ProtocolFeatures, RegionFormat, RequestName,
    backend::{refused, wrong},
    virtio_features,
};

/// The protocol features that work here, whatever the host; XEN_MMAP where that has Xen's devices.
pub const OFFERED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS);

/// The largest config space that GET_CONFIG can ask for (vhost-user, VHOST_USER_MAX_CONFIG_SIZE).
const MAX_CONFIG: usize = 256;

impl Backend {
    /// A request that belongs to a protocol feature wants it negotiated.
    pub(super) fn check_negotiated(&self, request: &FrontendRequest) -> Result<(), BackendError> {
        use FrontendRequest as R;
        let needed = match request {
            R::GetQueueNum => ProtocolFeatures::MQ,
            R::GetConfig(_) | R::SetConfig(_) => ProtocolFeatures::CONFIG,
            R::GetMaxMemSlots | R::AddMemReg { .. } | R::RemMemReg(_) => {
                ProtocolFeatures::CONFIGURE_MEM_SLOTS
            }
            R::SetBackendReqFd(_) => ProtocolFeatures::BACKEND_REQ,
            R::GetStatus | R::SetStatus(_) => ProtocolFeatures::STATUS,
            R::ResetDevice => ProtocolFeatures::RESET_DEVICE,
            _ => return Ok(()),
        };
        if self.protocol.contains(needed) {
            return Ok(());
        }
        Err(refused(request.name())(format!("the protocol feature {needed:?} was not negotiated")))
    }

    pub(super) fn offered(&self) -> u64 {
        self.control.features | virtio_features::PROTOCOL_FEATURES
    }

    pub(super) fn offered_protocol(&self) -> ProtocolFeatures {
        if self.offers_xen { OFFERED.union(ProtocolFeatures::XEN_MMAP) } else { OFFERED }
    }

    pub(super) fn publish(&self) {
        self.control
            .set_negotiated(self.features & !virtio_features::PROTOCOL_FEATURES, self.protocol.bits());
    }

    pub(super) fn region_format(&self) -> RegionFormat {
        if self.protocol.contains(ProtocolFeatures::XEN_MMAP) {
            RegionFormat::Xen
        } else {
            RegionFormat::Plain
        }
    }

    /// What GET_CONFIG reads: bytes beyond the device's space are zero, as QEMU asks for the whole structure
    /// that it knows.
    pub(super) fn config(&self, wanted: ConfigSpace) -> ConfigSpace {
        let space = self.control.config();
        let mut data = wanted.data;
        data.truncate(MAX_CONFIG);
        data.fill(0);
        let from = space.get(wanted.offset as usize..).unwrap_or_default();
        let len = from.len().min(data.len());
        data[..len].copy_from_slice(&from[..len]);
        ConfigSpace { data, ..wanted }
    }
}

/// Only bits that were offered may be taken.
pub(super) fn allowed(
    request: RequestName,
    what: &'static str,
    bits: u64,
    offered: u64,
) -> Result<(), BackendError> {
    if bits & !offered == 0 {
        return Ok(());
    }
    Err(wrong(
        request,
        what,
        bits,
        format!("bits out of {offered:#x}; {:#x} was not offered", bits & !offered),
    ))
}
