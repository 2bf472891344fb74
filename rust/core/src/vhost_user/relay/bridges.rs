//! Standing in the kick and call descriptors: the daemon gets an eventfd of ours for each of the frontend's, and
//! what is signalled at one end is signalled as often at the other.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::io::Errno;

use super::{BRIDGE, RelayControl, token};
use crate::event_loop::EventFd;

/// Call descriptors that were replaced and may still be signalled: a daemon may be about to, and QEMU, which
/// replaces a call descriptor whenever the guest masks its interrupt, then wants to know.
const RETIRED: usize = 64;

/// Which of a queue's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// From the driver to the device.
    Kick,
    /// From the device to the driver.
    Call,
    /// From the device: the ring is broken.
    Error,
}

/// One descriptor that is read, one that is written.
#[derive(Debug)]
struct Bridge {
    kind: Kind,
    queue: u8,
    from: OwnedFd,
    to: OwnedFd,
}

/// All that stand at present.
#[derive(Debug)]
pub(super) struct Bridges {
    control: Arc<RelayControl>,
    next: u32,
    open: BTreeMap<u32, Bridge>,
    current: BTreeMap<(Kind, u8), u32>,
    retired: VecDeque<u32>,
}

impl Bridges {
    pub(super) fn new(control: &Arc<RelayControl>) -> Self {
        Self {
            control: Arc::clone(control),
            next: 0,
            open: BTreeMap::new(),
            current: BTreeMap::new(),
            retired: VecDeque::new(),
        }
    }

    /// Takes the frontend's descriptor, and gives the one that the daemon gets in its place.
    pub(super) fn stand_in(&mut self, kind: Kind, queue: u8, theirs: OwnedFd) -> Result<OwnedFd, Errno> {
        self.replace(kind, queue);
        // It is read, or written, while nobody may be there: this thread must never wait for it.
        rustix::io::ioctl_fionbio(&theirs, true)?;
        let ours = OwnedFd::from(EventFd::new()?);
        let daemons = rustix::io::fcntl_dupfd_cloexec(&ours, 3)?;
        let (from, to) = if kind == Kind::Kick { (theirs, ours) } else { (ours, theirs) };
        let id = self.next;
        self.control.event_loop.watch(from.as_fd(), token(BRIDGE, id))?;
        self.next = self.next.wrapping_add(1);
        self.open.insert(id, Bridge { kind, queue, from, to });
        self.current.insert((kind, queue), id);
        Ok(daemons)
    }

    /// The frontend has another descriptor from now on, or none.
    pub(super) fn replace(&mut self, kind: Kind, queue: u8) {
        let Some(id) = self.current.remove(&(kind, queue)) else { return };
        if kind == Kind::Kick {
            self.close(id);
            return;
        }
        self.retired.push_back(id);
        if self.retired.len() > RETIRED
            && let Some(oldest) = self.retired.pop_front()
        {
            self.close(oldest);
        }
    }

    /// Passes on what was signalled, after `look` has looked at the queue's ring.
    pub(super) fn pass(&mut self, id: u32, look: impl FnOnce(u8)) {
        let Some(bridge) = self.open.get(&id) else { return };
        let (kind, queue) = (bridge.kind, bridge.queue);
        let mut counter = [0; 8];
        match rustix::io::retry_on_intr(|| rustix::io::read(&bridge.from, &mut counter)) {
            Ok(8) => {
                let times = u64::from_ne_bytes(counter);
                self.control.count(queue, |counts| {
                    let count = match kind {
                        Kind::Kick => &mut counts.kicks,
                        Kind::Call => &mut counts.calls,
                        Kind::Error => &mut counts.errors,
                    };
                    *count = count.saturating_add(times);
                });
                look(queue);
                self.control.signalled(kind, queue, times);
                // A full counter is as good as a signalled one.
                let _ = rustix::io::retry_on_intr(|| rustix::io::write(&bridge.to, &counter));
            }
            Err(Errno::AGAIN) => {}
            // Not what a kick is, or at its end: it would be told for ever.
            _ => self.close(id),
        }
    }

    /// Passes on all that was signalled before a message is: nobody is told of the one before the other.
    pub(super) fn pass_all(&mut self, mut look: impl FnMut(u8)) {
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            self.pass(id, &mut look);
        }
    }

    fn close(&mut self, id: u32) {
        if let Some(bridge) = self.open.remove(&id) {
            // Explicitly: the other end holds the same file, so that its close would not do it.
            self.control.event_loop.unwatch(bridge.from.as_fd());
        }
    }
}

impl Drop for Bridges {
    fn drop(&mut self) {
        while let Some((&id, _)) = self.open.first_key_value() {
            self.close(id);
        }
    }
}
