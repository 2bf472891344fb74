//! Timers of the kernel as descriptors, which Python has from 3.13 on (`os.timerfd_create`).

use std::{
    os::fd::{IntoRawFd, RawFd},
    time::Duration,
};

use pyo3::{exceptions::PyValueError, prelude::*};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::errors::Error;

#[pyfunction]
pub fn interval_timer(seconds: f64) -> PyResult<RawFd> {
    let interval = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|interval| !interval.is_zero())
        .and_then(|interval| Timespec::try_from(interval).ok())
        .ok_or_else(|| {
            PyValueError::new_err(format!("an interval of {seconds} s, must be more than 0 ns"))
        })?;
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
        .map_err(Error::Errno)?;
    let times = Itimerspec { it_interval: interval, it_value: interval };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times).map_err(Error::Errno)?;
    Ok(timer.into_raw_fd())
}
