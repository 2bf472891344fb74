//! One frontend, its connection to the daemon, and what passes between them.

use std::{
    collections::VecDeque,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use rustix::io::Errno;

use super::{
    From, LEG, Passed, RELAYED, RelayControl, RelayEvent, RelayOptions,
    bridges::{Bridges, Kind},
    progress::Progress,
    token,
};
use crate::vhost_user::{
    BackendRequest, Channel, Connection, FrontendCode, FrontendRequest, Header, Message, ProtocolError,
    ProtocolFeatures, RegionFormat, Side, TableError,
    describe::{describe_backend_request, describe_reply, describe_request},
    virtio_features,
};

/// The sockets: each with its other at the number beside it.
const FRONTEND: usize = 0;
const DAEMON: usize = 1;
/// The reverse channel: requests come here,
const DAEMON_REVERSE: usize = 2;
/// and answers to them here.
const FRONTEND_REVERSE: usize = 3;

#[derive(Debug)]
struct Leg {
    connection: Connection,
    /// Not read from, until the other end has taken what waits for it.
    paused: bool,
}

/// A frontend and a daemon.
pub(super) struct Session {
    control: Arc<RelayControl>,
    trace: bool,
    count: bool,
    legs: [Option<Leg>; 4],
    features: u64,
    protocol: ProtocolFeatures,
    bridges: Bridges,
    progress: Progress,
}

impl Session {
    pub(super) fn new(
        frontend: OwnedFd,
        daemon: OwnedFd,
        options: &RelayOptions,
        control: &Arc<RelayControl>,
    ) -> Result<Self, Errno> {
        let mut session = Self {
            control: Arc::clone(control),
            trace: options.trace,
            count: options.count,
            legs: [None, None, None, None],
            features: 0,
            protocol: ProtocolFeatures::empty(),
            bridges: Bridges::new(control),
            progress: Progress::new(control),
        };
        session.join(FRONTEND, Connection::new(frontend, Side::Backend, Channel::Main))?;
        session.join(DAEMON, Connection::new(daemon, Side::Frontend, Channel::Main))?;
        Ok(session)
    }

    fn join(&mut self, leg: usize, connection: Connection) -> Result<(), Errno> {
        self.control.event_loop.watch(connection.as_fd(), token(LEG, leg as u32))?;
        self.legs[leg] = Some(Leg { connection, paused: false });
        Ok(())
    }

    /// A kick or a call came.
    pub(super) fn signalled(&mut self, bridge: u32) {
        self.bridges.pass(bridge, |queue| self.progress.look(queue));
    }

    /// A socket is ready. An error ends the session; it says why, unless the frontend just left.
    pub(super) fn step(
        &mut self,
        which: u32,
        events: &mut VecDeque<RelayEvent>,
    ) -> Result<(), Option<String>> {
        let leg = which as usize;
        match self.move_on(leg, events) {
            Ok(()) => Ok(()),
            Err(error) if leg >= DAEMON_REVERSE => {
                if !error.is_disconnect() {
                    events.push_back(RelayEvent::Warning(format!("the reverse channel ends: {error}")));
                }
                self.leave(DAEMON_REVERSE);
                self.leave(FRONTEND_REVERSE);
                Ok(())
            }
            Err(ProtocolError::Disconnected) if leg == FRONTEND => Err(None),
            Err(error) => {
                let who = if leg == FRONTEND { "the frontend" } else { "the daemon" };
                let how = match error {
                    ProtocolError::Disconnected => "closed its connection".into(),
                    error => format!("is not understood: {error}"),
                };
                Err(Some(format!("{who} {how}")))
            }
        }
    }

    fn move_on(&mut self, leg: usize, events: &mut VecDeque<RelayEvent>) -> Result<(), ProtocolError> {
        self.flush(leg)?;
        let Some(from) = self.legs[leg].as_mut().filter(|leg| !leg.paused) else { return Ok(()) };
        let Some(message) = from.connection.receive()? else { return Ok(()) };
        self.pass(leg, message, events)
    }

    /// Sends what waits for this socket; its other may speak again then.
    fn flush(&mut self, leg: usize) -> Result<(), ProtocolError> {
        let Some(to) = self.legs[leg].as_mut().filter(|leg| leg.connection.wants_write()) else {
            return Ok(());
        };
        if !to.connection.flush()? {
            return Ok(());
        }
        let event_loop = &self.control.event_loop;
        event_loop.watch_output(to.connection.as_fd(), token(LEG, leg as u32), false);
        if let Some(from) = self.legs[leg ^ 1].as_mut().filter(|leg| leg.paused) {
            from.paused = false;
            event_loop
                .watch(from.connection.as_fd(), token(LEG, leg as u32 ^ 1))
                .map_err(ProtocolError::Socket)?;
        }
        Ok(())
    }

    /// Passes a message on, to the other end of `leg`.
    fn pass(
        &mut self,
        leg: usize,
        message: Message,
        events: &mut VecDeque<RelayEvent>,
    ) -> Result<(), ProtocolError> {
        self.bridges.pass_all(|queue| self.progress.look(queue));
        let Message { header, mut payload, mut fds } = message;
        let text = match leg {
            FRONTEND => self.request(&header, &payload, &mut fds, events),
            DAEMON => self.reply(&header, &mut payload, &fds, events),
            DAEMON_REVERSE => self.backend_request(&header, &payload, &fds),
            _ => format!("{}: {}", name(Channel::Reverse, &header), describe_number(&payload)),
        };
        if self.trace {
            events.push_back(RelayEvent::Passed(Box::new(Passed {
                time: self.control.elapsed(),
                from: if matches!(leg, FRONTEND | FRONTEND_REVERSE) { From::Frontend } else { From::Daemon },
                channel: if leg < DAEMON_REVERSE { Channel::Main } else { Channel::Reverse },
                header,
                payload: payload.clone(),
                files: fds.len(),
                text,
            })));
        }
        let Some(to) = &mut self.legs[leg ^ 1] else { return Ok(()) };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sent = to.connection.send(header, &payload, &fds);
        let waits = to.connection.wants_write();
        match sent {
            // The other end is gone: its own socket says so, after what it still had to say.
            Ok(()) | Err(ProtocolError::Disconnected) => {}
            Err(error) => return Err(error),
        }
        if waits {
            let event_loop = &self.control.event_loop;
            event_loop.watch_output(to.connection.as_fd(), token(LEG, leg as u32 ^ 1), true);
            if let Some(from) = &mut self.legs[leg] {
                from.paused = true;
                event_loop.unwatch(from.connection.as_fd());
            }
        }
        Ok(())
    }

    /// What the frontend asks: looked at through duplicates of its files, passed on with the files themselves
    /// but for those that the relay stands in. Gives it in words.
    fn request(
        &mut self,
        header: &Header,
        payload: &[u8],
        fds: &mut [OwnedFd],
        events: &mut VecDeque<RelayEvent>,
    ) -> String {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let text = if self.trace {
            describe_request(header, payload, &borrowed, self.format())
        } else {
            String::new()
        };
        let copies = fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3)).collect();
        let request = match copies {
            // What cannot be understood the daemon is to judge.
            Ok(copies) => FrontendRequest::decode(header.request, payload, copies, self.format()).ok(),
            Err(errno) => {
                events.push_back(RelayEvent::Warning(format!("a message is not looked at: {errno}")));
                None
            }
        };
        if let Some(request) = request {
            self.follow(request, fds, events);
        }
        text
    }

    fn follow(&mut self, request: FrontendRequest, fds: &mut [OwnedFd], events: &mut VecDeque<RelayEvent>) {
        use FrontendRequest as R;
        let mapped = match request {
            R::SetFeatures(features) => {
                self.features = features & !virtio_features::PROTOCOL_FEATURES;
                self.progress.split = features & virtio_features::RING_PACKED == 0;
                self.publish();
                return;
            }
            R::SetProtocolFeatures(bits) => {
                self.protocol = ProtocolFeatures::from_bits_truncate(bits);
                self.publish();
                return;
            }
            R::SetBackendReqFd(theirs) if self.trace => return self.stand_in_reverse(theirs, fds, events),
            _ if !self.count => return,
            R::SetMemTable(regions) => self.progress.set_memory(regions),
            R::AddMemReg { region, fd } => self.progress.add_region(region, fd),
            R::RemMemReg(region) => self.progress.remove_region(&region),
            R::SetVringAddr(address) => return self.progress.set_address(&address),
            R::SetVringKick { index, fd } => {
                self.progress.start(index);
                return self.stand_in(Kind::Kick, index, fd, fds, events);
            }
            R::SetVringCall { index, fd } => return self.stand_in(Kind::Call, index, fd, fds, events),
            R::SetVringErr { index, fd } => return self.stand_in(Kind::Error, index, fd, fds, events),
            // The ring stops with it: from now on kicks are not for the daemon, and stay where they are.
            R::GetVringBase { index } => return self.bridges.replace(Kind::Kick, index as u8),
            R::VringKick { index } => return self.control.count(index as u8, |counts| counts.kicks += 1),
            _ => return,
        };
        if let Err(error) = mapped {
            self.cannot_count(&error, events);
        }
    }

    fn cannot_count(&self, error: &TableError, events: &mut VecDeque<RelayEvent>) {
        events.push_back(RelayEvent::Warning(format!("chains are not counted: {error}")));
    }

    /// Puts a descriptor of ours in the place of the frontend's.
    fn stand_in(
        &mut self,
        kind: Kind,
        queue: u8,
        theirs: Option<OwnedFd>,
        fds: &mut [OwnedFd],
        events: &mut VecDeque<RelayEvent>,
    ) {
        let (Some(theirs), Some(place)) = (theirs, fds.first_mut()) else {
            return self.bridges.replace(kind, queue);
        };
        match self.bridges.stand_in(kind, queue, theirs) {
            Ok(ours) => *place = ours,
            Err(errno) => events.push_back(RelayEvent::Warning(format!(
                "the {kind:?} of queue {queue} is passed on without being counted: {errno}"
            ))),
        }
    }

    /// Puts a socket of ours in the place of the frontend's.
    fn stand_in_reverse(&mut self, theirs: OwnedFd, fds: &mut [OwnedFd], events: &mut VecDeque<RelayEvent>) {
        let Some(place) = fds.first_mut() else { return };
        self.leave(DAEMON_REVERSE);
        self.leave(FRONTEND_REVERSE);
        let joined = UnixStream::pair()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
            .and_then(|(ours, daemons)| {
                self.join(DAEMON_REVERSE, Connection::new(ours.into(), Side::Frontend, Channel::Reverse))?;
                self.join(FRONTEND_REVERSE, Connection::new(theirs, Side::Backend, Channel::Reverse))?;
                Ok(OwnedFd::from(daemons))
            });
        match joined {
            Ok(daemons) => *place = daemons,
            Err(errno) => events.push_back(RelayEvent::Warning(format!(
                "the reverse channel is passed on without being looked at: {errno}"
            ))),
        }
    }

    /// What the daemon answers. Gives it in words.
    fn reply(
        &mut self,
        header: &Header,
        payload: &mut [u8],
        fds: &[OwnedFd],
        events: &mut VecDeque<RelayEvent>,
    ) -> String {
        match FrontendCode::from_number(header.request) {
            Some(FrontendCode::GetProtocolFeatures) => mask(payload, events),
            Some(FrontendCode::GetVringBase) => {
                if let Some(&index) = payload.first() {
                    self.progress.stop(index);
                }
            }
            _ => {}
        }
        if self.trace { describe_reply(header, payload, fds.len()) } else { String::new() }
    }

    /// What the daemon asks. Gives it in words.
    fn backend_request(&mut self, header: &Header, payload: &[u8], fds: &[OwnedFd]) -> String {
        if self.count
            && let Ok(request) = BackendRequest::decode(header.request, payload, Vec::new())
        {
            match request {
                BackendRequest::VringCall { index } => {
                    self.control.count(index as u8, |counts| counts.calls += 1);
                }
                BackendRequest::VringErr { index } => {
                    self.control.count(index as u8, |counts| counts.errors += 1);
                }
                _ => {}
            }
        }
        describe_backend_request(header, payload, fds.len())
    }

    fn publish(&self) {
        self.control.set_negotiated(self.features, self.protocol.bits());
    }

    fn format(&self) -> RegionFormat {
        if self.protocol.contains(ProtocolFeatures::XEN_MMAP) {
            RegionFormat::Xen
        } else {
            RegionFormat::Plain
        }
    }

    fn leave(&mut self, leg: usize) {
        if let Some(leg) = self.legs[leg].take() {
            self.control.event_loop.unwatch(leg.connection.as_fd());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.bridges.pass_all(|_| ());
        self.progress.look_at_all();
        for leg in [FRONTEND, DAEMON, DAEMON_REVERSE, FRONTEND_REVERSE] {
            self.leave(leg);
        }
    }
}

/// Takes the protocol features away that a relay cannot pass on, and says so.
fn mask(payload: &mut [u8], events: &mut VecDeque<RelayEvent>) {
    let Ok(place) = <&mut [u8; 8]>::try_from(payload) else { return };
    let offered = u64::from_ne_bytes(*place);
    let masked = ProtocolFeatures::from_bits_retain(offered & !RELAYED.bits());
    if !masked.is_empty() {
        *place = (offered & RELAYED.bits()).to_ne_bytes();
        events.push_back(RelayEvent::Warning(format!(
            "protocol features of the daemon that are not passed on: {masked}"
        )));
    }
}

fn name(channel: Channel, header: &Header) -> crate::vhost_user::RequestName {
    crate::vhost_user::RequestName { channel, number: header.request }
}

fn describe_number(payload: &[u8]) -> String {
    match <[u8; 8]>::try_from(payload).map(u64::from_ne_bytes) {
        Ok(0) => "ok".into(),
        Ok(value) => format!("refused ({value:#x})"),
        Err(_) => format!("{} bytes", payload.len()),
    }
}
