//! Devices in Rust: they take a [`VirtQueue`](crate::ring::VirtQueue) and answer what is in it.
//!
//! What a device is (its id, features, config space) is said by whoever serves it; here is what it does
//! with requests. [`NullBlock`] answers at once; [`FileBlock`] has the kernel move the data between a file
//! and guest memory, by io_uring where it has to be waited for and where that is allowed.

mod block;
mod file_block;
mod file_queue;
mod null_block;
mod storage;
#[cfg(test)]
mod tests;
mod uring;
mod work;

pub use file_block::FileBlock;
pub use null_block::NullBlock;
pub use storage::{Io, IoCounters, ProcessError, Storage, Trouble};
