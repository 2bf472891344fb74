//! Messages out of a stream socket, and into it, without ever waiting.
//!
//! A stream may be split anywhere, so bytes are gathered until a message is whole. File descriptors
//! belong to the message with whose bytes they came: to be sure of that, no read crosses the end of a
//! message (the kernel hands descriptors over with the first byte of the write that carried them).

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use super::{Channel, MAX_PAYLOAD, Outgoing, ProtocolError, RequestName};

/// The most file descriptors that one message may carry: as many as a memory table may have regions.
pub const MAX_FDS: usize = 32;

/// Messages that may wait for a peer that does not read.
const MAX_WAITING: usize = 64;

const HEADER: usize = 12;

/// Version 1, the only one there is.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that owns the guest.
    Frontend,
    /// The end that is the device.
    Backend,
}

/// The 12 bytes in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request's number; a reply repeats it.
    pub request: u32,
    /// Version (bits 0 and 1), reply (bit 2), need_reply (bit 3).
    pub flags: u32,
    /// Bytes of payload.
    pub size: u32,
}

impl Header {
    /// The header of a request.
    pub const fn request(number: u32, size: u32, need_reply: bool) -> Self {
        Self { request: number, flags: if need_reply { VERSION | NEED_REPLY } else { VERSION }, size }
    }

    /// The header of a reply. (DPDK takes no other flag beside these two.)
    pub const fn reply(number: u32, size: u32) -> Self {
        Self { request: number, flags: VERSION | REPLY, size }
    }

    /// True if the sender wants an acknowledgement (which counts only where REPLY_ACK was negotiated).
    pub const fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// True for a reply.
    pub const fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    /// The header as it stands on the wire.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (place, number) in
            bytes.as_chunks_mut::<4>().0.iter_mut().zip([self.request, self.flags, self.size])
        {
            *place = number.to_ne_bytes();
        }
        bytes
    }

    /// The header in these bytes.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let &[a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }
}

/// One message as it came.
#[derive(Debug)]
pub struct Message {
    /// The header; version, direction and size are checked.
    pub header: Header,
    /// The payload, as long as the header says.
    pub payload: Vec<u8>,
    /// The file descriptors that came with any of its bytes, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// What is left of a message that the socket did not take at once.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    /// Empty once the first byte is out.
    fds: Vec<OwnedFd>,
}

/// One end of a connection, main channel or reverse channel. The socket may be blocking or not, and is
/// left as it is: every call says that it does not want to wait.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    channel: Channel,
    replies_come: bool,
    header: [u8; HEADER],
    payload: Vec<u8>,
    /// Bytes of header and payload that have come.
    have: usize,
    fds: Vec<OwnedFd>,
    waiting: VecDeque<Waiting>,
    failed: Option<ProtocolError>,
}

impl Connection {
    /// Speaks over a connected stream socket. Side and channel settle whether requests come or replies.
    pub fn new(socket: OwnedFd, side: Side, channel: Channel) -> Self {
        let replies_come = match channel {
            Channel::Main => side == Side::Frontend,
            Channel::Reverse => side == Side::Backend,
        };
        Self {
            socket,
            channel,
            replies_come,
            header: [0; HEADER],
            payload: Vec::new(),
            have: 0,
            fds: Vec::new(),
            waiting: VecDeque::new(),
            failed: None,
        }
    }

