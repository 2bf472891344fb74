//! A memory table that can be replaced while it is used.

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    backing::{Access, Lease, Leased},
    error::MemoryError,
    fork::Owner,
    guest::GuestMemory,
};

/// The table of the moment, shared by the connection that changes it and by everybody who uses it.
///
/// Who uses it takes a [`snapshot`](Self::snapshot) and keeps it for one access or one request: a change is seen
/// whole or not at all, and a region that left the table stays mapped until the last snapshot, and the last
/// lease, is gone.
#[derive(Debug)]
pub struct SharedMemoryTable {
    /// None once it is closed.
    current: RwLock<Option<GuestMemory>>,
    leases: Arc<AtomicUsize>,
    owner: Owner,
}

/// A lease that its table knows of: [`SharedMemoryTable::close`] refuses while it lives.
#[derive(Debug)]
pub struct CountedLease {
    lease: Lease,
    count: Arc<AtomicUsize>,
}

impl Leased for CountedLease {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Drop for CountedLease {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Release);
    }
}

impl Default for SharedMemoryTable {
    fn default() -> Self {
        Self::new(GuestMemory::default())
    }
}

impl SharedMemoryTable {
    /// A table that begins as this one.
    pub fn new(memory: GuestMemory) -> Self {
        let leases = Arc::new(AtomicUsize::new(0));
        Self { current: RwLock::new(Some(memory)), leases, owner: Owner::this_process() }
    }

    /// The table of this moment.
    ///
    /// # Errors
    /// [`MemoryError::Closed`]; [`MemoryError::Forked`] in a child of the process that made it.
    pub fn snapshot(&self) -> Result<GuestMemory, MemoryError> {
        self.owner.check()?;
        self.shared().clone().ok_or(MemoryError::Closed)
    }

    /// Puts another table in the place of this one and returns the old one.
    ///
    /// # Errors
    /// As [`SharedMemoryTable::snapshot`].
    pub fn replace(&self, memory: GuestMemory) -> Result<GuestMemory, MemoryError> {
        self.owner.check()?;
        self.exclusive().as_mut().map(|current| std::mem::replace(current, memory)).ok_or(MemoryError::Closed)
    }

    /// Leases a range of the table of this moment.
    ///
    /// # Errors
    /// Those of [`GuestMemory::lease`] and [`SharedMemoryTable::snapshot`].
    pub fn lease(&self, address: u64, len: u64, access: Access) -> Result<CountedLease, MemoryError> {
        self.owner.check()?;
        // The lock is held until the lease is counted, so that it cannot come into being during a close.
        let current = self.shared();
        let lease = current.as_ref().ok_or(MemoryError::Closed)?.lease(address, len, access)?;
        self.leases.fetch_add(1, Ordering::Relaxed);
        Ok(CountedLease { lease, count: Arc::clone(&self.leases) })
    }

    /// Closes it: the table is let go of, and what nobody else holds is unmapped. Closing twice is allowed.
    ///
    /// # Errors
    /// The number of leases that live: then nothing is changed.
    pub fn close(&self) -> Result<(), usize> {
        if !self.owner.is_this_process() {
            return Ok(());
        }
        let mut current = self.exclusive();
        match self.leases.load(Ordering::Acquire) {
            0 => {
                let closed = current.take();
                // Unmapping takes a while, and nobody needs to wait for it.
                drop(current);
                drop(closed);
                Ok(())
            }
            live => Err(live),
        }
    }

    /// Closes it whatever leases live: they keep what they need, and the last of them unmaps it.
    pub fn abandon(&self) {
        if self.owner.is_this_process() {
            let abandoned = self.exclusive().take();
            drop(abandoned);
        }
    }

    /// Is all of it mapped at any time, so that no access has to wait for a mapping?
    pub fn is_resident(&self) -> bool {
        self.owner.is_this_process() && self.shared().as_ref().is_none_or(GuestMemory::is_resident)
    }

    /// Was it closed?
    pub fn is_closed(&self) -> bool {
        // The lock of a child may have been held by a thread of its parent.
        self.owner.is_this_process() && self.shared().is_none()
    }

    // Nothing under the lock can panic half way.
    fn shared(&self) -> RwLockReadGuard<'_, Option<GuestMemory>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Option<GuestMemory>> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }
}
