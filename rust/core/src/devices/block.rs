//! Requests of the block device (virtio 1.3, section 5.2.6), held against the disk.

use crate::ring::{BatchError, BatchLayout, QueueRequest};

pub(super) const SECTOR: u64 = 512;
/// Bytes in the answer to GET_ID.
pub(super) const ID_SIZE: usize = 20;
/// Bytes of one range of DISCARD and WRITE_ZEROES.
const RANGE_SIZE: usize = 16;
/// The most ranges in one request, and sectors in one range.
const MAX_RANGES: usize = 32;
const MAX_RANGE_SECTORS: u64 = 1 << 22;

/// Header of 16 bytes, a byte of status.
pub(super) const LAYOUT: BatchLayout = BatchLayout { header: 16, trailer: 1 };

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;

pub(super) const OK: u8 = 0;
pub(super) const IOERR: u8 = 1;
pub(super) const UNSUPP: u8 = 2;

/// Bytes of the disk that are to become zeroes, or to be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub offset: u64,
    pub len: u64,
    /// The storage may be freed.
    pub unmap: bool,
}

/// What a request asks for, after all that can be wrong with it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Fill the writable data from this byte on.
    Read { offset: u64 },
    /// Store the readable data from this byte on.
    Write { offset: u64 },
    /// Make durable what was written.
    Flush,
    /// Say who the disk is.
    Id,
    /// Free ranges.
    Discard(Vec<Range>),
    /// Make ranges zero.
    Zero(Vec<Range>),
    /// Nothing: it is answered by this status.
    Refuse(u8),
}

/// What requests are held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    /// Bytes; whole sectors.
    pub size: u64,
    pub read_only: bool,
}

impl Disk {
    /// Understands a request.
    pub(super) fn job(&self, request: &QueueRequest) -> Result<Job, BatchError> {
        let (kind, sector) = fields(request.header());
        Ok(match kind {
            IN => self
                .place(sector, request.writable())
                .map_or(Job::Refuse(IOERR), |offset| Job::Read { offset }),
            OUT if !self.read_only => self
                .place(sector, request.readable())
                .map_or(Job::Refuse(IOERR), |offset| Job::Write { offset }),
            FLUSH => Job::Flush,
            GET_ID if request.writable() <= ID_SIZE as u64 => Job::Id,
            DISCARD | WRITE_ZEROES if !self.read_only => {
                let mut bytes = [0; MAX_RANGES * RANGE_SIZE];
                let len = request.readable();
                if len > bytes.len() as u64 {
                    return Ok(Job::Refuse(IOERR));
                }
                let len = request.read(&mut bytes)?;
                match (self.ranges(kind, bytes.get(..len).unwrap_or_default()), kind) {
                    (Ok(ranges), DISCARD) => Job::Discard(ranges),
                    (Ok(ranges), _) => Job::Zero(ranges),
                    (Err(status), _) => Job::Refuse(status),
                }
            }
            OUT | GET_ID | DISCARD | WRITE_ZEROES => Job::Refuse(IOERR),
            _ => Job::Refuse(UNSUPP),
        })
    }

    /// The first byte, when `len` bytes from a sector on are whole sectors of the disk.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        (len.is_multiple_of(SECTOR) && offset <= self.size && len <= self.size - offset).then_some(offset)
    }

    /// The ranges of one request; all of them are checked before any is done.
    fn ranges(&self, kind: u32, bytes: &[u8]) -> Result<Vec<Range>, u8> {
        let (ranges, rest) = bytes.as_chunks::<RANGE_SIZE>();
        if ranges.is_empty() || !rest.is_empty() {
            return Err(IOERR);
        }
        let known = if kind == WRITE_ZEROES { UNMAP } else { 0 };
        let split = |range: &[u8; RANGE_SIZE]| {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *range;
            let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let (count, flags) = (u32::from_le_bytes([i, j, k, l]), u32::from_le_bytes([m, n, o, p]));
            (sector, u64::from(count), flags)
        };
        if ranges.iter().map(split).any(|(_, _, flags)| flags & !known != 0) {
            return Err(UNSUPP);
        }
        let checked = ranges.iter().map(split).map(|(sector, count, flags)| {
            let len = count * SECTOR;
            let offset = self.place(sector, len).filter(|_| count <= MAX_RANGE_SECTORS)?;
            Some(Range { offset, len, unmap: flags & UNMAP != 0 })
        });
        checked.collect::<Option<_>>().ok_or(IOERR)
    }
}

/// Type and sector of a header.
fn fields(header: &[u8]) -> (u32, u64) {
    match header {
        &[a, b, c, d, _, _, _, _, e, f, g, h, i, j, k, l] => {
            (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes([e, f, g, h, i, j, k, l]))
        }
        _ => (u32::MAX, 0),
    }
}
