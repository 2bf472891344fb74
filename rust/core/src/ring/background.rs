//! What works on chains while no call is inside of their queue.

use std::{
    fmt::Debug,
    sync::{Arc, PoisonError},
};

use super::queue::VirtQueue;

/// Work on the memory of chains that goes on while no call is inside of the queue: the kernel does it.
///
/// [`VirtQueue::while_current`] keeps a queue from being stopped while somebody copies. What runs beside us cannot
/// hold that lock, so a stop asks for its end instead. A worker therefore begins nothing but inside of
/// `while_current`.
pub trait Background: Debug + Send + Sync {
    /// Cancels what was begun, or waits for its end: when this returns, nothing touches the memory of
    /// chains of an earlier generation. Called by [`VirtQueue::stop`] and [`VirtQueue::start`] on their thread,
    /// with no lock of the queue held, before the memory of the ring is let go of.
    fn settle(&self);
}

impl VirtQueue {
    /// Says who works on chains of this queue in the background; nobody any more, with None.
    pub fn set_background(&self, background: Option<Arc<dyn Background>>) {
        let mut current = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, background);
        drop(current);
        drop(before);
    }

    /// Has it end.
    pub(super) fn settle(&self) {
        let current = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        let background = current.clone();
        drop(current);
        if let Some(background) = background {
            background.settle();
        }
    }
}
