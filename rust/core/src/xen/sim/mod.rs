//! A simulated hypervisor, for tests on a machine without Xen: domains, their frames, grants and event channels, behind the
//! same calls as the kernel's devices.
//!
//! A [`Hypervisor`] is one machine whose dom0 is of a [`Kind`]; how it answers was measured on real ones
//! (python/xenvirt/testing/measured.py), and the same tests run on both. A [`Domain`] is a handle to one of its domains: what
//! its kernel offers to programs ([`Domain::privcmd`], [`Domain::gntdev`], ...), and what the guest itself does: its memory,
//! its grants, what its vCPUs access. Frames are pages of memfds, so that what is mapped is memory as any other.
//!
//! Where a process's own memory cannot do what the kernel's does: a hole on Arm is a SIGBUS instead of a SIGKILL; one of a
//! PVH dom0 reads 0xff, but keeps what is written to it; a range has not the flags VM_IO, VM_PFNMAP and VM_DONTEXPAND. There
//! are no PV guests, no guest code, no xenstore, and the kernel takes no eventfds.

mod access;
mod domain;
mod evtchn;
mod frames;
mod gntalloc;
mod gntdev;
mod grants;
mod machine;
mod model;
mod pages;
mod privcmd;
mod server;
mod vma;

pub use access::{Access, AccessResult, VcpuAccess};
pub use domain::{Domain, NewDomain};
pub use evtchn::SimulatedEvtchn;
pub use gntalloc::SimulatedGntalloc;
pub use gntdev::SimulatedGntdev;
pub use machine::{Hypervisor, Kind};
pub use privcmd::{Batch, SimulatedPrivcmd};
