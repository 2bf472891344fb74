//! For tests: memory that is mapped for each access and unmapped after it, as grants are. It proves that who
//! uses a table needs nothing to be mapped for ever.
//!
//! # Safety
//! A lease here holds the lease of what really backs the memory.
#![allow(unsafe_code)]

use std::{
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{Access, Backing, GuestMemory, Hold, Lease, MapError, MemoryKind, Owner, Region};

/// Nothing resident; counts its leases.
#[derive(Debug)]
pub struct OnDemand {
    inner: Arc<dyn Backing>,
    leases: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Mapped(Lease, Arc<AtomicUsize>);

impl Hold for Mapped {
    fn poisoned(&self) -> bool {
        self.0.poisoned()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hold for OnDemand {
    fn poisoned(&self) -> bool {
        false
    }
}

impl Backing for OnDemand {
    fn kind(&self) -> MemoryKind {
        self.inner.kind()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn writable(&self) -> bool {
        self.inner.writable()
    }
    fn owner(&self) -> Owner {
        self.inner.owner()
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        None
    }
    /// Refused to who writes to the last byte: as good as any reason.
    fn lease(self: Arc<Self>, offset: u64, len: u64, access: Access) -> Result<Lease, MapError> {
        if access == Access::Write && offset + len == self.len() {
            return Err(MapError::Length(len));
        }
        let inner = Arc::clone(&self.inner).lease(offset, len, access)?;
        self.leases.fetch_add(1, Ordering::Relaxed);
        let base = inner.base();
        // SAFETY: the inner lease is kept by the hold.
        Ok(unsafe { Lease::new(base, len, Arc::new(Mapped(inner, Arc::clone(&self.leases)))) })
    }
}

/// The same memory, mapped on demand, and the number of its leases.
pub fn on_demand(memory: &GuestMemory) -> (GuestMemory, Arc<AtomicUsize>) {
    let leases = Arc::new(AtomicUsize::new(0));
    let regions = memory.regions().iter().map(|region| {
        let inner = Arc::clone(&region.backing);
        let backing = Arc::new(OnDemand { inner, leases: Arc::clone(&leases) });
        Region { backing, ..region.clone() }
    });
    (GuestMemory::new(regions.collect()).expect("the same table"), leases)
}

mod tests {
    use super::{
        super::{MappedMemory, MemoryError},
        *,
    };

    const PAGE: u64 = 4096;

    fn region(address: u64) -> Region {
        Region::new(address, 0, Arc::new(MappedMemory::memfd(PAGE).expect("a memfd").1))
    }

    #[test]
    fn memory_mapped_on_demand_goes_through_the_same_table() {
        let file = GuestMemory::new(vec![region(0), region(PAGE), region(2 * PAGE)]).expect("a table");
        let (on_demand, leases) = on_demand(&file);
        let live = || leases.load(Ordering::Relaxed);
        let mixed =
            vec![file.regions()[0].clone(), on_demand.regions()[1].clone(), on_demand.regions()[2].clone()];
        let memory = GuestMemory::new(mixed).expect("a table");
        memory.write(PAGE - 3, b"abcdef").expect("file and on demand");
        let mut back = [0; 6];
        memory.read(PAGE - 3, &mut back).expect("file and on demand");
        assert_eq!((&back, live()), (b"abcdef", 0));

        assert!(memory.translate(PAGE, 8).is_none(), "no address without a lease");
        assert!(memory.translator().translate(PAGE, 8, Access::Read).is_none());
        let (mut leases, mut pieces) = (Vec::new(), Vec::new());
        let each = |_, len| pieces.push(len);
        memory.reach(PAGE - 3, 6, Access::Write, &mut leases, each).expect("leased for as long as we like");
        assert_eq!((pieces, leases.len(), live()), (vec![3, 3], 1, 1));
        leases.clear();
        assert_eq!(live(), 0);

        let view = memory.lease(PAGE, 8, Access::Write).expect("leased");
        drop(memory);
        assert_eq!((view.len(), live()), (8, 1));
        drop(view);
        assert_eq!(live(), 0);
    }

    #[test]
    fn what_cannot_be_mapped_is_told_before_anything_is_done() {
        let file = GuestMemory::new(vec![region(0), region(PAGE)]).expect("a table");
        let (memory, leases) = on_demand(&file);
        let mut kept = Vec::new();
        let address = PAGE - 8;
        let len = PAGE + 8;
        let failed =
            memory.reach(address, len, Access::Write, &mut kept, |_, _| panic!("before all is mapped"));
        let source = MapError::Length(8);
        assert_eq!(failed, Err(MemoryError::Unreachable { address, len, source: source.clone() }));
        assert_eq!(memory.write(address, &[1; 8]), Err(MemoryError::Unreachable { address, len: 8, source }));
        kept.clear();
        assert_eq!(leases.load(Ordering::Relaxed), 0);
    }
}
