//! One device on a guest's bus: its registers, and what they have for the device's own thread.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{interrupt::InterruptLine, record::Record};
use crate::{
    endpoint::Control,
    event_loop::EventFd,
    memory::GuestMemory,
    mmio::{Action, ConfigSpace, MmioDevice, REGION_LEN},
    xen::{Interrupt, PendingRequest, RequestData},
};

/// What the device's own thread has to do.
#[derive(Debug)]
pub(super) enum Task {
    /// A write that was taken by the registers; it is answered when the action is carried out.
    Act(PendingRequest, Action),
    /// Several accesses at once, or one with its value in guest memory.
    Perform(PendingRequest),
    /// The guest is gone, or can be served no more.
    Gone(Option<String>),
}

/// The registers of one device, shared by the bus's thread and the device's own.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) base: u64,
    /// The guest's, as this device reaches it.
    pub(super) memory: GuestMemory,
    pub(super) control: Arc<Control>,
    registers: Mutex<MmioDevice>,
    record: Option<Record>,
    line: Arc<InterruptLine>,
    pub(super) kicks: Vec<EventFd>,
    tasks: Mutex<VecDeque<Task>>,
    /// Readable while there are tasks.
    pub(super) wake: EventFd,
}

impl Slot {
    pub(super) fn new(
        base: u64,
        registers: MmioDevice,
        record: Option<Record>,
        line: Arc<InterruptLine>,
        memory: GuestMemory,
        control: &Arc<Control>,
    ) -> Result<Self, Errno> {
        let kicks = control.queues.iter().map(|_| EventFd::new()).collect::<Result<_, _>>()?;
        if let Some(record) = &record {
            record.begin(&registers.saved())?;
        }
        Ok(Self {
            base,
            memory,
            control: Arc::clone(control),
            line,
            registers: Mutex::new(registers),
            record,
            kicks,
            tasks: Mutex::default(),
            wake: EventFd::new()?,
        })
    }

    /// The interrupt, where it is taken by its level.
    pub(super) fn level(&self) -> Option<Interrupt> {
        self.line.level()
    }

    /// Whoever holds the lock leaves whole registers behind: none of it panics half way.
    pub(super) fn registers(&self) -> MutexGuard<'_, MmioDevice> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, VecDeque<Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.base).is_some_and(|offset| offset < REGION_LEN)
    }

    pub(super) fn read(&self, address: u64, size: u8) -> u64 {
        let offset = address.wrapping_sub(self.base);
        self.registers().read(offset, size, &Space(&self.control))
    }

    pub(super) fn write(&self, address: u64, size: u8, value: u64) -> Option<Action> {
        let action = {
            let mut registers = self.registers();
            let action = registers.write(address.wrapping_sub(self.base), size, value);
            self.keep(&mut registers);
            action
        };
        // It may have been an InterruptACK, or a reset.
        self.line.settle();
        action
    }

    /// The device needs a reset.
    pub(super) fn fail(&self) {
        let told = {
            let mut registers = self.registers();
            let told = registers.fail();
            self.keep(&mut registers);
            told
        };
        if told {
            self.line.raise();
        }
    }

    /// Puts down what has changed, before whoever changed it goes on.
    fn keep(&self, registers: &mut MmioDevice) {
        if let Some(record) = self.record.as_ref().filter(|_| registers.take_changed()) {
            // It has its room since the start.
            let _ = record.write(&registers.saved());
        }
    }

    /// On the bus's thread: answers, or leaves it to the device's own.
    pub(super) fn dispatch(&self, request: PendingRequest) {
        let wanted = *request.request();
        let RequestData::Value(value) = wanted.data else { return self.defer(Task::Perform(request)) };
        if wanted.count != 1 {
            return self.defer(Task::Perform(request));
        }
        let answer = if wanted.is_read {
            self.read(wanted.address, wanted.size)
        } else {
            match self.write(wanted.address, wanted.size, value) {
                None => {}
                Some(Action::Kick(index)) => self.kick(index),
                Some(action) => return self.defer(Task::Act(request, action)),
            }
            0
        };
        // If it cannot be answered the domain is gone.
        let _ = request.answer(answer);
    }

    pub(super) fn kick(&self, index: u16) {
        if let Some(kick) = self.kicks.get(usize::from(index)) {
            kick.signal();
        }
    }

    pub(super) fn defer(&self, task: Task) {
        self.tasks().push_back(task);
        self.wake.signal();
    }

    /// The next task. The descriptor stays readable while there are more.
    pub(super) fn next_task(&self) -> Option<Task> {
        self.wake.drain();
        let mut tasks = self.tasks();
        let task = tasks.pop_front();
        if !tasks.is_empty() {
            self.wake.signal();
        }
        task
    }

    /// What was mapped before may be gone: running rings look where they are.
    pub(super) fn memory_changed(&self) {
        for queue in self.control.queues.iter().filter(|queue| queue.is_started()) {
            if queue.update_memory(&self.memory).is_err() {
                self.control.fail_queue(queue.index());
            }
        }
    }
}

/// The config space that the endpoint has.
struct Space<'a>(&'a Control);

impl ConfigSpace for Space<'_> {
    fn generation(&self) -> u32 {
        self.0.config_generation()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.0.read_config(offset, bytes);
    }
}