    /// The next message, or None if it is not whole yet: come back when the socket is readable. An error is
    /// final; it is given again from then on.
    pub fn receive(&mut self) -> Result<Option<Message>, ProtocolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.gather().inspect_err(|error| {
            self.fds.clear();
            self.failed = Some(error.clone());
        })
    }

    fn gather(&mut self) -> Result<Option<Message>, ProtocolError> {
        loop {
            if self.have == HEADER && self.payload.is_empty() {
                let header = self.check_header()?;
                self.payload.resize(header.size as usize, 0);
            }
            if self.have >= HEADER && self.have == HEADER + self.payload.len() {
                self.have = 0;
                return Ok(Some(Message {
                    header: Header::from_bytes(&self.header),
                    payload: std::mem::take(&mut self.payload),
                    fds: std::mem::take(&mut self.fds),
                }));
            }
            match self.read_some() {
                Ok(0) | Err(ReadError::Reset) => return Err(self.disconnected()),
                Ok(count) => self.have += count,
                Err(ReadError::WouldBlock) => return Ok(None),
                Err(ReadError::Protocol(error)) => return Err(error),
            }
        }
    }

    /// One read, up to the end of the header or of the payload.
    fn read_some(&mut self) -> Result<usize, ReadError> {
        let place = match self.have.checked_sub(HEADER) {
            None => self.header.get_mut(self.have..),
            Some(at) => self.payload.get_mut(at..),
        }
        .unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let result = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(place)], &mut control, flags) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        let message = match result {
            Ok(message) => message,
            Err(Errno::AGAIN) => return Err(ReadError::WouldBlock),
            Err(Errno::CONNRESET) => return Err(ReadError::Reset),
            Err(errno) => return Err(ReadError::Protocol(ProtocolError::Socket(errno))),
        };
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > MAX_FDS || message.flags.contains(ReturnFlags::CTRUNC) {
            let count = self.fds.len();
            let request = self.current();
            let allowed = format!("at most {MAX_FDS}, and as many as this process may open");
            return Err(ReadError::Protocol(ProtocolError::Fds { request, count, allowed }));
        }
        Ok(message.bytes)
    }

    fn check_header(&self) -> Result<Header, ProtocolError> {
        let header = Header::from_bytes(&self.header);
        let request = self.current();
        let wrong = |problem| Err(ProtocolError::Flags { request, flags: header.flags, problem });
        if header.flags & VERSION_MASK != VERSION {
            return wrong("must have version 1 in bits 0 and 1");
        }
        if header.flags & !(VERSION_MASK | REPLY | NEED_REPLY) != 0 {
            return wrong("must have no bit set above bit 3");
        }
        match (header.is_reply(), self.replies_come) {
            (true, false) => return wrong("must not have the reply bit (bit 2): requests come here"),
            (false, true) => return wrong("must have the reply bit (bit 2): replies come here"),
            _ => {}
        }
        let size = header.size as usize;
        if size > MAX_PAYLOAD {
            return Err(ProtocolError::Size { request, size, allowed: format!("at most {MAX_PAYLOAD}") });
        }
        Ok(header)
    }

    /// The message that is being read; meaningful once its first four bytes are there.
    fn current(&self) -> RequestName {
        RequestName { channel: self.channel, number: Header::from_bytes(&self.header).request }
    }

    fn disconnected(&self) -> ProtocolError {
        match self.have {
            0 => ProtocolError::Disconnected,
            have if have < HEADER => {
                ProtocolError::DisconnectedInMessage { request: "a header".into(), have, want: HEADER }
            }
            have => ProtocolError::DisconnectedInMessage {
                request: self.current().to_string(),
                have,
                want: HEADER + self.payload.len(),
            },
        }
    }

    /// Sends a request. What the socket does not take waits for [`flush`](Self::flush).
    pub fn send_request(&mut self, request: &Outgoing<'_>, need_reply: bool) -> Result<(), ProtocolError> {
        let header = Header::request(request.number, request.payload.len() as u32, need_reply);
        self.send(header, &request.payload, &request.fds)
    }

    /// Sends a reply, likewise.
    pub fn send_reply(&mut self, reply: &Outgoing<'_>) -> Result<(), ProtocolError> {
        let header = Header::reply(reply.number, reply.payload.len() as u32);
        self.send(header, &reply.payload, &reply.fds)
    }

    /// Sends anything, right or wrong: nothing is checked here.
    pub fn send(
        &mut self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ProtocolError> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(ProtocolError::Backlog { limit: MAX_WAITING });
        }
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(&header.to_bytes());
        bytes.extend_from_slice(payload);
        let sent = if self.waiting.is_empty() { self.write_some(&bytes, fds)? } else { 0 };
        if sent == bytes.len() {
            return Ok(());
        }
        let kept = if sent == 0 { fds } else { &[] };
        let kept = kept.iter().map(BorrowedFd::try_clone_to_owned).collect::<Result<Vec<_>, _>>();
        let fds = kept
            .map_err(|error| ProtocolError::Socket(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        self.waiting.push_back(Waiting { bytes, sent, fds });
        self.flush().map(drop)
    }

    /// Sends what waits. True when nothing waits any more; else come back when the socket is writable.
    pub fn flush(&mut self) -> Result<bool, ProtocolError> {
        while let Some(mut first) = self.waiting.pop_front() {
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(AsFd::as_fd).collect();
            let count = self.write_some(first.bytes.get(first.sent..).unwrap_or_default(), &fds)?;
            first.sent += count;
            if count > 0 {
                first.fds.clear();
            }
            if first.sent < first.bytes.len() {
                let stuck = count == 0;
                self.waiting.push_front(first);
                if stuck {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// True while something waits to be sent.
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// One write; 0 if the socket is full. The file descriptors go with the first byte.
    fn write_some(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, ProtocolError> {
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(fds.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ProtocolError::Socket(Errno::NOBUFS));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ProtocolError::Disconnected),
                Err(errno) => return Err(ProtocolError::Socket(errno)),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How one read can fail.
enum ReadError {
    WouldBlock,
    Reset,
    Protocol(ProtocolError),
}
