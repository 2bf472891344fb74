//! The vhost-user socket as a transport: one frontend at a time, and the next one when it is gone.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};

use super::{KernelDevices, XenDevices, backend::Backend, backend::BackendError};
use crate::endpoint::{Control, Event, Transport};

const LISTENER: u32 = 0;
const CONNECTION: u32 = 1;

/// A listening socket, a connected one, or (between two connections) neither.
pub struct VhostUserServer {
    listener: Option<OwnedFd>,
    backend: Option<Backend>,
    writing: bool,
    devices: Option<Arc<dyn XenDevices>>,
}

impl Default for VhostUserServer {
    /// Not connected; memory of Xen guests can be mapped where this host can.
    fn default() -> Self {
        let devices: Option<Arc<dyn XenDevices>> =
            if KernelDevices::are_there() { Some(Arc::new(KernelDevices)) } else { None };
        Self::with_devices(devices)
    }
}

impl VhostUserServer {
    /// Not connected; memory of Xen guests can be mapped by these devices.
    pub fn with_devices(devices: Option<Arc<dyn XenDevices>>) -> Self {
        Self { listener: None, backend: None, writing: false, devices }
    }

    /// Frontends come to this socket from now on. It is made non-blocking: a frontend may be gone again
    /// before it is accepted.
    pub fn listen(&mut self, listener: OwnedFd, control: &Control) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        if self.backend.is_none() {
            control.watch_transport(listener.as_fd(), LISTENER)?;
        }
        self.listener = Some(listener);
        Ok(())
    }

    /// Takes a connected socket; one that was there before is closed.
    pub fn adopt(
        &mut self,
        socket: OwnedFd,
        control: &Arc<Control>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Errno> {
        self.disconnect(control, events, None);
        let backend = Backend::new(socket, control, self.devices.clone());
        control.watch_transport(backend.as_fd(), CONNECTION)?;
        if let Some(listener) = &self.listener {
            control.unwatch_transport(listener.as_fd());
        }
        self.backend = Some(backend);
        self.writing = false;
        Ok(())
    }

    fn accept(&mut self, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        let Some(listener) = &self.listener else { return };
        let adopted = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => self.adopt(socket, control, events),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = adopted {
            events.push_back(Event::Warning(format!("a frontend could not be accepted: {errno}")));
        }
    }

    /// Ends the connection: the session, if there was one, and everything that the frontend gave us.
    fn disconnect(
        &mut self,
        control: &Arc<Control>,
        events: &mut VecDeque<Event>,
        why: Option<&BackendError>,
    ) {
        let Some(backend) = self.backend.take() else { return };
        control.unwatch_transport(backend.as_fd());
        backend.close(events);
        let reason = match why {
            Some(BackendError::Protocol(error)) if *error == super::ProtocolError::Disconnected => None,
            other => other.map(ToString::to_string),
        };
        events.push_back(Event::Disconnected(reason));
        if let Some(listener) = &self.listener
            && let Err(errno) = control.watch_transport(listener.as_fd(), LISTENER)
        {
            events.push_back(Event::Warning(format!("no further frontend can be accepted: {errno}")));
        }
    }

    /// Runs one step of the connection, if there is one, and ends it when the step fails.
    fn step(
        &mut self,
        control: &Arc<Control>,
        events: &mut VecDeque<Event>,
        step: impl FnOnce(&mut Backend, &mut VecDeque<Event>) -> Result<(), BackendError>,
    ) {
        let Some(backend) = &mut self.backend else { return };
        if let Err(error) = step(backend, events) {
            self.disconnect(control, events, Some(&error));
            return;
        }
        let writing = backend.wants_write();
        if writing != self.writing {
            self.writing = writing;
            control.watch_output(backend.as_fd(), CONNECTION, writing);
        }
    }
}

impl Transport for VhostUserServer {
    fn ready(&mut self, which: u32, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        match which {
            LISTENER => self.accept(control, events),
            _ => self.step(control, events, Backend::receive),
        }
    }

    fn handled(&mut self, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        self.step(control, events, Backend::advance);
    }

    fn config_changed(&mut self, _control: &Arc<Control>) {
        if let Some(backend) = &mut self.backend {
            backend.config_changed();
        }
    }

    fn queue_failed(&mut self, _index: u16, _control: &Arc<Control>) {
        if let Some(backend) = &mut self.backend {
            backend.queue_failed();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.backend.as_ref()?.deadline()
    }
}
