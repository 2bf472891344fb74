//! Waiting for a socket with a deadline, and for a signal handler's say.

use std::{
    fmt,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// The longest single wait: a signal that comes between the check and the wait is noticed after that time.
const SLICE: Duration = Duration::from_millis(500);

/// Why a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The deadline passed.
    TimedOut,
    /// The interrupt hook said stop.
    Interrupted,
    /// The kernel said so.
    Failed(Errno),
}

/// Asked when a signal came and every half second: may we go on waiting?
pub type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

/// How long to wait, and whom to ask in between.
#[derive(Clone)]
pub struct Patience {
    /// How long a peer may take for one answer.
    pub timeout: Duration,
    /// Asked when a signal came; for Python's signal handlers.
    pub interrupt: Option<Interrupt>,
}

impl Patience {
    /// So long, and nobody is asked.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, interrupt: None }
    }

    /// When to give up, if one begins now. None: never (a timeout beyond the clock's end).
    pub(super) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.timeout)
    }

    fn may_go_on(&self) -> bool {
        self.interrupt.as_ref().is_none_or(|ask| ask())
    }

    /// Waits until the file is ready (or has failed, which the next call on it will tell).
    pub(super) fn ready(
        &self,
        fd: BorrowedFd<'_>,
        what: PollFlags,
        deadline: Option<Instant>,
    ) -> Result<(), Waited> {
        loop {
            let left = deadline.map_or(SLICE, |end| end.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::from_borrowed_fd(fd, what)];
            match poll(&mut fds, Some(&timespec(left.min(SLICE)))) {
                Ok(0) if left.is_zero() => return Err(Waited::TimedOut),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Waited::Failed(errno)),
            }
            if !self.may_go_on() {
                return Err(Waited::Interrupted);
            }
        }
    }

    /// Sleeps for a moment, not beyond the deadline.
    pub(super) fn pause(&self, time: Duration, deadline: Option<Instant>) -> Result<(), Waited> {
        let left = deadline.map_or(time, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(Waited::TimedOut);
        }
        match poll(&mut [], Some(&timespec(left.min(time)))) {
            Ok(_) | Err(Errno::INTR) if self.may_go_on() => Ok(()),
            Ok(_) | Err(Errno::INTR) => Err(Waited::Interrupted),
            Err(errno) => Err(Waited::Failed(errno)),
        }
    }
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
