//! A server over a domain whose vCPUs are ours to move.

use std::{os::fd::AsFd, sync::Arc};

use rustix::io::Errno;

use super::*;
use crate::{
    memory::{GuestMemory, MappedMemory, Region},
    xen::{
        CallError, EventFdSupport, IoRange,
        abi::ioreq::{
            IS_BACKWARDS, IS_POINTER, IS_READ, Ioreq, STATE_ANSWERED, STATE_IN_PROCESS, STATE_NONE,
            TYPE_INVALIDATE, TYPE_MEMORY, TYPE_PORT,
        },
        fake_model::FakeModel,
    },
};

const READ: u8 = IS_READ;

fn server(model: &Arc<FakeModel>) -> IoreqServer {
    IoreqServer::create(&model.calls(), FakeModel::DOMAIN, PageSource::Any).unwrap()
}

fn raw(kind: u8, address: u64, size: u32, count: u32, bits: u8, data: u64) -> Ioreq {
    Ioreq { address, data, count, size, port: 0, padding: 0, bits, kind }
}

fn taken(server: &IoreqServer) -> Vec<PendingRequest> {
    let mut requests = Vec::new();
    server.take(&mut requests).unwrap();
    requests
}

#[test]
fn a_server_binds_a_port_of_each_vcpu_and_leaves_nothing() {
    let model = FakeModel::new(2);
    let server = server(&model);
    assert_eq!((server.vcpus(), server.domain()), (2, FakeModel::DOMAIN));
    server.map_range(&IoRange::Memory(0x1000..=0x11ff)).unwrap();
    assert_eq!(model.ranges(), [(1, 0x1000, 0x11ff)]);
    drop(server);
    assert_eq!(model.bound_ports(), 0);
    assert!(!model.has_server());
}

#[test]
fn binding_wakes_once_and_no_request_is_made_of_it() {
    let model = FakeModel::new(1);
    let server = server(&model);
    assert!(taken(&server).is_empty());
}

#[test]
fn a_read_is_taken_answered_and_told() {
    let model = FakeModel::new(2);
    let server = server(&model);
    model.ask(1, raw(TYPE_MEMORY, 0x1004, 2, 1, READ, 0));
    let mut requests = taken(&server);
    let pending = requests.pop().unwrap();
    assert!(requests.is_empty());
    assert_eq!(model.state(1), STATE_IN_PROCESS);
    let wanted = Request {
        vcpu: 1,
        kind: RequestKind::Memory,
        address: 0x1004,
        size: 2,
        count: 1,
        is_read: true,
        backwards: false,
        data: RequestData::Value(0),
    };
    assert_eq!(*pending.request(), wanted);
    pending.answer(0x1234_5678).unwrap();
    assert_eq!(model.answer(1), Some(0x5678));
}

#[test]
fn a_write_has_its_value_and_its_answer_leaves_the_data_alone() {
    let model = FakeModel::new(1);
    let server = server(&model);
    model.ask(0, raw(TYPE_PORT, 0x3f8, 1, 1, 0, 0xabcd));
    let pending = taken(&server).pop().unwrap();
    assert_eq!(pending.request().data, RequestData::Value(0xcd));
    assert_eq!(pending.request().kind, RequestKind::Port);
    pending.answer(7).unwrap();
    assert_eq!(model.answer(0), Some(0xabcd));
}

#[test]
fn a_request_that_is_dropped_is_answered_as_an_empty_bus_would() {
    let model = FakeModel::new(1);
    let server = server(&model);
    model.ask(0, raw(TYPE_MEMORY, 0x1000, 4, 1, READ, 0));
    drop(taken(&server));
    assert_eq!(model.answer(0), Some(0xffff_ffff));
}

#[test]
fn a_server_that_closes_answers_what_is_taken_and_what_is_not() {
    let model = FakeModel::new(2);
    let server = server(&model);
    model.ask(0, raw(TYPE_MEMORY, 0x1000, 1, 1, READ, 0));
    let pending = taken(&server).pop().unwrap();
    model.ask(1, raw(TYPE_MEMORY, 0x1000, 8, 1, READ, 0));
    server.close();
    assert_eq!([model.answer(0), model.answer(1)], [Some(u64::MAX); 2]);
    assert_eq!(pending.answer(1), Err(CallError::Closed("the IOREQ server")));
    assert_eq!(server.take(&mut Vec::new()), Err(CallError::Closed("the IOREQ server")));
    assert!(!model.has_server());
}

#[test]
fn a_slot_that_the_kernel_answered_is_left_alone() {
    let model = FakeModel::new(1);
    let server = server(&model);
    model.ask(0, raw(TYPE_MEMORY, 0x1050, 4, 1, 0, 1));
    model.set_state(0, STATE_ANSWERED);
    assert!(taken(&server).is_empty());
    model.set_state(0, STATE_NONE);
    assert!(taken(&server).is_empty());
}

#[test]
fn requests_that_break_the_rules_are_taken_for_their_answer() {
    let model = FakeModel::new(1);
    let server = server(&model);
    for (size, count) in [(0, 1), (9, 1), (u32::MAX, 1), (4, u32::MAX)] {
        model.ask(0, raw(TYPE_MEMORY, 0x1000, size, count, READ, 0));
        let pending = taken(&server).pop().unwrap();
        assert_eq!(pending.request().kind, RequestKind::Malformed);
        assert_eq!(pending.request().accesses().count(), 0);
        drop(pending);
        assert!(model.answer(0).is_some());
    }
}

#[test]
fn an_invalidation_is_one() {
    let model = FakeModel::new(1);
    let server = server(&model);
    model.ask(0, raw(TYPE_INVALIDATE, 0, 4, 0, 0, 0));
    assert_eq!(taken(&server).pop().unwrap().request().kind, RequestKind::Invalidate);
    assert!(model.answer(0).is_some());
}

