//! Waiting: one epoll instance, the descriptors that it watches, and a way to wake it from outside.
//!
//! Everything is level-triggered: what is not dealt with is told again. Tokens are chosen by the caller.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        EventfdFlags, PollFd, PollFlags, Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
        eventfd, poll,
    },
    io::Errno,
};

/// How many ready descriptors one wait reports at most; the rest is told by the next one.
const BATCH: usize = 64;

/// An eventfd: the kick and the call of a queue, or a way to wake a loop.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new counter at zero, non-blocking and closed on exec.
    pub fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Adds one. A full counter is as good as a signalled one.
    pub fn signal(&self) {
        signal(self.0.as_fd());
    }

    /// Takes the counter back to zero.
    pub fn drain(&self) {
        drain(self.0.as_fd());
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0
    }
}

/// Adds one to an eventfd that somebody else made. Nothing can be done about a descriptor that
/// does not take it (a full counter, a closed pipe): the other side sees what it made.
pub fn signal(fd: BorrowedFd<'_>) {
    let _ = rustix::io::retry_on_intr(|| rustix::io::write(fd, &1u64.to_ne_bytes()));
}

/// Takes an eventfd back to zero; reads nothing more than one counter, whatever was passed as one.
pub fn drain(fd: BorrowedFd<'_>) {
    let mut counter = [0u8; 8];
    let _ = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut counter));
}

/// Waits until one descriptor is readable, for whom a loop would be too much.
///
/// # Errors
/// What poll(2) says.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Woken, Errno> {
    let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()) {
        Ok(0) => Ok(Woken::TimedOut),
        Ok(_) => Ok(Woken::Ready),
        Err(Errno::INTR) => Ok(Woken::Interrupted),
        Err(errno) => Err(errno),
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Descriptors are ready: their tokens are in the list.
    Ready,
    /// The time ran out.
    TimedOut,
    /// A signal came in: the caller may have handlers to run.
    Interrupted,
}

/// An epoll instance.
#[derive(Debug)]
pub struct EventLoop {
    epoll: OwnedFd,
}

impl EventLoop {
    /// A loop that watches nothing yet.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches a descriptor for input (and for its end).
    pub fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN)
    }

    /// Watches a descriptor for room to write as well, or no longer. One that is not watched is left alone.
    pub fn watch_output(&self, fd: BorrowedFd<'_>, token: u64, output: bool) {
        let flags = if output { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags);
    }

    /// Stops watching a descriptor. One that is not watched is no error: it may have been closed.
    pub fn unwatch(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until a descriptor is ready, and appends the tokens to `ready`.
    pub fn wait(&self, deadline: Option<Instant>, ready: &mut Vec<u64>) -> Result<Woken, Errno> {
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; BATCH];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(0) => Ok(Woken::TimedOut),
            Ok(count) => {
                ready.extend(events[..count].iter().map(|event| event.data.u64()));
                Ok(Woken::Ready)
            }
            Err(Errno::INTR) => Ok(Woken::Interrupted),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for EventLoop {
    /// An epoll instance can be polled itself: it is readable while a descriptor is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The time as the kernel takes it; far away is far enough.
pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signalled_event_is_told_until_it_is_drained() {
        let event_loop = EventLoop::new().unwrap();
        let event = EventFd::new().unwrap();
        event_loop.watch(event.as_fd(), 7).unwrap();
        event.signal();
        event.signal();
        for _ in 0..2 {
            let mut ready = Vec::new();
            assert_eq!(event_loop.wait(None, &mut ready), Ok(Woken::Ready));
            assert_eq!(ready, [7]);
        }
        event.drain();
        assert_eq!(event_loop.wait(Some(Instant::now()), &mut Vec::new()), Ok(Woken::TimedOut));
    }

    #[test]
    fn an_unwatched_descriptor_is_told_no_more() {
        let event_loop = EventLoop::new().unwrap();
        let event = EventFd::new().unwrap();
        event_loop.watch(event.as_fd(), 7).unwrap();
        event.signal();
        event_loop.unwatch(event.as_fd());
        event_loop.unwatch(event.as_fd());
        assert_eq!(event_loop.wait(Some(Instant::now()), &mut Vec::new()), Ok(Woken::TimedOut));
    }
}
