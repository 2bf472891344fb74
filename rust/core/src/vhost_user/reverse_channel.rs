//! The frontend's end of the reverse channel: a thread of its own, so that a backend that waits for its
//! answer gets it whatever the rest of the frontend is doing.

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
    net::{Shutdown, shutdown},
};

use super::{BackendRequest, Channel, Connection, Message, ProtocolError, Reply, Side, WireLog};

/// Answers the backend's requests until it is dropped or the backend goes away.
#[derive(Debug)]
pub(super) struct ReverseChannel {
    /// The same socket as the thread's, to end it.
    socket: OwnedFd,
    config_changes: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl ReverseChannel {
    /// Makes the pair of sockets and the thread; what comes back beside is the backend's end.
    pub(super) fn start(log: WireLog, reply_ack: bool) -> Result<(Self, OwnedFd), Errno> {
        let os_error = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE);
        let (ours, theirs) = UnixStream::pair().map_err(os_error)?;
        let socket = OwnedFd::from(ours.try_clone().map_err(os_error)?);
        let config_changes = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let answerer = Answerer {
            connection: Connection::new(ours.into(), Side::Frontend, Channel::Reverse),
            config_changes: Arc::clone(&config_changes),
            log,
            reply_ack,
        };
        let thread = thread::Builder::new()
            .name("xenvirt-reverse".into())
            .spawn(move || answerer.run())
            .map_err(os_error)?;
        Ok((Self { socket, config_changes, thread: Some(thread) }, theirs.into()))
    }

    /// An eventfd that counts changes of the configuration space.
    pub(super) fn config_changes(&self) -> BorrowedFd<'_> {
        self.config_changes.as_fd()
    }
}

impl Drop for ReverseChannel {
    fn drop(&mut self) {
        // Wakes the thread up with an end of file. An error means that the peer is gone, and so is the thread.
        let _ = shutdown(&self.socket, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already; there is nobody to hand it to in a drop.
            let _ = thread.join();
        }
    }
}

struct Answerer {
    connection: Connection,
    config_changes: Arc<OwnedFd>,
    log: WireLog,
    reply_ack: bool,
}

impl Answerer {
    fn run(mut self) {
        loop {
            let output = if self.connection.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            let mut fds = [PollFd::new(&self.connection, PollFlags::IN | output)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return self.log.add(|| format!("!! reverse channel: {errno}")),
            }
            if let Err(error) = self.connection.flush() {
                return self.log.add(|| format!("!! reverse channel: {error}"));
            }
            loop {
                match self.connection.receive() {
                    Ok(Some(message)) => {
                        if let Err(error) = self.answer(message) {
                            return self.log.add(|| format!("!! reverse channel: {error}"));
                        }
                    }
                    Ok(None) => break,
                    Err(ProtocolError::Disconnected) => return,
                    Err(error) => return self.log.add(|| format!("!! reverse channel: {error}")),
                }
            }
        }
    }

    fn answer(&mut self, message: Message) -> Result<(), ProtocolError> {
        let Message { header, payload, fds } = message;
        let request = BackendRequest::decode(header.request, &payload, fds)?;
        self.log.add(|| format!("<- {request}"));
        let result = match request {
            BackendRequest::ConfigChange => {
                // Full only after 2^64 - 2 changes that nobody took.
                let _ = rustix::io::write(&self.config_changes, &1u64.to_ne_bytes());
                0
            }
            // Everything else belongs to features that this frontend does not ack.
            _ => 1,
        };
        if header.needs_reply() && self.reply_ack {
            self.log.add(|| format!("-> {}: {}", request.name(), if result == 0 { "ok" } else { "refused" }));
            self.connection.send_reply(&Reply::Number(result).encode(header.request))?;
        }
        Ok(())
    }
}
