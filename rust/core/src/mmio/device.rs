//! The registers of one device.

use std::{mem, sync::Arc};

use super::{
    CONFIG_OFFSET, DeviceStatus, InterruptStatus, REGION_LEN, Register,
    queue::{QueueRegisters, QueueSetup, set_half},
    saved::{RestoreError, SavedRegisters},
};
use crate::vhost_user::virtio_features;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Nobody gives these numbers out; a driver has no use for it.
const VENDOR: u32 = u32::from_le_bytes(*b"xenv");
/// VIRTIO_F_NOTIFICATION_DATA: a kick carries more than the number of the queue.
const NOTIFICATION_DATA: u64 = 1 << 38;
/// What a register of a shared memory region reads as where there is none (virtio 1.3, section 4.2.2.1).
const NO_REGION: u32 = u32::MAX;

/// What a device is, before any driver.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The virtio device id (virtio 1.3, section 5); 0 says that there is none in this slot.
    pub device_id: u32,
    /// All features that are offered.
    pub features: u64,
    /// Those of them that a driver must take: without them it would misunderstand the device.
    pub required: u64,
    /// The largest size of each queue, in descriptors.
    pub queue_sizes: Vec<u16>,
}

/// The config space of a device, of which the registers have no copy.
pub trait ConfigSpace {
    /// Changes whenever the device changed it.
    fn generation(&self) -> u32;
    /// The bytes from `offset` on, all of the same generation. What lies behind the end stays as it is.
    fn read(&self, offset: u64, bytes: &mut [u8]);
}

/// What a write asks for, beyond the registers. It is carried out before the driver goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The driver is ready: queues that are set up begin to run.
    Start,
    /// A queue was set up while the driver is ready: it begins to run.
    StartQueue(u16),
    /// A queue is to run no more: all that was taken from it is stale.
    StopQueue(u16),
    /// The driver kicked a queue that may run.
    Kick(u16),
    /// The driver wrote to the config space.
    WriteConfig {
        /// In bytes, from the start of the config space.
        offset: u32,
        /// What was written.
        data: Vec<u8>,
    },
    /// The device is reset.
    Reset,
    /// The driver does not take what the device needs, or more than it offers: FEATURES_OK stays unset.
    FeaturesRefused {
        /// What the driver wants and the device does not offer.
        unknown: u64,
        /// What the device needs and the driver does not take.
        missing: u64,
    },
    /// The driver has given up.
    GaveUp,
}

/// The registers of one virtio-mmio device. See the [module](super).
#[derive(Debug)]
pub struct MmioDevice {
    identity: Identity,
    queues: Vec<QueueRegisters>,
    status: DeviceStatus,
    interrupt: Arc<InterruptStatus>,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver wants feature bits above 63.
    wants_more: bool,
    queue_sel: u32,
    bad_accesses: u64,
    /// Something of [`MmioDevice::saved`] was written since [`MmioDevice::take_changed`].
    changed: bool,
}

impl MmioDevice {
    /// A device that no driver has touched.
    pub fn new(identity: Identity) -> Self {
        Self {
            queues: identity.queue_sizes.iter().map(|&size| QueueRegisters::new(size)).collect(),
            identity,
            status: DeviceStatus::empty(),
            interrupt: Arc::default(),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            wants_more: false,
            queue_sel: 0,
            bad_accesses: 0,
            changed: false,
        }
    }

    /// A slot without a device: a driver that finds DeviceID 0 leaves it alone (virtio 1.3, section 4.2.3.1.1), while one that
    /// nobody answers may bring the guest down.
    pub fn empty_slot() -> Self {
        Self::new(Identity { device_id: 0, features: 0, required: 0, queue_sizes: Vec::new() })
    }

