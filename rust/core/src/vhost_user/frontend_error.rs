//! What can go wrong for a frontend.

use std::{path::PathBuf, time::Duration};

use rustix::io::Errno;

use super::{ProtocolError, RequestName};

/// Why a frontend's call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// Nobody answered at that path.
    #[error("cannot connect to {}: {errno} (tried for {timeout:?})", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the last try gave.
        errno: Errno,
        /// How long was tried.
        timeout: Duration,
    },
    /// There is something at that path, and nobody can connect to it.
    #[error("cannot connect to {}: it is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The peer is there and does not answer.
    #[error("no answer to {request} within {timeout:?}; the connection is of no more use")]
    Timeout {
        /// What was asked.
        request: RequestName,
        /// How long was waited.
        timeout: Duration,
    },
    /// A signal handler wants to be heard.
    #[error("interrupted by a signal while waiting for {0}")]
    Interrupted(String),
    /// The peer went away.
    #[error("the peer closed the connection {during}{more}")]
    Closed {
        /// What was going on.
        during: String,
        /// What can be said of it beside.
        more: String,
    },
    /// The peer's message breaks a rule, or the socket failed.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// The peer says no (REPLY_ACK), and goes on.
    #[error("the peer refused {request} (it answered {value:#x})")]
    Refused {
        /// What was asked.
        request: RequestName,
        /// Its answer, not 0.
        value: u64,
    },
    /// Asked for without the feature that it needs.
    #[error("{request} needs the protocol feature {feature}, which {why}")]
    NotNegotiated {
        /// What was asked.
        request: RequestName,
        /// The feature's name.
        feature: String,
        /// "the peer does not offer" or "was not acked".
        why: &'static str,
    },
    /// A daemon of rust-vmm that is built for Xen drops whoever does not ack XEN_MMAP.
    #[error(
        "the peer offers XEN_MMAP and the protocol features asked for ({asked}) leave it out: a daemon built for \
         Xen ends the connection then; add XEN_MMAP, regions with flags 0 are ordinary shared files"
    )]
    XenMmapNeeded {
        /// The protocol features that were asked for.
        asked: String,
    },
    /// An argument that cannot be sent.
    #[error("{what} {value:#x}, must be {allowed}")]
    Argument {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        allowed: String,
    },
    /// The peer's answer does not fit the question.
    #[error("{request}: the peer answered {answer}, {expected}")]
    Answer {
        /// What was asked.
        request: RequestName,
        /// What came.
        answer: String,
        /// What should have come.
        expected: String,
    },
    /// An earlier error ended the connection.
    #[error("the connection ended earlier: {0}")]
    Ended(String),
}

impl FrontendError {
    /// True where what the peer said or left unsaid explains the error: the wire log belongs to it.
    pub fn is_of_the_peer(&self) -> bool {
        !matches!(
            self,
            Self::Connect { .. } | Self::Interrupted(_) | Self::NotNegotiated { .. } | Self::Argument { .. }
        )
    }
}
