//! The registers of a device as bytes, for whoever answers its driver next.
//!
//! The driver writes most of them and reads few back, so that another process can only go on with a device if the one before has
//! put them down.

use bytemuck::{Pod, Zeroable};

use super::{DeviceStatus, Identity, QueueSetup};
use crate::vhost_user::virtio_features;

/// Changes with the layout of the bytes.
const MAGIC: [u8; 8] = *b"xenvirt1";

/// What a driver has made of the registers of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRegisters {
    /// The virtio device id.
    pub device_id: u32,
    /// The device status.
    pub status: DeviceStatus,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// What the driver wrote to DriverFeatures.
    pub driver_features: u64,
    /// The driver wants feature bits above 63.
    pub wants_more: bool,
    /// QueueSel.
    pub queue_sel: u32,
    /// What was said of each queue.
    pub queues: Vec<QueueSetup>,
}

/// Why a device cannot go on with the registers of another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// They are not ours, or cut off.
    #[error("{0} bytes that are no saved registers")]
    NoRegisters(usize),
    /// Another kind of device.
    #[error("the driver has a device of id {before}, and this is one of id {now}")]
    DeviceId {
        /// Of the saved registers.
        before: u32,
        /// Of the device.
        now: u32,
    },
    /// The driver uses what is not offered any more, or does not use what is needed.
    #[error("the driver uses features {features:#x}: {unknown:#x} are not offered, {missing:#x} are needed")]
    Features {
        /// What the driver uses.
        features: u64,
        /// Of those, the ones that the device does not offer.
        unknown: u64,
        /// What the device needs and the driver does not use.
        missing: u64,
    },
    /// The driver uses a queue that is not there, or a larger one than there is.
    #[error("the driver uses queue {index} of {size} descriptors: {max} can be")]
    Queue {
        /// The queue.
        index: usize,
        /// Descriptors of its ring.
        size: u16,
        /// Its largest size; 0 where the device has no such queue.
        max: u16,
    },
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
struct Header {
    magic: [u8; 8],
    driver_features: u64,
    device_id: u32,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    wants_more: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
struct Queue {
    descriptors: u64,
    available: u64,
    used: u64,
    size: u16,
    ready: u16,
    padding: u32,
}

impl SavedRegisters {
    /// As bytes, of this machine's order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            driver_features: self.driver_features,
            device_id: self.device_id,
            status: self.status.bits(),
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            wants_more: self.wants_more.into(),
        };
        let mut bytes = bytemuck::bytes_of(&header).to_vec();
        for &QueueSetup { size, descriptors, available, used, ready } in &self.queues {
            let queue = Queue { descriptors, available, used, size, ready: ready.into(), padding: 0 };
            bytes.extend_from_slice(bytemuck::bytes_of(&queue));
        }
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`RestoreError::NoRegisters`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RestoreError> {
        let none = RestoreError::NoRegisters(bytes.len());
        let Some((header, rest)) = bytes.split_at_checked(size_of::<Header>()) else { return Err(none) };
        let header: Header = bytemuck::pod_read_unaligned(header);
        let (queues, cut_off) = rest.as_chunks::<{ size_of::<Queue>() }>();
        if header.magic != MAGIC || !cut_off.is_empty() {
            return Err(none);
        }
        let queue = |bytes: &[u8; size_of::<Queue>()]| {
            let Queue { descriptors, available, used, size, ready, .. } = bytemuck::pod_read_unaligned(bytes);
            QueueSetup { size, descriptors, available, used, ready: ready != 0 }
        };
        Ok(Self {
            device_id: header.device_id,
            status: DeviceStatus::from_bits_truncate(header.status),
            device_features_sel: header.device_features_sel,
            driver_features_sel: header.driver_features_sel,
            driver_features: header.driver_features,
            wants_more: header.wants_more != 0,
            queue_sel: header.queue_sel,
            queues: queues.iter().map(queue).collect(),
        })
    }

