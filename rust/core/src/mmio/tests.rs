//! The rules of virtio 1.3, section 4.2, and of section 2.1 as far as registers show them. Each test names its section.

use super::*;
use crate::vhost_user::virtio_features::{ACCESS_PLATFORM, EVENT_IDX, RING_RESET, VERSION_1};

struct Config {
    generation: u32,
    bytes: Vec<u8>,
}

impl ConfigSpace for Config {
    fn generation(&self) -> u32 {
        self.generation
    }
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(bytes) {
            *byte = self.bytes.get(at).copied().unwrap_or(*byte);
        }
    }
}

struct Driver {
    device: MmioDevice,
    config: Config,
}

const OFFERED: u64 = VERSION_1 | EVENT_IDX | RING_RESET | 1;
const READY: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER);
const AGREED: DeviceStatus = READY.union(DeviceStatus::FEATURES_OK);
const RUNNING: DeviceStatus = AGREED.union(DeviceStatus::DRIVER_OK);

impl Driver {
    fn of(required: u64) -> Self {
        let features = OFFERED | required;
        let identity = Identity { device_id: 4, features, required, queue_sizes: vec![64, 256] };
        let config = Config { generation: 7, bytes: (1..=12).collect() };
        Self { device: MmioDevice::new(identity), config }
    }
    fn new() -> Self {
        Self::of(0)
    }
    fn read(&mut self, register: Register) -> u32 {
        self.device.read(register.offset(), 4, &self.config) as u32
    }
    fn write(&mut self, register: Register, value: u32) -> Option<Action> {
        self.device.write(register.offset(), 4, value.into())
    }
    fn take(&mut self, features: u64) {
        for word in [1, 0] {
            self.write(Register::DriverFeaturesSel, word);
            self.write(Register::DriverFeatures, (features >> (32 * word)) as u32);
        }
    }
    fn status(&mut self, status: DeviceStatus) -> Option<Action> {
        self.write(Register::Status, status.bits())
    }
    fn set_up(&mut self, queue: u32, size: u32) -> Option<Action> {
        self.write(Register::QueueSel, queue);
        self.write(Register::QueueNum, size);
        self.write(Register::QueueDescLow, 0x1000);
        self.write(Register::QueueDriverLow, 0x2000);
        self.write(Register::QueueDeviceLow, 0x3000);
        self.write(Register::QueueReady, 1)
    }
    /// Goes through section 3.1.1 with one queue.
    fn start(&mut self) {
        self.status(READY);
        self.take(OFFERED);
        self.status(AGREED);
        self.set_up(0, 64);
        assert_eq!(self.status(RUNNING), Some(Action::Start));
    }
}

/// 4.2.2: MagicValue, Version, DeviceID, VendorID.
#[test]
fn identifies_itself() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(Register::MagicValue), 0x7472_6976);
    assert_eq!(driver.read(Register::Version), 2);
    assert_eq!(driver.read(Register::DeviceId), 4);
    assert_ne!(driver.read(Register::VendorId), 0);
}

/// 4.2.3.1.1: a driver ignores a device with DeviceID 0; nothing in such a slot does anything.
#[test]
fn an_empty_slot_says_device_id_0_and_nothing_else() {
    let mut driver = Driver { device: MmioDevice::empty_slot(), ..Driver::new() };
    assert_eq!(driver.read(Register::MagicValue), 0x7472_6976);
    assert_eq!(driver.read(Register::DeviceId), 0);
    for &register in Register::ALL {
        assert_eq!(driver.write(register, 1), None, "{register:?}");
        if register.offset() > Register::VendorId.offset() {
            assert_eq!(driver.read(register), 0, "{register:?}");
        }
    }
    assert_eq!(driver.device.write(CONFIG_OFFSET, 1, 1), None);
}

/// 4.2.2: DeviceFeatures shows the 32 bits that DeviceFeaturesSel selects.
#[test]
fn features_are_read_word_by_word() {
    let mut driver = Driver::new();
    for (word, bits) in [(1, (OFFERED >> 32) as u32), (0, OFFERED as u32), (2, 0), (u32::MAX, 0)] {
        driver.write(Register::DeviceFeaturesSel, word);
        assert_eq!(driver.read(Register::DeviceFeatures), bits, "word {word}");
    }
}

