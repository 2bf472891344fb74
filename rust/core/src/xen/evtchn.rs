//! /dev/xen/evtchn: event channels, by which domains wake each other.
//!
//! A port is one end of a channel. Linux masks one when it has told of it, until it is unmasked; what comes meanwhile is told
//! after that, so that nothing is lost.
//!
//! # Safety
//! Each ioctl gets a pointer to the structure that its number says, which lives across the call.
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{fs::OFlags, io::Errno};

use super::{
    abi::evtchn::{
        BIND_INTERDOMAIN, BIND_UNBOUND_PORT, BIND_VIRQ, BindInterdomain, NOTIFY, RESTRICT, UNBIND,
    },
    call_error::{CallError, check_owner},
    open::{OpenError, open_device},
};
use crate::memory::Owner;

/// How many pending ports one read takes; the rest is told by the next one.
const BATCH: usize = 64;

/// The calls of event channels: the kernel's, or those of a simulated hypervisor. The descriptor is readable while a port is
/// pending.
pub trait EventCalls: AsFd + fmt::Debug + Send + Sync {
    /// Binds to a port that another domain has made for us; gives ours.
    fn bind_interdomain(&self, domain: u16, port: u32) -> Result<u32, Errno>;

    /// Makes a port to which a domain may bind.
    fn bind_unbound(&self, domain: u16) -> Result<u32, Errno>;

    /// Makes a port of a virtual interrupt.
    fn bind_virq(&self, virq: u32) -> Result<u32, Errno>;

    /// Closes a port.
    fn unbind(&self, port: u32) -> Result<(), Errno>;

    /// Wakes the other end of a port.
    fn notify(&self, port: u32) -> Result<(), Errno>;

    /// Appends ports that are pending, without waiting. Each is masked from here on.
    fn pending(&self, ports: &mut Vec<u32>) -> Result<(), Errno>;

    /// Lets a port be pending again. One that is not ours, or not masked, is passed over.
    fn unmask(&self, port: u32) -> Result<(), Errno>;

    /// From now on only ports of this domain can be bound, and no virtual interrupt. It cannot be undone.
    fn restrict(&self, domain: u16) -> Result<(), Errno>;
}

/// The device. What it has bound goes with it.
#[derive(Debug)]
pub struct Evtchn {
    device: OwnedFd,
}

impl Evtchn {
    /// Opens /dev/xen/evtchn.
    ///
    /// # Errors
    /// ENOENT where there is none, EACCES without the permission.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self { device: open_device("/dev/xen/evtchn", OFlags::NONBLOCK)? })
    }

    fn ioctl<T>(&self, number: u32, argument: &T) -> Result<u32, Errno> {
        let argument: *const T = argument;
        // SAFETY: each caller passes the structure that belongs to the number; the kernel reads it and does not write.
        let result =
            unsafe { libc::ioctl(self.device.as_raw_fd(), libc::c_ulong::from(number) as _, argument) };
        u32::try_from(result)
            .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl EventCalls for Evtchn {
    fn bind_interdomain(&self, domain: u16, port: u32) -> Result<u32, Errno> {
        let request = BindInterdomain { remote_domain: domain.into(), remote_port: port };
        self.ioctl(BIND_INTERDOMAIN, &request)
    }

    fn bind_unbound(&self, domain: u16) -> Result<u32, Errno> {
        self.ioctl(BIND_UNBOUND_PORT, &u32::from(domain))
    }

    fn bind_virq(&self, virq: u32) -> Result<u32, Errno> {
        self.ioctl(BIND_VIRQ, &virq)
    }

    fn unbind(&self, port: u32) -> Result<(), Errno> {
        self.ioctl(UNBIND, &port).map(drop)
    }

    fn notify(&self, port: u32) -> Result<(), Errno> {
        self.ioctl(NOTIFY, &port).map(drop)
    }

    fn pending(&self, ports: &mut Vec<u32>) -> Result<(), Errno> {
        let mut batch = [0u32; BATCH];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut batch);
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.device, &mut *bytes)) {
            Ok(len) => ports.extend(batch.iter().take(len / size_of::<u32>())),
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn unmask(&self, port: u32) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::io::write(&self.device, &port.to_ne_bytes())).map(drop)
    }

    fn restrict(&self, domain: u16) -> Result<(), Errno> {
        self.ioctl(RESTRICT, &domain).map(drop)
    }
}

