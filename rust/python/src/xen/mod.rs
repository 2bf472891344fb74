//! Xen's devices for Python, a file for each.

pub mod foreign;
