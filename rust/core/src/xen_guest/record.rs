//! A device's registers in a file, which outlives the process that serves it.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use rustix::io::Errno;

use crate::mmio::SavedRegisters;

/// Where a device's registers are put down whenever its driver has changed them, before it goes on: so whoever finds the file finds what
/// the driver made of them. The file may be empty, for a device that nobody served before.
#[derive(Debug)]
pub struct Record {
    file: File,
    /// Chains are to be given back in the order in which they were made available (`RingConfig::in_turn`): where the device does
    /// so by itself, or need not go on after a death in the middle of them, this is not needed.
    pub in_turn: bool,
}

impl Record {
    /// In a file that is open for reading and writing.
    pub fn new(file: OwnedFd, in_turn: bool) -> Self {
        Self { file: file.into(), in_turn }
    }

    /// What is in it; None where there is nothing of ours.
    pub(super) fn read(&self) -> Result<Option<SavedRegisters>, Errno> {
        let length = self.file.metadata().map_err(errno)?.len();
        // A device has up to 256 queues, of 32 bytes each.
        let mut bytes = vec![0; length.min(1 << 16) as usize];
        self.file.read_exact_at(&mut bytes, 0).map_err(errno)?;
        Ok(SavedRegisters::from_bytes(&bytes).ok())
    }

    /// Takes all the room that is ever needed.
    pub(super) fn begin(&self, registers: &SavedRegisters) -> Result<(), Errno> {
        self.write(registers)?;
        self.file.set_len(registers.to_bytes().len() as u64).map_err(errno)
    }

    pub(super) fn write(&self, registers: &SavedRegisters) -> Result<(), Errno> {
        self.file.write_all_at(&registers.to_bytes(), 0).map_err(errno)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
