//! `xenvirt._native`: the core of xenvirt for Python. No logic stands here.

mod buffer;
mod errors;

/// The module, as Python sees it.
#[pyo3::pymodule]
mod _native {}
