//! Whose memory is it? Mappings are not inherited by a forked child, so that a child cannot scribble on a
//! guest that its parent serves; what the child has of our objects must know that.
//!
//! # Safety
//! `pthread_atfork` gets functions that live as long as the process and touch atomics only.
#![allow(unsafe_code)]

use std::sync::{
    Once,
    atomic::{AtomicU32, Ordering},
};

use super::{error::MemoryError, ranges};

/// Counts the forks between the process that first mapped something and this one.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static WATCH: Once = Once::new();

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    ranges::forget_all();
}

/// The process that something belongs to. A check costs one load and no system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    generation: u32,
    process: u32,
}

impl Owner {
    /// This process. From here on forks are counted.
    pub fn this_process() -> Self {
        WATCH.call_once(|| {
            // SAFETY: the handler is a static function that is safe to run in a fresh child. Without memory
            // for it the call fails, and a child that uses our objects is killed instead of told.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
        Self { generation: GENERATION.load(Ordering::Relaxed), process: std::process::id() }
    }

    /// Are we that process?
    #[inline]
    pub fn is_this_process(&self) -> bool {
        self.generation == GENERATION.load(Ordering::Relaxed)
    }

    /// An error in a child of that process.
    #[inline]
    pub fn check(&self) -> Result<(), MemoryError> {
        if self.is_this_process() {
            return Ok(());
        }
        Err(MemoryError::Forked { owner: self.process, user: std::process::id() })
    }
}
