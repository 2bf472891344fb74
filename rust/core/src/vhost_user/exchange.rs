//! The main channel as the frontend uses it: one request, one answer, a deadline, and a log of it all.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::event::PollFlags;

use super::{
    Channel, Connection, FrontendCode, FrontendError, FrontendRequest, Header, Message, ProtocolError,
    RegionFormat, Reply, RequestName, Side, WireLog,
    describe::{describe_reply, describe_request},
    wait::{Patience, Waited},
};

/// Requests that nothing has confirmed yet are named in an error, up to this many.
const NAMED: usize = 8;

#[derive(Debug)]
pub(super) struct Exchange {
    connection: Connection,
    pub(super) patience: Patience,
    pub(super) log: WireLog,
    /// Sent since the last answer: any of them may be what the peer died of.
    unconfirmed: Vec<RequestName>,
    ended: Option<String>,
}

impl Exchange {
    pub(super) fn new(socket: OwnedFd, patience: Patience, log: WireLog) -> Self {
        let connection = Connection::new(socket, Side::Frontend, Channel::Main);
        Self { connection, patience, log, unconfirmed: Vec::new(), ended: None }
    }

    /// Sends a request.
    pub(super) fn post(
        &mut self,
        request: &FrontendRequest,
        need_reply: bool,
        format: RegionFormat,
    ) -> Result<(), FrontendError> {
        self.usable()?;
        self.log.add(|| format!("-> {request}{}", if need_reply { " (need_reply)" } else { "" }));
        let outgoing = request.encode(format);
        let sent = self.connection.send_request(&outgoing, need_reply);
        self.finish_sending(request.name(), sent)
    }

    /// Sends any header, payload and file descriptors.
    pub(super) fn post_raw(
        &mut self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        format: RegionFormat,
    ) -> Result<(), FrontendError> {
        self.usable()?;
        self.log.add(|| format!("-> raw: {}", describe_request(&header, payload, fds, format)));
        let sent = self.connection.send(header, payload, fds);
        self.finish_sending(RequestName { channel: Channel::Main, number: header.request }, sent)
    }

    fn finish_sending(
        &mut self,
        name: RequestName,
        sent: Result<(), ProtocolError>,
    ) -> Result<(), FrontendError> {
        // Before the outcome is known: a peer may hang up at the request before this one, and be gone already.
        if self.unconfirmed.len() < NAMED {
            self.unconfirmed.push(name);
        }
        let deadline = self.patience.deadline();
        let during = |it: RequestName| format!("while {it} was being sent");
        if let Err(error) = sent {
            return Err(self.end(error, during(name)));
        }
        while self.connection.wants_write() {
            self.wait(PollFlags::OUT, deadline, name)?;
            if let Err(error) = self.connection.flush() {
                return Err(self.end(error, during(name)));
            }
        }
        Ok(())
    }

    /// The reply to the request that was sent last.
    pub(super) fn reply(&mut self, code: FrontendCode) -> Result<Reply, FrontendError> {
        let name = RequestName::from(code);
        let Message { header, payload, fds } = self.message(name)?;
        let got = RequestName { channel: Channel::Main, number: header.request };
        let reply = if got == name {
            Reply::decode(code, &payload, fds)
        } else {
            Err(ProtocolError::WrongReply { expected: name, got })
        };
        reply.map_err(|error| self.end(error, format!("while the answer to {name} was awaited")))
    }

    /// The next message, whatever it is.
    pub(super) fn message(&mut self, name: RequestName) -> Result<Message, FrontendError> {
        self.usable()?;
        let deadline = self.patience.deadline();
        loop {
            match self.connection.receive() {
                Ok(Some(message)) => {
                    self.log.add(|| {
                        format!("<- {}", describe_reply(&message.header, &message.payload, message.fds.len()))
                    });
                    self.unconfirmed.clear();
                    return Ok(message);
                }
                Ok(None) => self.wait(PollFlags::IN, deadline, name)?,
                Err(error) => return Err(self.end(error, format!("while the answer to {name} was awaited"))),
            }
        }
    }

    /// True once the peer has closed the connection; false if it has not within the time. What it sends
    /// meanwhile is logged and dropped.
    pub(super) fn closed_within(&mut self, patience: &Patience) -> Result<bool, FrontendError> {
        let deadline = patience.deadline();
        loop {
            match patience.ready(self.connection.as_fd(), PollFlags::IN, deadline) {
                Ok(()) => {}
                Err(Waited::TimedOut) => return Ok(false),
                Err(Waited::Interrupted) => {
                    return Err(FrontendError::Interrupted("the peer to close".into()));
                }
                Err(Waited::Failed(errno)) => return Err(ProtocolError::Socket(errno).into()),
            }
            match self.connection.receive() {
                Ok(None) => {}
                Ok(Some(message)) => {
                    self.log.add(|| {
                        format!("<- {}", describe_reply(&message.header, &message.payload, message.fds.len()))
                    });
                    // A peer that talks without end must not keep us here.
                    if deadline.is_some_and(|end| end <= Instant::now()) {
                        return Ok(false);
                    }
                }
                Err(error) => {
                    let disconnected = error.is_disconnect();
                    let error = self.end(error, "when it was expected to".into());
                    return if disconnected { Ok(true) } else { Err(error) };
                }
            }
        }
    }

    fn wait(
        &mut self,
        what: PollFlags,
        deadline: Option<Instant>,
        name: RequestName,
    ) -> Result<(), FrontendError> {
        let error = match self.patience.ready(self.connection.as_fd(), what, deadline) {
            Ok(()) => return Ok(()),
            Err(Waited::TimedOut) => FrontendError::Timeout { request: name, timeout: self.patience.timeout },
            Err(Waited::Interrupted) => FrontendError::Interrupted(format!("the answer to {name}")),
            Err(Waited::Failed(errno)) => ProtocolError::Socket(errno).into(),
        };
        // An answer may still come, and would be taken for that to the next question.
        self.ended = Some(error.to_string());
        self.log.add(|| format!("!! {error}"));
        Err(error)
    }

    fn usable(&self) -> Result<(), FrontendError> {
        self.ended.as_ref().map_or(Ok(()), |why| Err(FrontendError::Ended(why.clone())))
    }

    fn end(&mut self, error: ProtocolError, during: String) -> FrontendError {
        let error = match error {
            ProtocolError::Disconnected => FrontendError::Closed { during, more: self.suspects() },
            ProtocolError::DisconnectedInMessage { .. } => {
                FrontendError::Closed { during, more: format!(", in mid-message{}", self.suspects()) }
            }
            error => error.into(),
        };
        self.ended.get_or_insert_with(|| error.to_string());
        self.log.add(|| format!("!! {error}"));
        error
    }

    fn suspects(&self) -> String {
        if self.unconfirmed.len() < 2 {
            return String::new();
        }
        let names: Vec<String> = self.unconfirmed.iter().map(RequestName::to_string).collect();
        format!("; not confirmed yet: {}", names.join(", "))
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
