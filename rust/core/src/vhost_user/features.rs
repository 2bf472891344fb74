//! Feature bits, status bits and flags, as numbers that both sides share.

use bitflags::bitflags;

/// Virtio-level feature bits that vhost-user itself speaks of. The rest belongs to the devices.
pub mod virtio_features {
    /// The backend logs its writes to guest memory (bit 26).
    pub const LOG_ALL: u64 = 1 << 26;
    /// NOTIFY_ON_EMPTY of legacy virtio (bit 24).
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    /// Indirect descriptors (bit 28; virtio 1.3, 2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event` (bit 29; virtio 1.3, 2.7.10).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The backend has protocol features (bit 30). Never shown to a driver.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Compliant with virtio 1.0 and later (bit 32).
    pub const VERSION_1: u64 = 1 << 32;
    /// The device's accesses go through an IOMMU or grants (bit 33).
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed rings (bit 34).
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order in which they were made available (bit 35).
    pub const IN_ORDER: u64 = 1 << 35;
    /// A queue can be reset by itself (bit 40).
    pub const RING_RESET: u64 = 1 << 40;
}

bitflags! {
    /// vhost-user protocol features. A bit that is not here is neither offered nor acked by us; a set of
    /// bits from the peer may hold unknown ones (`from_bits_retain`), which `& ProtocolFeatures::all()` takes off.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ProtocolFeatures: u64 {
        /// GET_QUEUE_NUM may be asked.
        const MQ = 1 << 0;
        /// The dirty log is a shared file.
        const LOG_SHMFD = 1 << 1;
        /// SEND_RARP.
        const RARP = 1 << 2;
        /// A request with NEED_REPLY is answered.
        const REPLY_ACK = 1 << 3;
        /// NET_SET_MTU.
        const MTU = 1 << 4;
        /// The reverse channel, SET_BACKEND_REQ_FD.
        const BACKEND_REQ = 1 << 5;
        /// SET_VRING_ENDIAN.
        const CROSS_ENDIAN = 1 << 6;
        /// CREATE_CRYPTO_SESSION and CLOSE_CRYPTO_SESSION.
        const CRYPTO_SESSION = 1 << 7;
        /// Postcopy migration.
        const PAGEFAULT = 1 << 8;
        /// GET_CONFIG and SET_CONFIG.
        const CONFIG = 1 << 9;
        /// Requests of the backend may carry file descriptors.
        const BACKEND_SEND_FD = 1 << 10;
        /// BACKEND_VRING_HOST_NOTIFIER_MSG.
        const HOST_NOTIFIER = 1 << 11;
        /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
        const INFLIGHT_SHMFD = 1 << 12;
        /// RESET_DEVICE.
        const RESET_DEVICE = 1 << 13;
        /// VRING_KICK, BACKEND_VRING_CALL and BACKEND_VRING_ERR instead of eventfds.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// GET_MAX_MEM_SLOTS, ADD_MEM_REG and REM_MEM_REG.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// GET_STATUS and SET_STATUS.
        const STATUS = 1 << 16;
        /// Memory regions are 40 bytes long and say how Xen maps them.
        const XEN_MMAP = 1 << 17;
        /// GET_SHARED_OBJECT and the requests of the backend that belong to it.
        const SHARED_OBJECT = 1 << 18;
        /// SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
        const DEVICE_STATE = 1 << 19;
        /// GET_VRING_BASE records what is in flight instead of waiting for it.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// Ring and user addresses are guest physical.
        const GPA_ADDRESSES = 1 << 21;
        /// GET_SHMEM_CONFIG, BACKEND_SHMEM_MAP and BACKEND_SHMEM_UNMAP. (vhost 0.16 of rust-vmm meant bit 21
        /// by it, one more reason never to ack a bit because the peer offers it.)
        const SHMEM_MAP = 1 << 22;
    }
}

bitflags! {
    /// Flags of SET_VRING_ADDR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VringFlags: u32 {
        /// Writes to the used ring are logged.
        const LOG = 1 << 0;
    }
}

bitflags! {
    /// The device status of virtio 1.3, 2.1, as SET_STATUS and GET_STATUS carry it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Status: u8 {
        /// The driver has seen the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// The features are settled.
        const FEATURES_OK = 8;
        /// The device has failed and wants a reset.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}
