//! Guest memory: mapped ranges, and the table of regions that is made of them.
//!
//! The rules of this room, against which each line here is to be held:
//!
//! 1. Guest memory is shared with a guest that may be hostile. No `&` or `&mut` is ever made into it:
//!    only raw pointers, copied from and to with functions that do not assume that the bytes stand still.
//! 2. A value that the guest wrote is read once, validated, and then used from the copy.
//! 3. A pointer into a mapping is used only while something keeps the mapping alive (a [`Lease`], or the
//!    [`GuestMemory`] that gave it).
//! 4. A mapping may fault (a truncated file, a foreign hole): after a copy, ask whether the range is poisoned.
//! 5. A mapping belongs to the process that made it: a forked child does not have it.
//!
//! From the bottom up: [`MappedMemory`] is one mapped range; [`Backing`] is what the table sees of it, and
//! the seam for other kinds of memory; [`Region`]s with a backing make a [`GuestMemory`], an immutable table;
//! [`SharedMemoryTable`] holds the table of the moment. [`ForeignWindows`] is a guest's memory on Xen, mapped when it is touched;
//! [`GrantCache`] is what a guest there grants, mapped while it is used.

mod backing;
mod copy;
mod error;
mod fault;
mod fork;
mod grant_cache;
mod grant_copies;
mod guest;
mod mapped;
mod mapping;
#[cfg(test)]
pub(crate) mod on_demand;
mod part;
mod ranges;
mod rust_vmm;
mod table;
mod translate;
mod window;

pub use backing::{Access, Backing, Hold, Lease, Leased, MemoryKind};
pub use copy::{Source, Target, copy_from_guest, copy_to_guest};
pub use error::{MapError, MemoryError};
pub use fault::faults;
pub use fork::Owner;
pub use grant_cache::{GRANT_ADDRESS, GrantCache};
pub use guest::{GuestMemory, Region};
pub use mapped::{HugePage, MappedMemory};
pub(crate) use mapping::Mapping;
pub use part::Part;
pub use table::{CountedLease, SharedMemoryTable};
pub use translate::Translator;
pub use window::{AttachRequest, ForeignWindows, WINDOW};
