//! SIGBUS: what to do when memory is gone from under us.
//!
//! A guest's memory is a file that somebody else can truncate, or pages of a domain that can die. Touching
//! what is gone raises SIGBUS in the thread that touches it, here or in a memoryview or in NumPy. The handler
//! knows our ranges ([`ranges`]): it puts a page of zeroes there, marks the range as poisoned, and lets the
//! thread go on. Who copied, or held a lease, asks for the mark afterwards and raises an error.
//!
//! Any other SIGBUS goes to whoever stood there before. If somebody (`faulthandler.enable()`, say) puts a
//! handler over ours, the next mapping puts ours over theirs again and passes on to it what is not ours.
//!
//! # Safety
//! Everything that runs in the handler is async-signal-safe: atomics, and the system calls mmap, madvise,
//! gettid, sigaction and tgkill. `errno` is kept. A thread that touches a range holds a lease, so that the
//! range cannot be unmapped and mapped by others between the fault and the replacement.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    mem, ptr,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering},
};

use super::ranges;

/// Faults that were survived, of the whole process.
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// The number of faults that this process survived so far. While it is 0, nothing can be poisoned.
#[inline]
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Acquire)
}

/// What somebody else wants to be called on SIGBUS.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Handler {
    action: libc::sighandler_t,
    flags: c_int,
}

/// Who stood there when we came. Leaked once.
static FIRST: AtomicPtr<Handler> = AtomicPtr::new(ptr::null_mut());
/// Who came after us, and whom we displaced again. Leaked for each that comes.
static LATEST: AtomicPtr<Handler> = AtomicPtr::new(ptr::null_mut());
/// The thread that is in the handler which came after us: when that one calls us, the next is the first one.
static PASSING: AtomicI32 = AtomicI32::new(0);

fn ours() -> libc::sighandler_t {
    on_sigbus as *const () as libc::sighandler_t
}

/// Puts our handler in place if it is not there. Called for each new mapping; costs one system call.
pub fn install() {
    // SAFETY: sigaction is plain data, for which all zeroes is a value.
    let (mut current, mut replaced, mut new): (libc::sigaction, libc::sigaction, libc::sigaction) =
        unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
    // SAFETY: only asks; cannot fail for SIGBUS and a valid pointer.
    unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut current) };
    if current.sa_sigaction == ours() {
        return;
    }
    remember(&current);
    new.sa_sigaction = ours();
    // ONSTACK: on the thread's alternate stack, if it has one.
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler lives as long as the process; whom it passes on to was written down before it can run.
    unsafe { libc::sigaction(libc::SIGBUS, &new, &mut replaced) };
    // Somebody came in between, either us from another thread or a third party.
    if replaced.sa_sigaction != ours() && replaced.sa_sigaction != current.sa_sigaction {
        remember(&replaced);
    }
}

fn remember(action: &libc::sigaction) {
    let handler = Handler { action: action.sa_sigaction, flags: action.sa_flags };
    let boxed = Box::into_raw(Box::new(handler));
    match FIRST.compare_exchange(ptr::null_mut(), boxed, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        // SAFETY: what FIRST points to was leaked.
        Err(first) if unsafe { *first } == handler => {
            // SAFETY: never published.
            drop(unsafe { Box::from_raw(boxed) });
        }
        // The handler may be reading the one that stood here: it stays leaked.
        Err(_) => LATEST.store(boxed, Ordering::Release),
    }
}

unsafe extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO; si_addr is read only for the codes
    // that have one; errno's address is the thread's.
    unsafe {
        let errno = *libc::__errno_location();
        let code = (*info).si_code;
        let fault = matches!(code, libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR);
        if !(fault && replace((*info).si_addr() as usize)) {
            pass_on(signal, info, context);
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts zeroes in the place of the page at `address`, if it is ours.
fn replace(address: usize) -> bool {
    let Some(found) = ranges::find(address) else { return false };
    let page = address & !(found.page - 1);
    let prot = if found.writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // Before the zeroes can be seen.
    found.slot.poison();
    FAULTS.fetch_add(1, Ordering::Release);
    // SAFETY: the page lies in a range of ours, which stays while its toucher holds it; nobody can rely on
    // what stood there, because nothing does.
    unsafe {
        let at = page as *mut c_void;
        if libc::mmap(at, found.page, prot, flags, -1, 0) != at {
            return false;
        }
        libc::madvise(at, found.page, libc::MADV_DONTFORK);
        true
    }
}

/// Gives the signal to who stood there before us.
///
/// # Safety
/// Only from a handler, with what the handler was given.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: pointers to leaked handlers or null; info is the kernel's.
    unsafe {
        let raised = (*info).si_code <= 0;
        let latest = LATEST.load(Ordering::Acquire);
        let thread = libc::syscall(libc::SYS_gettid) as i32;
        // A handler that gives up raises the signal again, or calls the one before it, which may be us:
        // neither may bring us back to it.
        if !raised
            && !latest.is_null()
            && PASSING.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            call(*latest, signal, info, context);
            PASSING.store(0, Ordering::Release);
            return;
        }
        if let Some(first) = FIRST.load(Ordering::Acquire).as_ref() {
            call(*first, signal, info, context);
        }
    }
}

/// Does what the kernel would have done for this handler.
///
/// # Safety
/// Only from a handler, with what the handler was given.
unsafe fn call(handler: Handler, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel would have called the same function with the same arguments.
    unsafe {
        let raised = (*info).si_code <= 0;
        match handler.action {
            libc::SIG_IGN if raised => {}
            // The kernel does not let a program ignore a fault of its own.
            libc::SIG_DFL | libc::SIG_IGN => {
                let mut default: libc::sigaction = mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, ptr::null_mut());
                // A fault comes again by itself when we return; a signal that was sent has to be sent again,
                // and waits until we return.
                if raised {
                    libc::raise(signal);
                }
            }
            action if handler.flags & libc::SA_SIGINFO != 0 => {
                let function: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    mem::transmute(action);
                function(signal, info, context);
            }
            action => {
                let function: unsafe extern "C" fn(c_int) = mem::transmute(action);
                function(signal);
            }
        }
    }
}
