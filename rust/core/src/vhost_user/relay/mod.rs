//! A relay: stands between any frontend and somebody else's daemon, and passes on what they say.
//!
//! Both ends speak vhost-user, so there is nothing to translate: messages go on as they came, byte for byte, with
//! their file descriptors, in both directions and without waiting for each other. Memory, rings, kicks and calls
//! are the frontend's and the daemon's own. Three things are looked at on the way:
//!
//! - GET_PROTOCOL_FEATURES: bits that this codec has no name for, and postcopy, are masked ([`RELAYED`]), since
//!   what they would put on the wire is not known here;
//! - for whoever traces, each message is told in words ([`RelayEvent::Passed`]), and the relay stands in the
//!   reverse channel as well;
//! - for whoever counts, it stands in the kick and call descriptors too ([`bridges`]), and looks how far the
//!   used rings have come ([`progress`]).
//!
//! When one end goes away, the other is told at once by the end of its connection: a frontend that can reconnect
//! (QEMU's `reconnect`) does so, keeps its place with the ring's own index, and finds the daemon again as soon as
//! that listens.

mod bridges;
mod progress;
mod session;

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};

use super::{Channel, FrontendError, Header, Patience, ProtocolFeatures, connect::connect_with_retry};
use crate::event_loop::{EventFd, EventLoop, Woken};
pub use bridges::Kind as SignalKind;
use session::Session;

/// The protocol features that a relay lets through. Postcopy is not among them: its memory tables are answered,
/// and what the answers mean depends on who maps the memory.
pub const RELAYED: ProtocolFeatures = ProtocolFeatures::all().difference(ProtocolFeatures::PAGEFAULT);

/// What a relay stands between, and how much it looks at.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// The daemon's socket.
    pub daemon: PathBuf,
    /// How long the daemon's socket may be missing, or not listened on, when a frontend comes.
    pub timeout: Duration,
    /// Tell each message.
    pub trace: bool,
    /// Count kicks, calls and chains.
    pub count: bool,
    /// Keep the time of each kick and call, for [`RelayControl::take_signals`]; only where they are counted.
    pub signals: bool,
}

/// A kick or a call that was passed on.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// When, since the relay was made.
    pub time: Duration,
    /// Of which queue.
    pub queue: u8,
    /// Which of the queue's descriptors.
    pub kind: SignalKind,
    /// How often it was signalled since the last time.
    pub times: u64,
    /// How many chains the device had given back by then.
    pub chains: u64,
}

/// Signals that are kept until somebody takes them; what comes beyond is counted only.
const KEPT_SIGNALS: usize = 1 << 20;

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The frontend.
    Frontend,
    /// The daemon.
    Daemon,
}

/// A message that was passed on.
#[derive(Clone, Debug)]
pub struct Passed {
    /// When, since the relay was made.
    pub time: Duration,
    /// Who said it.
    pub from: From,
    /// On which channel.
    pub channel: Channel,
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// How many file descriptors went with it.
    pub files: usize,
    /// All of it in words.
    pub text: String,
}

/// What happens at a relay.
#[derive(Debug)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A frontend came, and the daemon took it.
    Connected,
    /// A message was passed on; only where it was asked for.
    Passed(Box<Passed>),
    /// The frontend's connection ended; the text says why, unless the frontend just left.
    Disconnected(Option<String>),
    /// Something that is worth a line in the log.
    Warning(String),
    /// [`RelayControl::stop`] was called. Nothing comes after it.
    Stopped,
    /// The time of this wait ran out.
    TimedOut,
    /// A signal came in.
    Interrupted,
}

/// What a queue has done since the relay was made: totals over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// The driver's notifications.
    pub kicks: u64,
    /// Chains that the device gave back; split rings only.
    pub chains: u64,
    /// The device's notifications.
    pub calls: u64,
    /// Times that the device called the ring broken.
    pub errors: u64,
}

/// The part of a relay that may be used from any thread.
#[derive(Debug)]
pub struct RelayControl {
    event_loop: EventLoop,
    wake: EventFd,
    stopping: AtomicBool,
    counts: Mutex<Vec<QueueCounts>>,
    signals: Option<Mutex<Vec<Signal>>>,
    start: Instant,
    negotiated: Mutex<(u64, u64)>,
}

/// A token is what and which.
const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const LEG: u64 = 2;
const BRIDGE: u64 = 3;

fn token(what: u64, which: u32) -> u64 {
    what << 32 | u64::from(which)
}