/// 4.2.2: the words of DriverFeatures come in any order, and each replaces what it said before.
#[test]
fn features_are_written_in_any_order() {
    for order in [[0, 1], [1, 0]] {
        let mut driver = Driver::new();
        driver.status(READY);
        for bits in [u64::MAX, OFFERED] {
            for word in order {
                driver.write(Register::DriverFeaturesSel, word);
                driver.write(Register::DriverFeatures, (bits >> (32 * word)) as u32);
            }
        }
        assert_eq!(driver.device.negotiated(), 0);
        assert_eq!(driver.status(AGREED), None);
        assert_eq!(driver.read(Register::Status), AGREED.bits());
        assert_eq!(driver.device.negotiated(), OFFERED);
    }
}

/// 2.2.2: a device does not take a feature that it does not offer; then FEATURES_OK stays unset (3.1.1, step 6).
#[test]
fn what_is_not_offered_is_refused() {
    let mut driver = Driver::new();
    driver.status(READY);
    driver.take(OFFERED | 1 << 63 | 2);
    let refused = Action::FeaturesRefused { unknown: 1 << 63 | 2, missing: 0 };
    assert_eq!(driver.status(AGREED), Some(refused));
    assert_eq!(driver.read(Register::Status), READY.bits());
    driver.take(OFFERED);
    assert_eq!(driver.status(AGREED), None);
    assert_eq!(driver.read(Register::Status), AGREED.bits());
}

/// 2.2: bits from 64 on are offered by nobody here.
#[test]
fn what_is_wanted_beyond_64_bits_is_refused() {
    let mut driver = Driver::new();
    driver.status(READY);
    driver.take(OFFERED);
    driver.write(Register::DriverFeaturesSel, 2);
    driver.write(Register::DriverFeatures, 0);
    driver.write(Register::DriverFeaturesSel, 3);
    driver.write(Register::DriverFeatures, 1);
    assert_eq!(driver.status(AGREED), Some(Action::FeaturesRefused { unknown: 0, missing: 0 }));
    assert_eq!(driver.read(Register::Status), READY.bits());
}

/// 6.2: a device may fail FEATURES_OK without VERSION_1, and without ACCESS_PLATFORM where addresses are not plain ones.
#[test]
fn what_is_needed_must_be_taken() {
    for (taken, missing) in
        [(OFFERED, ACCESS_PLATFORM), (ACCESS_PLATFORM, VERSION_1), (0, VERSION_1 | ACCESS_PLATFORM)]
    {
        let mut driver = Driver::of(ACCESS_PLATFORM);
        driver.status(READY);
        driver.take(taken);
        assert_eq!(driver.status(AGREED), Some(Action::FeaturesRefused { unknown: 0, missing }));
        assert_eq!(driver.read(Register::Status), READY.bits());
    }
}

/// 3.1.1: no new feature after FEATURES_OK.
#[test]
fn features_stay_once_they_are_agreed_on() {
    let mut driver = Driver::new();
    driver.start();
    driver.take(VERSION_1);
    assert_eq!(driver.device.negotiated(), OFFERED);
}

/// 2.1.1: a driver adds status bits; it cannot take one back, nor set what belongs to the device.
#[test]
fn status_bits_are_only_added() {
    let mut driver = Driver::new();
    driver.start();
    assert_eq!(driver.status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::NEEDS_RESET), None);
    assert_eq!(driver.write(Register::Status, 0xffff_ff00 | RUNNING.bits()), None);
    assert_eq!(driver.read(Register::Status), RUNNING.bits());
    assert_eq!(driver.status(DeviceStatus::FAILED), Some(Action::GaveUp));
    assert_eq!(driver.status(DeviceStatus::FAILED), None);
}