#[test]
fn accesses_move_as_the_instruction_does() {
    let of = |kind, bits, data| {
        let request = Request::new(0, &raw(kind, 0x1000, 4, 3, bits, data));
        request.accesses().map(|one| (one.address, one.data)).collect::<Vec<_>>()
    };
    let at = RequestData::At;
    let up = [(0x1000, at(0x80)), (0x1004, at(0x84)), (0x1008, at(0x88))];
    assert_eq!(of(TYPE_MEMORY, IS_POINTER, 0x80), up);
    let down = [(0x1000, at(0x80)), (0xffc, at(0x7c)), (0xff8, at(0x78))];
    assert_eq!(of(TYPE_MEMORY, IS_POINTER | IS_BACKWARDS, 0x80), down);
    let port = [(0x1000, at(0x80)), (0x1000, at(0x84)), (0x1000, at(0x88))];
    assert_eq!(of(TYPE_PORT, IS_POINTER, 0x80), port);
    assert_eq!(of(TYPE_MEMORY, 0, 5).last(), Some(&(0x1008, RequestData::Value(5))));
    let wraps = Request::new(0, &raw(TYPE_MEMORY, u64::MAX - 3, 8, 2, IS_POINTER, u64::MAX));
    assert_eq!(wraps.accesses().map(|one| one.address).collect::<Vec<_>>(), [u64::MAX - 3, 4]);
}

/// Reads give the address; writes are kept.
#[derive(Default)]
struct Log(Vec<(u64, u8, u64)>);

impl Registers for Log {
    fn read(&mut self, _: RequestKind, address: u64, _: u8) -> u64 {
        address
    }
    fn write(&mut self, _: RequestKind, address: u64, size: u8, value: u64) {
        self.0.push((address, size, value));
    }
}

fn memory() -> GuestMemory {
    let (_, mapped) = MappedMemory::memfd(4096).unwrap();
    GuestMemory::new(vec![Region::new(0, 0, Arc::new(mapped))]).unwrap()
}

#[test]
fn values_in_guest_memory_are_read_and_written() {
    let model = FakeModel::new(1);
    let (server, memory, mut log) = (server(&model), memory(), Log::default());
    model.ask(0, raw(TYPE_MEMORY, 0x1234, 2, 3, READ | IS_POINTER, 0x100));
    taken(&server).pop().unwrap().perform(&mut log, &memory).unwrap();
    let mut bytes = [0; 6];
    memory.read(0x100, &mut bytes).unwrap();
    assert_eq!(bytes, [0x34, 0x12, 0x36, 0x12, 0x38, 0x12]);
    model.ask(0, raw(TYPE_PORT, 0x80, 2, 3, IS_POINTER | IS_BACKWARDS, 0x104));
    taken(&server).pop().unwrap().perform(&mut log, &memory).unwrap();
    assert_eq!(log.0, [(0x80, 2, 0x1238), (0x80, 2, 0x1236), (0x80, 2, 0x1234)]);
    assert_eq!(model.state(0), STATE_ANSWERED);
}

#[test]
fn values_that_are_not_in_guest_memory_are_an_error_and_answered() {
    let model = FakeModel::new(1);
    let (server, memory, mut log) = (server(&model), memory(), Log::default());
    model.ask(0, raw(TYPE_MEMORY, 0x1000, 4, 2, IS_POINTER, 4092));
    let error = taken(&server).pop().unwrap().perform(&mut log, &memory).unwrap_err();
    assert!(matches!(error, PerformError::Memory { count: 2, .. }), "{error}");
    assert_eq!(log.0.len(), 1);
    assert_eq!(model.state(0), STATE_ANSWERED);
}

#[test]
fn the_page_comes_as_a_frame_where_there_are_no_resources() {
    let model = FakeModel::new(1);
    model.forget_resources(Errno::NOTTY);
    let server = server(&model);
    model.ask(0, raw(TYPE_MEMORY, 0x1000, 4, 1, READ, 0));
    taken(&server).pop().unwrap().answer(9).unwrap();
    assert_eq!(model.answer(0), Some(9));
    drop(server);
    let error = IoreqServer::create(&model.calls(), FakeModel::DOMAIN, PageSource::Resource).unwrap_err();
    assert!(matches!(error, ServerError::Map(_)), "{error}");
    assert!(!model.has_server());
}

#[test]
fn kicks_go_to_the_kernel_where_it_can_and_come_back_before_the_page_goes() {
    let model = FakeModel::new(1);
    let server = server(&model);
    let kick = crate::event_loop::EventFd::new().unwrap();
    for unable in [EventFdSupport::Nothing, EventFdSupport::InterruptsOnly] {
        model.set_support(unable);
        assert!(!server.kick_in_kernel(0x200_0000, 0, kick.as_fd()).unwrap());
    }
    model.set_support(EventFdSupport::Both);
    for queue in 0..3 {
        assert!(server.kick_in_kernel(0x200_0000, queue, kick.as_fd()).unwrap());
    }
    assert_eq!(model.assigned(), (0, 3));
    server.kick_no_longer(0x200_0000, 1).unwrap();
    server.kick_no_longer(0x200_0000, 1).unwrap();
    assert_eq!(model.assigned(), (0, 2));
    drop(server);
    assert_eq!(model.assigned(), (0, 0));
}

#[test]
fn a_refusal_says_what_of_which_domain() {
    let model = FakeModel::new(1);
    let error = IoreqServer::create(&model.calls(), 99, PageSource::Any).unwrap_err();
    assert_eq!(
        error.to_string(),
        "making an IOREQ server of domain 99: No such process (os error 3) (there is no such domain)"
    );
}
