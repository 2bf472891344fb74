//! Guest memory: mapped ranges, and the table of regions that is made of them.
//!
//! The rules of this room, against which each line here is to be held:
//!
//! 1. Guest memory is shared with a guest that may be hostile. No `&` or `&mut` is ever made into it:
//!    only raw pointers, copied from and to with functions that do not assume that the bytes stand still.
//! 2. A value that the guest wrote is read once, validated, and then used from the copy.
//! 3. A pointer into a mapping is used only while something keeps the mapping alive (an `Arc` of it).
//! 4. A mapping may fault (a truncated file, a foreign hole): after a copy, ask whether the range is poisoned.

mod guest;
mod mapped;

pub use guest::{GuestMemory, MemoryError, Region};
pub use mapped::{Backing, MapError, MappedMemory, MemoryKind};