/// Event channels of this process, with errors that say what failed.
#[derive(Clone, Debug)]
pub struct EventChannels {
    calls: Arc<dyn EventCalls>,
    owner: Owner,
}

impl EventChannels {
    /// Those of the kernel: opens the device.
    ///
    /// # Errors
    /// ENOENT where there is no such device, EACCES without the permission.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self::new(Arc::new(Evtchn::open()?)))
    }

    /// Those of somebody who answers the calls.
    pub fn new(calls: Arc<dyn EventCalls>) -> Self {
        Self { calls, owner: Owner::this_process() }
    }

    fn calls(&self) -> Result<&dyn EventCalls, CallError> {
        check_owner(self.owner, "the event channel device")?;
        Ok(&*self.calls)
    }

    /// Is this the process that they belong to?
    pub fn is_ours(&self) -> bool {
        self.owner.is_this_process()
    }

    /// Binds to a port that another domain has made for us; gives ours. Xen marks it pending once, in case that an event
    /// was lost before.
    ///
    /// # Errors
    /// The domain or its port is not there, or is not for us.
    pub fn bind_interdomain(&self, domain: u16, port: u32) -> Result<u32, CallError> {
        let what = || format!("binding to port {port} of domain {domain}");
        self.calls()?.bind_interdomain(domain, port).map_err(|errno| CallError::refused(what(), errno))
    }

    /// Makes a port to which a domain may bind, once.
    ///
    /// # Errors
    /// No port is left. That the domain is there is not asked.
    pub fn bind_unbound(&self, domain: u16) -> Result<u32, CallError> {
        let what = || format!("making a port for domain {domain}");
        self.calls()?.bind_unbound(domain).map_err(|errno| CallError::refused(what(), errno))
    }

    /// Makes a port of a virtual interrupt (VIRQ_*, xen/include/public/xen.h).
    ///
    /// # Errors
    /// EEXIST if somebody has it.
    pub fn bind_virq(&self, virq: u32) -> Result<u32, CallError> {
        let what = || format!("binding virtual interrupt {virq}");
        self.calls()?.bind_virq(virq).map_err(|errno| CallError::refused(what(), errno))
    }

    /// Closes a port.
    ///
    /// # Errors
    /// ENOTCONN for one that is not bound here.
    pub fn unbind(&self, port: u32) -> Result<(), CallError> {
        self.calls()?
            .unbind(port)
            .map_err(|errno| CallError::refused(format!("unbinding port {port}"), errno))
    }

    /// Wakes the other end of a port. Where nobody has bound to it yet, nothing is woken, and that is no error.
    ///
    /// # Errors
    /// ENOTCONN for one that is not bound here.
    pub fn notify(&self, port: u32) -> Result<(), CallError> {
        self.calls()?
            .notify(port)
            .map_err(|errno| CallError::refused(format!("notifying port {port}"), errno))
    }

    /// Appends ports that are pending, without waiting: those that were notified since they were unmasked. Each is masked
    /// from here on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pending(&self, ports: &mut Vec<u32>) -> Result<(), CallError> {
        let what = || "reading pending event channels".to_owned();
        self.calls()?.pending(ports).map_err(|errno| CallError::refused(what(), errno))
    }

    /// Lets a port be pending again, at once if it was notified meanwhile. One that is not ours, or not masked, is passed
    /// over.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unmask(&self, port: u32) -> Result<(), CallError> {
        self.calls()?
            .unmask(port)
            .map_err(|errno| CallError::refused(format!("unmasking port {port}"), errno))
    }

    /// From now on only ports of this domain can be bound, and no virtual interrupt. It cannot be undone.
    ///
    /// # Errors
    /// EACCES if it is restricted already, EINVAL for dom0.
    pub fn restrict(&self, domain: u16) -> Result<(), CallError> {
        let what = || format!("restricting event channels to domain {domain}");
        self.calls()?.restrict(domain).map_err(|errno| CallError::refused(what(), errno))
    }
}

impl AsFd for EventChannels {
    /// Readable while a port is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.calls.as_fd()
    }
}
