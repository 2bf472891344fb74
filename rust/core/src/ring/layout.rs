//! Where the fields of a split ring are (virtio 1.3, 2.7): offsets and sizes in bytes.

use virtio_bindings::bindings::virtio_ring;

/// The buffer goes on in the descriptor `next`.
pub(super) const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
/// The device writes to the buffer.
pub(super) const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
/// In the flags of the available ring: no used buffer notification, please.
pub(super) const NO_INTERRUPT: u16 = virtio_ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
/// In the flags of the used ring: no available buffer notification, please.
pub(super) const NO_NOTIFY: u16 = virtio_ring::VRING_USED_F_NO_NOTIFY as u16;

/// The largest ring.
pub const MAX_QUEUE_SIZE: u16 = 32768;

pub(super) const DESCRIPTOR: usize = 16;
pub(super) const AVAILABLE_INDEX: usize = 2;
pub(super) const AVAILABLE_RING: usize = 4;
pub(super) const AVAILABLE_ENTRY: usize = 2;
pub(super) const USED_INDEX: usize = 2;
pub(super) const USED_RING: usize = 4;
pub(super) const USED_ENTRY: usize = 8;

pub(super) const DESCRIPTOR_ALIGN: u64 = 16;
pub(super) const AVAILABLE_ALIGN: u64 = 2;
pub(super) const USED_ALIGN: u64 = 4;

/// Bytes of the descriptor table.
pub(super) fn descriptors_len(size: u16) -> usize {
    DESCRIPTOR * usize::from(size)
}

/// Bytes of the available ring; the event word is there with EVENT_IDX only.
pub(super) fn available_len(size: u16, event_idx: bool) -> usize {
    used_event(size) + if event_idx { 2 } else { 0 }
}

/// Bytes of the used ring; the event word is there with EVENT_IDX only.
pub(super) fn used_len(size: u16, event_idx: bool) -> usize {
    available_event(size) + if event_idx { 2 } else { 0 }
}

/// Offset in the available ring of the driver's event word.
#[inline(always)]
pub(super) fn used_event(size: u16) -> usize {
    AVAILABLE_RING + AVAILABLE_ENTRY * usize::from(size)
}

/// Offset in the used ring of the device's event word.
#[inline(always)]
pub(super) fn available_event(size: u16) -> usize {
    USED_RING + USED_ENTRY * usize::from(size)
}

/// 2.7.10: has an index that moved from `old` to `new` passed the event word?
#[inline(always)]
pub(super) fn passed_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
