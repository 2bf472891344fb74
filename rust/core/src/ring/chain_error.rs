//! Why something could not be done with a chain, or with many. The ring itself is well.

/// Why an operation on one chain failed. The ring itself is well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The queue was stopped or reset after the chain was taken: the driver has it back.
    #[error("chain {head} is stale: its queue was stopped or reset after the chain was taken")]
    Stale {
        /// Head of the chain.
        head: u16,
    },
    /// It was completed before.
    #[error("chain {head} is completed already")]
    Completed {
        /// Head of the chain.
        head: u16,
    },
    /// More bytes than the rest of the writable part takes; nothing was written.
    #[error("chain {head}: {len} bytes do not fit, {room} writable bytes are left")]
    DoesNotFit {
        /// Head of the chain.
        head: u16,
        /// Bytes that were to be written (or claimed as written).
        len: u64,
        /// Bytes that fit.
        room: u64,
    },
    /// The memory of the chain went away (a truncated file).
    #[error("chain {head}: its guest memory is gone: what backed it was truncated or taken away")]
    Fault {
        /// Head of the chain.
        head: u16,
    },
    /// This process was forked from the one whose chain it is.
    #[error("chain {head} belongs to the process that this one was forked from")]
    Forked {
        /// Head of the chain.
        head: u16,
    },
    /// The kernel refused to move bytes between the file and the chain.
    #[error("chain {head}: {errno}")]
    Io {
        /// Head of the chain.
        head: u16,
        /// What it said.
        errno: rustix::io::Errno,
    },
}

/// Why an operation on a batch failed. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The queue was stopped or reset after the batch was taken: the driver has its chains back.
    #[error("the batch is stale: its queue was stopped or reset after the batch was taken")]
    Stale,
    /// This process was forked from the one whose batch it is.
    #[error("the batch belongs to the process that this one was forked from")]
    Forked,
    /// The memory of a request went away (a truncated file).
    #[error("the guest memory of the batch is gone: what backed it was truncated or taken away")]
    Fault,
    /// A request of the batch was completed before: the driver has it back.
    #[error("chain {head} of the batch is completed already")]
    Completed {
        /// Head of the chain.
        head: u16,
    },
    /// A list that goes with the batch has not one entry for each request.
    #[error("{given} {what} given for a batch of {requests} requests")]
    Length {
        /// What the list is.
        what: &'static str,
        /// Its entries.
        given: usize,
        /// Requests of the batch.
        requests: usize,
    },
    /// The value does not fit the trailer.
    #[error("trailer value {value:#x} does not fit {size} bytes")]
    TrailerValue {
        /// The value.
        value: u64,
        /// Bytes of the trailer.
        size: usize,
    },
    /// A field that is not in the header.
    #[error("field at byte {offset}, {width} wide: not a field of a header of {header} bytes")]
    Field {
        /// Where it begins.
        offset: usize,
        /// Its width in bytes.
        width: usize,
        /// Bytes of the header.
        header: usize,
    },
}