/// 3.1.1: DRIVER_OK comes after FEATURES_OK.
#[test]
fn there_is_no_driver_ok_without_features_ok() {
    let mut driver = Driver::new();
    assert_eq!(driver.status(READY | DeviceStatus::DRIVER_OK), None);
    assert_eq!(driver.read(Register::Status), READY.bits());
    // Both at once are refused together.
    driver.take(1 << 50 | VERSION_1);
    assert!(matches!(driver.status(RUNNING), Some(Action::FeaturesRefused { .. })));
    assert_eq!(driver.read(Register::Status), READY.bits());
}

/// 4.2.2: QueueNumMax is 0 for a queue that is not there, and nothing written to it does anything.
#[test]
fn a_queue_that_is_not_there_has_no_size() {
    let mut driver = Driver::new();
    for (index, size) in [(0, 64), (1, 256), (2, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        driver.write(Register::QueueSel, index);
        assert_eq!(driver.read(Register::QueueNumMax), size, "queue {index}");
    }
    driver.status(RUNNING);
    for index in [2, 0x1_0000, u32::MAX] {
        assert_eq!(driver.set_up(index, 64), None);
        assert_eq!(driver.read(Register::QueueReady), 0);
        assert_eq!(driver.write(Register::QueueReset, 1), None);
    }
}

/// 4.2.2.2: a driver writes no size above QueueNumMax; 2.7: a power of two. With another the queue does not get ready.
#[test]
fn a_queue_of_an_impossible_size_does_not_get_ready() {
    for size in [0, 3, 128, 0x1_0040, u32::MAX] {
        let mut driver = Driver::new();
        assert_eq!(driver.set_up(0, size), None);
        assert_eq!(driver.read(Register::QueueReady), 0, "size {size}");
    }
    let mut driver = Driver::new();
    driver.set_up(0, 16);
    assert_eq!(driver.read(Register::QueueReady), 1);
    assert_eq!(driver.device.queue(0).map(|queue| queue.size), Some(16));
}

/// 4.2.2: addresses come in halves, in any order; 4.2.2.2: none is written while the queue is ready.
#[test]
fn a_queue_is_set_up_in_halves_while_it_is_not_ready() {
    let mut driver = Driver::new();
    driver.write(Register::QueueSel, 1);
    driver.write(Register::QueueDescHigh, 0x8000_0000);
    driver.write(Register::QueueDescLow, 0x1000);
    driver.write(Register::QueueDriverLow, 0x2000);
    driver.write(Register::QueueDriverHigh, 1);
    driver.write(Register::QueueDeviceLow, 0x3000);
    driver.write(Register::QueueDeviceHigh, 2);
    driver.write(Register::QueueReady, 1);
    let setup = *driver.device.queue(1).unwrap();
    assert_eq!(setup.descriptors, 0x8000_0000_0000_1000);
    assert_eq!((setup.available, setup.used, setup.size), (0x1_0000_2000, 0x2_0000_3000, 256));
    for register in
        [Register::QueueDescLow, Register::QueueDriverHigh, Register::QueueDeviceLow, Register::QueueNum]
    {
        driver.write(register, 8);
    }
    assert_eq!(driver.device.queue(1), Some(&setup));
    assert_eq!(driver.device.queue(0).map(|queue| queue.ready), Some(false));
}

/// 2.1.2: no buffer is used before DRIVER_OK; a kick before it, or of a queue that is not ready, or not there, is none.
#[test]
fn kicks_count_once_the_driver_is_ready() {
    let mut driver = Driver::new();
    driver.set_up(0, 64);
    assert_eq!(driver.write(Register::QueueNotify, 0), None);
    driver.write(Register::Status, 0);
    driver.start();
    assert_eq!(driver.write(Register::QueueNotify, 0), Some(Action::Kick(0)));
    for value in [1, 2, 0x1_0000, u32::MAX] {
        assert_eq!(driver.write(Register::QueueNotify, value), None, "{value:#x}");
    }
}

/// 4.2.2.2: a queue may be taken away and set up again while the driver is ready.
#[test]
fn queues_start_and_stop_by_themselves_after_driver_ok() {
    let mut driver = Driver::new();
    driver.start();
    assert_eq!(driver.set_up(1, 8), Some(Action::StartQueue(1)));
    assert_eq!(driver.write(Register::QueueReady, 1), None);
    assert_eq!(driver.write(Register::QueueReady, 0), Some(Action::StopQueue(1)));
    assert_eq!(driver.read(Register::QueueReady), 0);
    assert_eq!(driver.write(Register::QueueReady, 0), None);
}

/// 2.6.1: with RING_RESET one queue is reset, and has its defaults again; the others run on.
#[test]
fn one_queue_is_reset() {
    let mut driver = Driver::new();
    driver.start();
    driver.set_up(1, 8);
    assert_eq!(driver.write(Register::QueueReset, 0), None);
    assert_eq!(driver.write(Register::QueueReset, 1), Some(Action::StopQueue(1)));
    assert_eq!((driver.read(Register::QueueReset), driver.read(Register::QueueReady)), (0, 0));
    assert_eq!(driver.device.queue(1), Some(&QueueSetup::new(256)));
    assert_eq!(driver.write(Register::QueueNotify, 0), Some(Action::Kick(0)));
    assert_eq!(driver.set_up(1, 16), Some(Action::StartQueue(1)));
}

/// 2.6.1: only where RING_RESET was agreed on.
#[test]
fn no_queue_is_reset_by_itself_without_the_feature() {
    let mut driver = Driver::new();
    driver.status(READY);
    driver.take(VERSION_1);
    driver.set_up(0, 64);
    driver.status(RUNNING);
    assert_eq!(driver.write(Register::QueueReset, 1), None);
    assert_eq!(driver.read(Register::QueueReady), 1);
}

/// 4.2.2: InterruptStatus has a bit for buffers and one for the config space; InterruptACK takes them back one by one.
#[test]
fn interrupts_have_their_reasons() {
    let mut driver = Driver::new();
    driver.start();
    assert_eq!(driver.read(Register::InterruptStatus), 0);
    driver.device.interrupt().add_used_buffer();
    assert_eq!(driver.read(Register::InterruptStatus), 1);
    assert!(driver.device.config_changed());
    assert_eq!(driver.read(Register::InterruptStatus), 3);
    driver.write(Register::InterruptAck, 1);
    assert_eq!(driver.read(Register::InterruptStatus), 2);
    driver.write(Register::InterruptAck, u32::MAX);
    assert_eq!(driver.read(Register::InterruptStatus), 0);
}

/// 2.1.2: no notification before DRIVER_OK.
#[test]
fn a_config_change_is_not_told_before_driver_ok() {
    let mut driver = Driver::new();
    driver.status(AGREED);
    assert!(!driver.device.config_changed());
    assert_eq!(driver.read(Register::InterruptStatus), 0);
}

/// 4.2.2.1: ConfigGeneration is the config space's own.
#[test]
fn the_generation_is_that_of_the_config_space() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(Register::ConfigGeneration), 7);
    driver.config.generation = 8;
    assert_eq!(driver.read(Register::ConfigGeneration), 8);
}

