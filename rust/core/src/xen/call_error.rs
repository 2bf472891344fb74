//! Why a call to the hypervisor was refused, in words.

use rustix::io::Errno;

use crate::memory::{MemoryError, Owner};

/// A call that the kernel or Xen refused, or that was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The kernel or Xen refused.
    #[error("{what}: {errno}{hint}")]
    Refused {
        /// What was asked for, and of whom.
        what: String,
        /// What the kernel says.
        errno: Errno,
        /// What it means here.
        hint: &'static str,
    },
    /// The object belongs to the process that this one was forked from.
    #[error("{what} of process {owner} used in process {user}: it is not inherited by fork")]
    Forked {
        /// The object.
        what: &'static str,
        /// The process that made it.
        owner: u32,
        /// The process that wanted to use it.
        user: u32,
    },
    /// The object was closed.
    #[error("{0} is closed")]
    Closed(&'static str),
    /// An argument that no hypervisor would take; none was asked.
    #[error("{0}")]
    Argument(String),
}

impl CallError {
    /// A refusal, with a hint where the errno has a meaning of its own.
    pub(crate) fn refused(what: String, errno: Errno) -> Self {
        let hint = match errno {
            Errno::SRCH => " (there is no such domain)",
            Errno::PERM | Errno::ACCESS => {
                " (the device is restricted to another domain, or this one has not the right)"
            }
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY => " (this Xen or this kernel does not have it)",
            Errno::NOTCONN => " (no such port is bound here)",
            _ => "",
        };
        Self::Refused { what, errno, hint }
    }

    /// A refusal whose words say all.
    pub fn refusal(what: String, errno: Errno) -> Self {
        Self::Refused { what, errno, hint: "" }
    }

    /// The kernel's error; None where the kernel was not asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// An error in a child of the process that an object belongs to.
pub(crate) fn check_owner(owner: Owner, what: &'static str) -> Result<(), CallError> {
    match owner.check() {
        Err(MemoryError::Forked { owner, user }) => Err(CallError::Forked { what, owner, user }),
        _ => Ok(()),
    }
}
