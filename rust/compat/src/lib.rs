//! Nothing but tests: what xenvirt says to Xen's devices is what rust-vmm's vm-memory says with its feature `xen`, and what the
//! headers of Debian's libxen-dev say.
