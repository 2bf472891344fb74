//! Where the control registers are (virtio 1.3, section 4.2.2).

use virtio_bindings::virtio_mmio as offsets;

/// Offset of QueueReset, which virtio-bindings does not have.
const QUEUE_RESET: u32 = 0xc0;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:expr,)*) => {
        /// A control register.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Register {
            $($(#[$doc])* $name,)*
        }

        impl Register {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Where it is, in bytes from the start of the device's region.
            pub fn offset(self) -> u64 {
                match self {
                    $(Self::$name => ($offset) as u64,)*
                }
            }

            /// The register at this offset, if there is one.
            pub fn at(offset: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|register| register.offset() == offset)
            }
        }
    };
}

registers! {
    /// Reads as "virt".
    MagicValue = offsets::VIRTIO_MMIO_MAGIC_VALUE,
    /// Reads as 2.
    Version = offsets::VIRTIO_MMIO_VERSION,
    /// What kind of device this is; 0 for a slot without one.
    DeviceId = offsets::VIRTIO_MMIO_DEVICE_ID,
    /// Who made it.
    VendorId = offsets::VIRTIO_MMIO_VENDOR_ID,
    /// The selected 32 feature bits of the device.
    DeviceFeatures = offsets::VIRTIO_MMIO_DEVICE_FEATURES,
    /// Which they are.
    DeviceFeaturesSel = offsets::VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    /// The selected 32 feature bits of the driver.
    DriverFeatures = offsets::VIRTIO_MMIO_DRIVER_FEATURES,
    /// Which they are.
    DriverFeaturesSel = offsets::VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    /// Which queue the other queue registers are about.
    QueueSel = offsets::VIRTIO_MMIO_QUEUE_SEL,
    /// The largest size of it; 0 if there is none.
    QueueNumMax = offsets::VIRTIO_MMIO_QUEUE_NUM_MAX,
    /// The size that the driver uses.
    QueueNum = offsets::VIRTIO_MMIO_QUEUE_NUM,
    /// 1 while the queue may be used.
    QueueReady = offsets::VIRTIO_MMIO_QUEUE_READY,
    /// A kick: the number of the queue is written.
    QueueNotify = offsets::VIRTIO_MMIO_QUEUE_NOTIFY,
    /// Why the device interrupts.
    InterruptStatus = offsets::VIRTIO_MMIO_INTERRUPT_STATUS,
    /// Takes reasons back.
    InterruptAck = offsets::VIRTIO_MMIO_INTERRUPT_ACK,
    /// The device status; 0 resets.
    Status = offsets::VIRTIO_MMIO_STATUS,
    /// The descriptor table, low half of its address.
    QueueDescLow = offsets::VIRTIO_MMIO_QUEUE_DESC_LOW,
    /// The high half.
    QueueDescHigh = offsets::VIRTIO_MMIO_QUEUE_DESC_HIGH,
    /// The available ring, low half of its address.
    QueueDriverLow = offsets::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    /// The high half.
    QueueDriverHigh = offsets::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    /// The used ring, low half of its address.
    QueueDeviceLow = offsets::VIRTIO_MMIO_QUEUE_USED_LOW,
    /// The high half.
    QueueDeviceHigh = offsets::VIRTIO_MMIO_QUEUE_USED_HIGH,
    /// Which shared memory region the next four are about.
    ShmSel = offsets::VIRTIO_MMIO_SHM_SEL,
    /// Its length, low half: all ones where there is none, as with us.
    ShmLenLow = offsets::VIRTIO_MMIO_SHM_LEN_LOW,
    /// The high half.
    ShmLenHigh = offsets::VIRTIO_MMIO_SHM_LEN_HIGH,
    /// Its base, low half: all ones where there is none.
    ShmBaseLow = offsets::VIRTIO_MMIO_SHM_BASE_LOW,
    /// The high half.
    ShmBaseHigh = offsets::VIRTIO_MMIO_SHM_BASE_HIGH,
    /// 1 resets the selected queue.
    QueueReset = QUEUE_RESET,
    /// Changes with the config space.
    ConfigGeneration = offsets::VIRTIO_MMIO_CONFIG_GENERATION,
}
