//! The wire log: the last messages of a connection, in words.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// A ring of lines, shared by the channels of one connection. Cheap enough to be always on: a line costs
/// about a microsecond, and control messages are few.
#[derive(Clone, Debug)]
pub struct WireLog {
    lines: Arc<Mutex<VecDeque<String>>>,
    capacity: usize,
    start: Instant,
}

impl WireLog {
    /// Keeps the last `capacity` lines.
    pub fn new(capacity: usize) -> Self {
        Self { lines: Arc::default(), capacity, start: Instant::now() }
    }

    /// One more line, with the seconds since the log began. `->` goes from the frontend to the backend.
    pub fn add(&self, what: impl FnOnce() -> String) {
        if self.capacity == 0 {
            return;
        }
        let line = format!("{:10.6} {}", self.start.elapsed().as_secs_f64(), what());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= self.capacity {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept() {
        let log = WireLog::new(2);
        for name in ["one", "two", "three"] {
            log.add(|| name.into());
        }
        let lines = log.lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(" two") && lines[1].ends_with(" three"), "{lines:?}");
    }
}