/// 4.2.2.2: the config space is read by fields of any size; 4.2.2: it begins at 0x100. What lies behind its end reads 0.
#[test]
fn the_config_space_is_read_and_written_in_any_size() {
    let mut driver = Driver::new();
    let mut read = |offset, size| driver.device.read(CONFIG_OFFSET + offset, size, &driver.config);
    assert_eq!(read(0, 1), 0x01);
    assert_eq!(read(2, 2), 0x0403);
    assert_eq!(read(4, 4), 0x0807_0605);
    assert_eq!(read(1, 3), 0x04_0302);
    assert_eq!(read(0, 8), 0x0807_0605_0403_0201);
    assert_eq!(read(10, 4), 0x0c0b);
    assert_eq!(read(0xff, 1), 0);
    assert_eq!(driver.device.bad_accesses(), 0);
    let written = driver.device.write(CONFIG_OFFSET + 5, 2, 0xabcd);
    assert_eq!(written, Some(Action::WriteConfig { offset: 5, data: vec![0xcd, 0xab] }));
}

/// 4.2.2.2: control registers are reached by aligned accesses of 32 bits only; others do nothing, read 0, and are counted.
#[test]
fn accesses_of_another_size_or_offset_do_nothing() {
    let mut driver = Driver::new();
    driver.start();
    let mut bad = 0;
    for offset in (0..REGION_LEN + 16).chain([u64::MAX, u64::MAX - 3]) {
        for size in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255] {
            let register = size == 4 && Register::at(offset).is_some();
            let end = offset.saturating_add(u64::from(size));
            if register || (offset >= CONFIG_OFFSET && (1..=8).contains(&size) && end <= REGION_LEN) {
                continue;
            }
            assert_eq!(driver.device.read(offset, size, &driver.config), 0, "{offset:#x} {size}");
            assert_eq!(driver.device.write(offset, size, 0), None, "{offset:#x} {size}");
            bad += 2;
        }
    }
    assert_eq!(driver.device.bad_accesses(), bad);
    assert_eq!(driver.read(Register::Status), RUNNING.bits());
}