    /// Can a device go on with these?
    pub(super) fn check(&self, identity: &Identity) -> Result<(), RestoreError> {
        if self.device_id != identity.device_id {
            return Err(RestoreError::DeviceId { before: self.device_id, now: identity.device_id });
        }
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            let features = self.driver_features;
            let unknown = features & !identity.features;
            let missing = (identity.required | virtio_features::VERSION_1) & !features;
            if unknown != 0 || missing != 0 {
                return Err(RestoreError::Features { features, unknown, missing });
            }
        }
        for (index, queue) in self.queues.iter().enumerate() {
            let (size, max) = (queue.size, identity.queue_sizes.get(index).copied().unwrap_or(0));
            let valid = size == 0 || size.is_power_of_two() && size <= max;
            // Of one that was never set up only the largest size stands there.
            if queue.ready && !(valid && size != 0) {
                return Err(RestoreError::Queue { index, size, max });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::MmioDevice, *};

    fn identity() -> Identity {
        Identity {
            device_id: 2,
            features: virtio_features::VERSION_1 | 0x60,
            required: 0,
            queue_sizes: vec![256, 64],
        }
    }

    fn saved() -> SavedRegisters {
        let status = DeviceStatus::ACKNOWLEDGE
            | DeviceStatus::DRIVER
            | DeviceStatus::FEATURES_OK
            | DeviceStatus::DRIVER_OK;
        let used =
            QueueSetup { size: 128, descriptors: 0x1000, available: 0x2000, used: 1 << 63, ready: true };
        SavedRegisters {
            device_id: 2,
            status,
            device_features_sel: 1,
            driver_features_sel: 1,
            driver_features: virtio_features::VERSION_1 | 0x20,
            wants_more: false,
            queue_sel: 1,
            queues: vec![used, QueueSetup::new(64)],
        }
    }

    #[test]
    fn a_restored_device_is_as_the_one_that_was_saved() {
        let bytes = saved().to_bytes();
        let read = SavedRegisters::from_bytes(&bytes).unwrap();
        assert_eq!(read, saved());
        let device = MmioDevice::restore(identity(), &read).unwrap();
        assert_eq!(device.saved(), saved());
        assert_eq!(device.negotiated(), saved().driver_features);
    }

    #[test]
    fn bytes_of_somebody_else_are_refused() {
        let bytes = saved().to_bytes();
        for wrong in
            [&bytes[..bytes.len() - 1], &bytes[..10], &[], b"xenvirt0 and forty-one bytes of anything"]
        {
            assert_eq!(SavedRegisters::from_bytes(wrong), Err(RestoreError::NoRegisters(wrong.len())));
        }
    }

    #[test]
    fn a_device_that_the_driver_did_not_have_is_refused() {
        let restored = |identity| MmioDevice::restore(identity, &saved()).map(drop);
        assert_eq!(
            restored(Identity { device_id: 4, ..identity() }),
            Err(RestoreError::DeviceId { before: 2, now: 4 })
        );
        let (features, needed) = (saved().driver_features, 1 << 33);
        let less = Identity { features: virtio_features::VERSION_1 | needed, required: needed, ..identity() };
        assert_eq!(restored(less), Err(RestoreError::Features { features, unknown: 0x20, missing: needed }));
        for (queue_sizes, max) in [(vec![64], 64), (vec![], 0)] {
            let refused = restored(Identity { queue_sizes, ..identity() });
            assert_eq!(refused, Err(RestoreError::Queue { index: 0, size: 128, max }));
        }
        assert_eq!(restored(Identity { queue_sizes: vec![128], ..identity() }), Ok(()));
    }

    #[test]
    fn what_a_driver_writes_is_to_be_saved_and_kicks_are_not() {
        let mut device = MmioDevice::new(identity());
        assert!(!device.take_changed());
        for (offset, changes) in [(0x50, false), (0x64, false), (0x30, true), (0x70, true), (0x80, true)] {
            device.write(offset, 4, 1);
            assert_eq!(device.take_changed(), changes, "{offset:#x}");
        }
    }
}