    /// As another that was [saved](Self::saved), in the middle of whatever its driver was doing.
    ///
    /// # Errors
    /// It was another device, or one that offered more: its driver cannot be served.
    pub fn restore(identity: Identity, saved: &SavedRegisters) -> Result<Self, RestoreError> {
        saved.check(&identity)?;
        let mut device = Self::new(identity);
        device.status = saved.status;
        device.device_features_sel = saved.device_features_sel;
        device.driver_features_sel = saved.driver_features_sel;
        device.driver_features = saved.driver_features;
        device.wants_more = saved.wants_more;
        device.queue_sel = saved.queue_sel;
        for (queue, setup) in device.queues.iter_mut().zip(&saved.queues) {
            // Of one that is not set up the size may be more than is allowed now; then it is as after a reset.
            if setup.ready || setup.size <= queue.max_size {
                queue.setup = *setup;
            }
        }
        Ok(device)
    }

    /// What its driver has made of it. Why the device interrupts is not among it: whoever restores it interrupts anew.
    pub fn saved(&self) -> SavedRegisters {
        SavedRegisters {
            device_id: self.identity.device_id,
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            wants_more: self.wants_more,
            queue_sel: self.queue_sel,
            queues: self.queues.iter().map(|queue| queue.setup).collect(),
        }
    }

    /// Was something of [`saved`](Self::saved) written since this was asked?
    pub fn take_changed(&mut self) -> bool {
        mem::take(&mut self.changed)
    }

    /// The device status.
    pub fn status(&self) -> DeviceStatus {
        self.status
    }

    /// The features that were agreed on: 0 before FEATURES_OK.
    pub fn negotiated(&self) -> u64 {
        if self.status.contains(DeviceStatus::FEATURES_OK) { self.driver_features } else { 0 }
    }

    /// The reasons to interrupt.
    pub fn interrupt(&self) -> &Arc<InterruptStatus> {
        &self.interrupt
    }

    /// What was said of a queue.
    pub fn queue(&self, index: u16) -> Option<&QueueSetup> {
        self.queues.get(usize::from(index)).map(|queue| &queue.setup)
    }

    /// Accesses of a size or at an offset that no driver may use.
    pub fn bad_accesses(&self) -> u64 {
        self.bad_accesses
    }

    /// The device cannot go on before it is reset (virtio 1.3, section 2.1.2). True if the driver is to be interrupted for it.
    pub fn fail(&mut self) -> bool {
        self.status |= DeviceStatus::NEEDS_RESET;
        self.changed = true;
        self.config_changed()
    }

    /// The config space has changed. True if the driver is to be interrupted for it: before DRIVER_OK it must not be.
    pub fn config_changed(&self) -> bool {
        let running = self.status.contains(DeviceStatus::DRIVER_OK);
        if running {
            self.interrupt.add_config_change();
        }
        running
    }

    /// The value of a read of `size` bytes at an offset in the region.
    pub fn read(&mut self, offset: u64, size: u8, config: &dyn ConfigSpace) -> u64 {
        if self.is_config(offset, size) {
            let mut bytes = [0u8; 8];
            if let Some(bytes) = bytes.get_mut(..usize::from(size)) {
                config.read(offset - CONFIG_OFFSET, bytes);
            }
            return u64::from_le_bytes(bytes);
        }
        match self.register(offset, size) {
            Some(register) => self.read_register(register, config).into(),
            None => 0,
        }
    }