/// 4.2.2.2: write-only registers are not read, read-only ones not written: the one reads 0, the other stays.
#[test]
fn registers_of_one_direction_stay_so() {
    use Register as R;
    let mut driver = Driver::new();
    driver.start();
    for register in [R::DeviceFeaturesSel, R::DriverFeatures, R::DriverFeaturesSel, R::QueueSel, R::QueueNum]
    {
        driver.write(register, 1);
        assert_eq!(driver.read(register), 0, "{register:?}");
    }
    for register in [R::QueueNotify, R::InterruptAck, R::QueueDescLow, R::QueueDescHigh, R::QueueDriverLow] {
        assert_eq!(driver.read(register), 0, "{register:?}");
    }
    let fixed = [R::MagicValue, R::Version, R::DeviceId, R::VendorId, R::DeviceFeatures, R::QueueNumMax];
    for register in fixed.into_iter().chain([R::InterruptStatus, R::ConfigGeneration]) {
        let before = driver.read(register);
        assert_eq!(driver.write(register, !before), None);
        assert_eq!(driver.read(register), before, "{register:?}");
    }
}

/// 4.2.2.1: where there is no shared memory region, its length and its base read as all ones.
#[test]
fn there_is_no_shared_memory() {
    use Register as R;
    let mut driver = Driver::new();
    driver.write(R::ShmSel, 0);
    for register in [R::ShmLenLow, R::ShmLenHigh, R::ShmBaseLow, R::ShmBaseHigh] {
        assert_eq!(driver.read(register), u32::MAX, "{register:?}");
    }
}

/// 4.2.2 and 2.4: a status of 0 resets everything that a driver can see.
#[test]
fn status_0_resets() {
    let mut driver = Driver::new();
    driver.start();
    driver.device.interrupt().add_used_buffer();
    driver.device.fail();
    driver.write(Register::DriverFeaturesSel, 3);
    assert_eq!(driver.write(Register::Status, 0), Some(Action::Reset));
    assert_eq!((driver.read(Register::Status), driver.read(Register::InterruptStatus)), (0, 0));
    assert_eq!(driver.read(Register::QueueReady), 0);
    assert_eq!(driver.device.queue(0), Some(&QueueSetup::new(64)));
    assert_eq!(driver.device.negotiated(), 0);
    // Each driver starts anew.
    driver.status(READY);
    assert!(matches!(driver.status(AGREED), Some(Action::FeaturesRefused { missing: VERSION_1, .. })));
    driver.start();
}

/// 2.1.2: a device that cannot go on says so, with a notification if the driver is ready, until it is reset.
#[test]
fn a_device_that_failed_needs_a_reset() {
    let mut driver = Driver::new();
    driver.status(READY);
    assert!(!driver.device.fail());
    assert_eq!(driver.read(Register::Status), (READY | DeviceStatus::NEEDS_RESET).bits());
    driver.write(Register::Status, 0);
    driver.start();
    assert!(driver.device.fail());
    driver.status(RUNNING);
    assert_eq!(driver.read(Register::Status), (RUNNING | DeviceStatus::NEEDS_RESET).bits());
    assert_eq!(driver.read(Register::InterruptStatus), 2);
    driver.write(Register::Status, 0);
    assert_eq!(driver.read(Register::Status), 0);
}
