//! A device behind our backend, in a thread: it gives back each request's bytes reversed.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use xenvirt_core::{
    endpoint::{Control, Endpoint, Event, Offer},
    vhost_user::{VhostUserServer, virtio_features},
};

/// The largest size of each of its two queues.
pub const QUEUE_SIZE: u16 = 16;
/// The features of the device.
pub const FEATURES: u64 = virtio_features::VERSION_1;
/// Its configuration space.
pub const CONFIG: &[u8] = b"configuration";
/// How long a test that has gone wrong waits before it says so.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The device and its thread.
pub struct Served {
    pub control: Arc<Control>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves one connected socket.
    #[allow(dead_code, reason = "each test binary uses one of the two")]
    pub fn connection(socket: OwnedFd) -> Self {
        Self::start(|server, control, events| server.adopt(socket, control, events))
    }

    /// Serves a listening socket, one frontend after the other.
    #[allow(dead_code, reason = "each test binary uses one of the two")]
    pub fn listener(socket: OwnedFd) -> Self {
        Self::start(|server, control, _| server.listen(socket, control))
    }

    fn start(
        step: impl FnOnce(
            &mut VhostUserServer,
            &Arc<Control>,
            &mut std::collections::VecDeque<Event>,
        ) -> Result<(), rustix::io::Errno>,
    ) -> Self {
        let offer = Offer {
            features: FEATURES,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config: CONFIG.to_vec(),
            patience: Duration::ZERO,
        };
        let mut endpoint = Endpoint::new(offer, VhostUserServer::default()).unwrap();
        endpoint.drive(step).unwrap();
        let control = Arc::clone(endpoint.control());
        let (sender, events) = channel();
        let thread = thread::spawn(move || serve(endpoint, &sender));
        Self { control, events, thread: Some(thread) }
    }

    /// Waits for one of the events that a device has to deal with.
    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.control.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn serve(mut endpoint: Endpoint<VhostUserServer>, events: &Sender<Event>) {
    loop {
        match endpoint.wait(None).unwrap() {
            Event::Stopped => return,
            Event::Kick(index) => {
                let queue = Arc::clone(&endpoint.control().queues[usize::from(index)]);
                // An error is the driver's, and stands in the queue's state.
                while let Ok(Some(mut chain)) = queue.pop() {
                    let mut bytes = vec![0; chain.readable().min(chain.writable()) as usize];
                    if chain.read(&mut bytes).is_ok() {
                        bytes.reverse();
                        let _ = chain.write(&bytes);
                    }
                    let _ = chain.complete(None);
                }
            }
            // Nobody listens any more where the test is over.
            event => drop(events.send(event)),
        }
    }
}