    /// A write of `size` bytes at an offset in the region.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Option<Action> {
        if self.is_config(offset, size) {
            let data = value.to_le_bytes().get(..usize::from(size))?.to_vec();
            let offset = u32::try_from(offset - CONFIG_OFFSET).ok()?;
            return (self.identity.device_id != 0).then_some(Action::WriteConfig { offset, data });
        }
        let register = self.register(offset, size)?;
        // A register has 32 bits.
        self.write_register(register, value as u32)
    }

    /// The config space takes any size: a device may have fields of 8, 16, 32 and 64 bits.
    fn is_config(&self, offset: u64, size: u8) -> bool {
        let end = offset.checked_add(u64::from(size));
        offset >= CONFIG_OFFSET && (1..=8).contains(&size) && end.is_some_and(|end| end <= REGION_LEN)
    }

    fn register(&mut self, offset: u64, size: u8) -> Option<Register> {
        let register = if size == 4 { Register::at(offset) } else { None };
        if register.is_none() {
            self.bad_accesses += 1;
        }
        // An empty slot has no more than what identifies it.
        register.filter(|register| {
            let identifies =
                [Register::MagicValue, Register::Version, Register::DeviceId, Register::VendorId];
            self.identity.device_id != 0 || identifies.contains(register)
        })
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn read_register(&self, register: Register, config: &dyn ConfigSpace) -> u32 {
        use Register as R;
        match register {
            R::MagicValue => MAGIC,
            R::Version => VERSION,
            R::DeviceId => self.identity.device_id,
            R::VendorId => VENDOR,
            R::DeviceFeatures => word(self.identity.features, self.device_features_sel),
            R::QueueNumMax => self.selected().map_or(0, |queue| queue.max_size.into()),
            R::QueueReady => self.selected().is_some_and(|queue| queue.setup.ready).into(),
            R::InterruptStatus => self.interrupt.value(),
            R::Status => self.status.bits(),
            R::ConfigGeneration => config.generation(),
            R::ShmLenLow | R::ShmLenHigh | R::ShmBaseLow | R::ShmBaseHigh => NO_REGION,
            // A queue's reset is over before the write that asks for it is.
            R::QueueReset => 0,
            // These are only written.
            R::DeviceFeaturesSel
            | R::DriverFeatures
            | R::DriverFeaturesSel
            | R::QueueSel
            | R::QueueNum
            | R::QueueNotify
            | R::InterruptAck
            | R::QueueDescLow
            | R::QueueDescHigh
            | R::QueueDriverLow
            | R::QueueDriverHigh
            | R::QueueDeviceLow
            | R::QueueDeviceHigh
            | R::ShmSel => 0,
        }
    }

    fn write_register(&mut self, register: Register, value: u32) -> Option<Action> {
        use Register as R;
        self.changed |= !matches!(register, R::QueueNotify | R::InterruptAck);
        match register {
            R::DeviceFeaturesSel => self.device_features_sel = value,
            R::DriverFeaturesSel => self.driver_features_sel = value,
            R::DriverFeatures => self.set_driver_features(value),
            R::QueueSel => self.queue_sel = value,
            R::QueueNum => self.set_up(|queue| queue.set_size(value)),
            R::QueueDescLow | R::QueueDescHigh => {
                self.set_up(|queue| {
                    set_half(&mut queue.setup.descriptors, register == R::QueueDescHigh, value)
                });
            }
            R::QueueDriverLow | R::QueueDriverHigh => {
                self.set_up(|queue| {
                    set_half(&mut queue.setup.available, register == R::QueueDriverHigh, value)
                });
            }
            R::QueueDeviceLow | R::QueueDeviceHigh => {
                self.set_up(|queue| set_half(&mut queue.setup.used, register == R::QueueDeviceHigh, value));
            }
            R::QueueReady => return self.set_ready(value),
            R::QueueReset => return self.reset_queue(value),
            R::QueueNotify => return self.kick(value),
            R::InterruptAck => self.interrupt.acknowledge(value),
            R::Status => return self.set_status(value),
            // These are only read; and there is no shared memory to select.
            R::MagicValue
            | R::Version
            | R::DeviceId
            | R::VendorId
            | R::DeviceFeatures
            | R::QueueNumMax
            | R::InterruptStatus
            | R::ConfigGeneration
            | R::ShmSel
            | R::ShmLenLow
            | R::ShmLenHigh
            | R::ShmBaseLow
            | R::ShmBaseHigh => {}
        }
        None
    }

    /// After FEATURES_OK no feature is taken any more (virtio 1.3, section 3.1.1).
    fn set_driver_features(&mut self, value: u32) {
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            return;
        }
        match self.driver_features_sel {
            0 | 1 => set_half(&mut self.driver_features, self.driver_features_sel == 1, value),
            _ => self.wants_more |= value != 0,
        }
    }

    /// A queue is set up while it is not ready (virtio 1.3, section 4.2.2.2).
    fn set_up(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        let selected = usize::try_from(self.queue_sel).ok().and_then(|index| self.queues.get_mut(index));
        if let Some(queue) = selected.filter(|queue| !queue.setup.ready) {
            change(queue);
        }
    }

    fn selected_index(&self) -> Option<u16> {
        self.selected()?;
        u16::try_from(self.queue_sel).ok()
    }

    fn set_ready(&mut self, value: u32) -> Option<Action> {
        let index = self.selected_index()?;
        let running = self.status.contains(DeviceStatus::DRIVER_OK);
        let setup = &mut self.queues.get_mut(usize::from(index))?.setup;
        let was_ready = mem::replace(&mut setup.ready, value == 1 && setup.size != 0);
        match (was_ready, setup.ready) {
            (false, true) if running => Some(Action::StartQueue(index)),
            (true, false) if running => Some(Action::StopQueue(index)),
            _ => None,
        }
    }

    fn reset_queue(&mut self, value: u32) -> Option<Action> {
        if value != 1 || self.negotiated() & virtio_features::RING_RESET == 0 {
            return None;
        }
        let index = self.selected_index()?;
        let running = self.status.contains(DeviceStatus::DRIVER_OK);
        let queue = self.queues.get_mut(usize::from(index))?;
        let was_ready = queue.setup.ready;
        queue.reset();
        (was_ready && running).then_some(Action::StopQueue(index))
    }

    fn kick(&self, value: u32) -> Option<Action> {
        let number = if self.negotiated() & NOTIFICATION_DATA != 0 { value & 0xffff } else { value };
        let index = u16::try_from(number).ok()?;
        let ready = self.queue(index)?.ready;
        (ready && self.status.contains(DeviceStatus::DRIVER_OK)).then_some(Action::Kick(index))
    }

    /// Bits are added, one step after the other; only a reset takes one away (virtio 1.3, section 2.1.1).
    fn set_status(&mut self, value: u32) -> Option<Action> {
        if value == 0 {
            self.reset();
            return Some(Action::Reset);
        }
        let mut added = DeviceStatus::from_bits_truncate(value) - self.status - DeviceStatus::NEEDS_RESET;
        let mut action = None;
        if added.contains(DeviceStatus::FEATURES_OK)
            && let Some(refused) = self.refused_features()
        {
            added -= DeviceStatus::FEATURES_OK;
            action = Some(refused);
        }
        if !(self.status | added).contains(DeviceStatus::FEATURES_OK) {
            added -= DeviceStatus::DRIVER_OK;
        }
        self.status |= added;
        if added.contains(DeviceStatus::FAILED) {
            return Some(Action::GaveUp);
        }
        if added.contains(DeviceStatus::DRIVER_OK) {
            return Some(Action::Start);
        }
        action
    }

    /// None if FEATURES_OK may be set. A driver without VERSION_1 is a legacy one, of another layout.
    fn refused_features(&self) -> Option<Action> {
        let unknown = self.driver_features & !self.identity.features;
        let required = self.identity.required | virtio_features::VERSION_1;
        let missing = required & !self.driver_features;
        let refused = unknown != 0 || missing != 0 || self.wants_more;
        refused.then_some(Action::FeaturesRefused { unknown, missing })
    }

    fn reset(&mut self) {
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.interrupt.clear();
        self.status = DeviceStatus::empty();
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
        (self.driver_features, self.wants_more) = (0, false);
    }
}

/// The 32 feature bits that are selected; there are none beyond the first two words.
fn word(features: u64, selected: u32) -> u32 {
    match selected {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
