//! What the objects of this room have in common: they can be closed, and wait with the interpreter let go.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use pyo3::{exceptions::PyValueError, prelude::*};
use xenvirt_core::event_loop::{Woken, wait_readable};

use crate::errors::Error;

/// Something until it is closed.
pub struct Closable<T> {
    name: &'static str,
    value: Mutex<Option<Arc<T>>>,
}

impl<T> Closable<T> {
    pub fn new(name: &'static str, value: T) -> Self {
        Self { name, value: Mutex::new(Some(Arc::new(value))) }
    }

    pub fn get(&self) -> Result<Arc<T>, Error> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).clone();
        value.ok_or_else(|| PyValueError::new_err(format!("{} is closed", self.name)).into())
    }

    /// What was there; None if it is closed already.
    pub fn close(&self) -> Option<Arc<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// When a wait of this many seconds ends; None for ever.
pub fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else { return Ok(None) };
    let duration = Duration::try_from_secs_f64(seconds);
    let duration = duration.map_err(|error| PyValueError::new_err(format!("timeout: {error}")))?;
    Ok(Instant::now().checked_add(duration))
}

/// Waits for a descriptor; false when the time is over. Signals have their handlers run.
pub fn wait(py: Python<'_>, fd: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool, Error> {
    loop {
        match py.detach(|| wait_readable(fd, deadline))? {
            Woken::Ready => return Ok(true),
            Woken::TimedOut => return Ok(false),
            Woken::Interrupted => py.check_signals()?,
        }
    }
}