/// A lock whose holder panicked still guards whole data here: each critical section is a plain assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RelayControl {
    fn new(signals: bool) -> Result<Arc<Self>, Errno> {
        let (event_loop, wake) = (EventLoop::new()?, EventFd::new()?);
        event_loop.watch(wake.as_fd(), token(WAKE, 0))?;
        let stopping = AtomicBool::new(false);
        Ok(Arc::new(Self {
            event_loop,
            wake,
            stopping,
            counts: Mutex::default(),
            signals: signals.then(Mutex::default),
            start: Instant::now(),
            negotiated: Mutex::default(),
        }))
    }

    /// Ends [`Relay::wait`], now and for ever.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// True after [`RelayControl::stop`].
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The counts of each queue of which anything was counted, by its index.
    pub fn counts(&self) -> Vec<QueueCounts> {
        lock(&self.counts).clone()
    }

    /// How long ago the relay was made: the clock of messages and signals.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The kicks and calls since the last time that this was asked.
    pub fn take_signals(&self) -> Vec<Signal> {
        self.signals.as_ref().map(|signals| std::mem::take(&mut *lock(signals))).unwrap_or_default()
    }

    fn signalled(&self, kind: SignalKind, queue: u8, times: u64) {
        let Some(signals) = &self.signals else { return };
        let chains = lock(&self.counts).get(usize::from(queue)).map_or(0, |counts| counts.chains);
        let mut signals = lock(signals);
        if signals.len() < KEPT_SIGNALS {
            signals.push(Signal { time: self.elapsed(), queue, kind, times, chains });
        }
    }

    /// The virtio features and the protocol features that the present frontend chose; 0 without one.
    pub fn negotiated(&self) -> (u64, u64) {
        *lock(&self.negotiated)
    }

    fn set_negotiated(&self, features: u64, protocol: u64) {
        *lock(&self.negotiated) = (features, protocol);
    }

    fn count(&self, queue: u8, add: impl FnOnce(&mut QueueCounts)) {
        let mut counts = lock(&self.counts);
        let index = usize::from(queue);
        if counts.len() <= index {
            counts.resize(index + 1, QueueCounts::default());
        }
        if let Some(counts) = counts.get_mut(index) {
            add(counts);
        }
    }
}

/// Stands between one frontend at a time and a daemon; the next frontend waits until the first is gone.
pub struct Relay {
    options: RelayOptions,
    control: Arc<RelayControl>,
    listener: Option<OwnedFd>,
    session: Option<Session>,
    events: VecDeque<RelayEvent>,
    ready: Vec<u64>,
}

impl Relay {
    /// Makes a relay that nobody can reach yet; the daemon is not looked for before a frontend comes.
    pub fn new(options: RelayOptions) -> Result<Self, Errno> {
        let control = RelayControl::new(options.signals)?;
        let (events, ready) = (VecDeque::new(), Vec::new());
        Ok(Self { options, control, listener: None, session: None, events, ready })
    }

    /// The part that other threads use.
    pub fn control(&self) -> &Arc<RelayControl> {
        &self.control
    }

    /// Frontends come to this socket from now on.
    pub fn listen(&mut self, listener: OwnedFd) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        if self.session.is_none() {
            self.control.event_loop.watch(listener.as_fd(), token(LISTENER, 0))?;
        }
        self.listener = Some(listener);
        Ok(())
    }

    /// Takes a connected frontend, and connects to the daemon for it. Where that cannot be, the frontend's
    /// connection ends.
    pub fn adopt(&mut self, frontend: OwnedFd) {
        self.end(None);
        let control = Arc::clone(&self.control);
        let interrupt: super::Interrupt = Arc::new(move || !control.is_stopping());
        let patience = Patience { timeout: self.options.timeout, interrupt: Some(interrupt) };
        let daemon = match connect_with_retry(&self.options.daemon, &patience) {
            Ok(daemon) => daemon,
            Err(FrontendError::Interrupted(_)) => return,
            Err(error) => {
                self.events
                    .push_back(RelayEvent::Disconnected(Some(format!("the daemon is not there: {error}"))));
                return;
            }
        };
        match Session::new(frontend, daemon, &self.options, &self.control) {
            Ok(session) => {
                if let Some(listener) = &self.listener {
                    self.control.event_loop.unwatch(listener.as_fd());
                }
                self.session = Some(session);
                self.events.push_back(RelayEvent::Connected);
            }
            Err(errno) => self.warn(format!("a frontend cannot be watched: {errno}")),
        }
    }

    /// Passes on what comes, until there is something to be told.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<RelayEvent, Errno> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if self.control.is_stopping() {
                return Ok(RelayEvent::Stopped);
            }
            match self.control.event_loop.wait(deadline, &mut self.ready)? {
                Woken::Interrupted => return Ok(RelayEvent::Interrupted),
                Woken::TimedOut => return Ok(RelayEvent::TimedOut),
                Woken::Ready => {}
            }
            for token in std::mem::take(&mut self.ready) {
                self.is_ready(token);
            }
        }
    }

    fn is_ready(&mut self, token: u64) {
        let which = token as u32;
        match token >> 32 {
            WAKE => self.control.wake.drain(),
            LISTENER => self.accept(),
            BRIDGE => {
                if let Some(session) = &mut self.session {
                    session.signalled(which);
                }
            }
            _ => {
                let Some(session) = &mut self.session else { return };
                if let Err(why) = session.step(which, &mut self.events) {
                    self.end(Some(why));
                }
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => self.adopt(socket),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => {}
            Err(errno) => self.warn(format!("a frontend could not be accepted: {errno}")),
        }
    }

    /// Ends the connection, on both sides.
    fn end(&mut self, why: Option<Option<String>>) {
        let Some(session) = self.session.take() else { return };
        self.control.set_negotiated(0, 0);
        drop(session);
        self.events.push_back(RelayEvent::Disconnected(why.flatten()));
        if let Some(listener) = &self.listener
            && let Err(errno) = self.control.event_loop.watch(listener.as_fd(), token(LISTENER, 0))
        {
            self.warn(format!("no further frontend can be accepted: {errno}"));
        }
    }

    fn warn(&mut self, text: String) {
        self.events.push_back(RelayEvent::Warning(text));
    }
}
