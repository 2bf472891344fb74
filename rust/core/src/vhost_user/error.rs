//! What can be wrong with a message or a connection. All of it is the peer's doing, or the socket's.

use rustix::io::Errno;

use super::{FrontendRequest, RequestName};

/// Why a message or a connection is of no more use. After any of these the connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer closed the connection between two messages: the ordinary end.
    #[error("the peer closed the connection")]
    Disconnected,
    /// The peer went away inside a message.
    #[error("the peer closed the connection in mid-message: {have} of {want} bytes of {request} had come")]
    DisconnectedInMessage {
        /// The request, or "a header" where not even that had come.
        request: String,
        /// Bytes that had come.
        have: usize,
        /// Bytes that the message, as far as it is known, has.
        want: usize,
    },
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(Errno),
    /// The header's flags are not what they must be.
    #[error("{request}: header flags {flags:#x}, {problem}")]
    Flags {
        /// The request.
        request: RequestName,
        /// The flags as they came.
        flags: u32,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// The payload has another length than this request has.
    #[error("{request}: payload of {size} bytes, must be {allowed}")]
    Size {
        /// The request.
        request: RequestName,
        /// Bytes in the payload, or announced by the header.
        size: usize,
        /// What is allowed.
        allowed: String,
    },
    /// Too many or too few file descriptors. Those that came were closed.
    #[error("{request}: {count} file descriptors, must be {allowed}")]
    Fds {
        /// The request.
        request: RequestName,
        /// How many came; where the kernel cut the list, how many it left.
        count: usize,
        /// What is allowed.
        allowed: String,
    },
    /// A value in the payload is not one of those that are allowed.
    #[error("{request}: {what} {value:#x}, must be {allowed}")]
    Value {
        /// The request.
        request: RequestName,
        /// Which value.
        what: &'static str,
        /// The value as it came.
        value: u64,
        /// What is allowed.
        allowed: String,
    },
    /// A reply to something else than what was asked.
    #[error("a reply to {got} came where one to {expected} was awaited")]
    WrongReply {
        /// The request that waits.
        expected: RequestName,
        /// What the reply says that it answers.
        got: RequestName,
    },
    /// A request is not to be had: its number is known, what it asks for is not implemented, or its
    /// number is not known. Not made by the codec; for callers that have to refuse one.
    #[error("{request} is not supported here")]
    Unsupported {
        /// The request.
        request: RequestName,
    },
    /// The peer does not read what is sent to it.
    #[error("{limit} messages wait to be sent already, and the peer does not read them")]
    Backlog {
        /// How many messages may wait.
        limit: usize,
    },
}

impl ProtocolError {
    /// True if the peer only went away, cleanly or not; false if it broke a rule or the socket failed.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Disconnected | Self::DisconnectedInMessage { .. })
    }

    /// The name of the message that the error is about, where there is one.
    pub fn request(&self) -> Option<String> {
        match self {
            Self::Flags { request, .. }
            | Self::Size { request, .. }
            | Self::Fds { request, .. }
            | Self::Value { request, .. }
            | Self::WrongReply { expected: request, .. }
            | Self::Unsupported { request } => Some(request.to_string()),
            Self::DisconnectedInMessage { request, .. } => Some(request.clone()),
            Self::Disconnected | Self::Socket(_) | Self::Backlog { .. } => None,
        }
    }

    /// The error for a request that the codec knows and the caller does not implement.
    pub fn unsupported(request: &FrontendRequest) -> Self {
        Self::Unsupported { request: request.name() }
    }
}
