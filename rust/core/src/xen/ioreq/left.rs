//! A server that was left: its process is gone, or [has gone](IoreqServer::leave), and the vCPUs that want something of it wait.

use std::sync::{Arc, Mutex};

use super::{
    page::{PageSource, map_page},
    pending::PendingRequest,
    server::{Inner, IoreqServer, Ports, ServerCalls, ServerError, vcpu_ports},
};
use crate::{
    memory::Owner,
    xen::{dm_op::DeviceModel, evtchn::EventChannels},
};

impl IoreqServer {
    /// Ends a server that was left, and gives what vCPUs wait for. When all of it is answered there is nothing left of the server.
    ///
    /// Somebody has to be there for all the ranges that it had before this is called: from here on nothing goes to this one.
    ///
    /// # Errors
    /// There is no server of this number; or a process serves it, which has bound its event channels (or had the kernel do so, for
    /// [kicks](IoreqServer::kick_in_kernel), and was killed). Then it is as before.
    pub fn take_over(calls: &ServerCalls, domain: u16, id: u16) -> Result<Vec<PendingRequest>, ServerError> {
        let model = DeviceModel::new(Arc::clone(&calls.model), domain);
        let events = EventChannels::new(Arc::clone(&calls.events));
        let page = map_page(&*calls.foreign, &model, id, PageSource::Resource)?;
        let mut ports = Ports::default();
        for port in vcpu_ports(&model, &page)? {
            match events.bind_interdomain(domain, port) {
                Ok(ours) => ports.local.push(ours),
                Err(refused) => {
                    ports.local.drain(..).for_each(|ours| drop(events.unbind(ours)));
                    return Err(refused.into());
                }
            }
        }
        let vcpus = ports.local.len();
        let (eventfds, owner) = (Arc::clone(&calls.eventfds), Owner::this_process());
        // From here on dropping it, which the last of the requests does, ends it.
        let inner = Arc::new(Inner { model, events, eventfds, id, page, owner, ports: Mutex::new(ports) });
        inner.model.set_ioreq_server_state(id, false)?;
        // There are fewer vCPUs than slots.
        let requests = (0..vcpus as u32).filter_map(|vcpu| inner.page.take_over(vcpu));
        Ok(requests.map(|request| PendingRequest::new(request, Arc::clone(&inner))).collect())
    }
}
