//! What can go wrong with guest memory: making a mapping, and reaching through a table of them.

use rustix::io::Errno;

use crate::xen::{ForeignMapError, GrantMapError};

/// Why an access to guest memory failed, or a table was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The range does not lie in the memory table: it begins or ends outside, spans a hole, or wraps.
    #[error("guest range {address:#x}..+{len:#x} is not in the memory table ({regions})")]
    OutOfRange {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// The table, in words.
        regions: String,
    },
    /// No region has this address in the frontend's own address space.
    #[error("user address {address:#x} is in no region of the memory table")]
    NotUser {
        /// Frontend user address.
        address: u64,
    },
    /// The range lies in the table, in more than one region: it has no single address in this process.
    #[error(
        "guest range {address:#x}..+{len:#x} crosses from one region into the next; a view needs one region"
    )]
    Crossing {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two regions overlap, or one is empty or wraps.
    #[error("memory table refused: {0}")]
    BadTable(String),
    /// The region is mapped read-only.
    #[error("guest range {address:#x}..+{len:#x} is read-only")]
    ReadOnly {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The memory went away under us (a truncated file).
    #[error(
        "guest range {address:#x}..+{len:#x} is gone: what backed its region was truncated or taken away"
    )]
    Fault {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The memory of a view or a buffer went away under it.
    #[error("the memory of the view is gone: what backed its region was truncated or taken away")]
    Gone,
    /// Memory that is mapped when it is touched could not be mapped.
    #[error("guest range {address:#x}..+{len:#x} cannot be reached: {source}")]
    Unreachable {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// What the backing said.
        source: MapError,
    },
    /// The memory belongs to the process that this one was forked from.
    #[error("guest memory of process {owner} used in process {user}: mappings are not inherited by fork")]
    Forked {
        /// The process that mapped it.
        owner: u32,
        /// The process that wanted to use it.
        user: u32,
    },
    /// The table was closed by its owner.
    #[error("guest memory is closed")]
    Closed,
}

/// Why a range could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The length is 0, or does not fit the address space.
    #[error("cannot map {0} bytes: the length must be between 1 and 2^63 - 1, its end too")]
    Length(u64),
    /// The file is too short: its missing pages could be mapped, but not touched.
    #[error("cannot map {len} bytes at offset {offset:#x} of the file: it has {size} bytes")]
    BeyondEnd {
        /// Length in bytes.
        len: u64,
        /// Offset in the file.
        offset: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// The kernel refused to map.
    #[error("cannot map {len} bytes at offset {offset:#x} of the file: {errno}")]
    Refused {
        /// Length in bytes.
        len: u64,
        /// Offset in the file.
        offset: u64,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel refused to make memory.
    #[error("cannot make {len} bytes of shared memory in pages of {page} bytes: {errno}")]
    NotMade {
        /// Length in bytes.
        len: u64,
        /// Size of a page in bytes.
        page: u64,
        /// What the kernel said; ENOSPC where no huge pages are left.
        errno: Errno,
    },
    /// Frames of another domain.
    #[error(transparent)]
    Foreign(#[from] ForeignMapError),
    /// Grants of other domains.
    #[error(transparent)]
    Grant(#[from] GrantMapError),
}

impl MapError {
    /// The kernel's error, where the kernel was asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Length(_) | Self::BeyondEnd { .. } => None,
            Self::Refused { errno, .. } | Self::NotMade { errno, .. } => Some(*errno),
            Self::Foreign(error) => error.errno(),
            Self::Grant(error) => error.errno(),
        }
    }
}
