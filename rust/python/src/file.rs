//! A file as Python names one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyo3::{intern, prelude::*};

use crate::buffer::duplicate_fd;

/// The number of an open file, or an object that has a `fileno()`. A duplicate is taken for the call.
pub struct FileArgument(OwnedFd);

impl From<FileArgument> for OwnedFd {
    fn from(file: FileArgument) -> Self {
        file.0
    }
}

impl AsFd for FileArgument {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<'py> FromPyObject<'_, 'py> for FileArgument {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let number = match object.extract::<i32>() {
            Ok(number) => number,
            Err(_) => object.call_method0(intern!(object.py(), "fileno"))?.extract()?,
        };
        duplicate_fd(number).map(Self)
    }
}
