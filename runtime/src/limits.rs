//! What one instance may allocate.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use crate::usage::Usage;

/// Most elements of one table.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 1 << 16;
/// Most core instances, memories and tables of one program's instance.
const MAX_PARTS: usize = 100;

/// Counts an instance's memory against its guest's limit and the runtime's budget.
pub(crate) struct Limits {
    usage: Arc<Usage>,
    total: Arc<Usage>,
    limit: u64,
    budget: u64,
    /// Most bytes of this instance alone.
    most: u64,
    held: u64,
    last: u64,
    /// Size of a memory that was refused and that none has reached since.
    refused: Option<usize>,
}

impl Limits {
    /// `limit` is for all instances that share `usage`, `budget` for all that share `total`.
    pub(crate) fn new(usage: &Arc<Usage>, limit: u64, total: &Arc<Usage>, budget: u64) -> Self {
        usage.add_instance();
        total.add_instance();
        Self {
            usage: Arc::clone(usage),
            total: Arc::clone(total),
            limit,
            budget,
            most: u64::MAX,
            held: 0,
            last: 0,
            refused: None,
        }
    }

    /// Gives the instance a limit of its own besides, in bytes.
    pub(crate) fn at_most(mut self, bytes: u64) -> Self {
        self.most = bytes;
        self
    }

    /// Whether the guest lacks memory it asked for. If it then fails, it fails for that.
    pub(crate) fn refused(&self) -> bool {
        self.refused.is_some()
    }

    fn take(&mut self, bytes: u64) -> bool {
        if self.held.saturating_add(bytes) > self.most || !self.usage.try_add_memory(bytes, self.limit) {
            return false;
        }
        if !self.total.try_add_memory(bytes, self.budget) {
            self.usage.remove_memory(bytes);
            return false;
        }
        self.held += bytes;
        true
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.usage.remove_instance(self.held);
        self.total.remove_instance(self.held);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let bytes = desired.saturating_sub(current) as u64;
        let taken = self.take(bytes);
        self.last = if taken { bytes } else { 0 };
        if !taken {
            self.refused = Some(desired);
        } else if self.refused.is_some_and(|wanted| desired >= wanted) {
            self.refused = None;
        }
        Ok(taken)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.usage.remove_memory(self.last);
        self.total.remove_memory(self.last);
        self.held -= self.last;
        self.last = 0;
        self.refused = Some(0);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        MAX_PARTS
    }

    fn tables(&self) -> usize {
        MAX_PARTS
    }

    fn memories(&self) -> usize {
        MAX_PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_a_limit_of_its_own() {
        let (usage, total) = (Arc::default(), Arc::default());
        let mut first = Limits::new(&usage, 100, &total, 100).at_most(40);
        let mut second = Limits::new(&usage, 100, &total, 100).at_most(40);
        assert!(first.memory_growing(0, 40, None).unwrap());
        assert!(!first.memory_growing(40, 41, None).unwrap() && first.refused());
        assert!(second.memory_growing(0, 40, None).unwrap());
        assert_eq!(usage.memory(), 80);
    }

    #[test]
    fn limit_and_budget_both_count() {
        let (one, two, total) = (Arc::default(), Arc::default(), Arc::default());
        let mut first = Limits::new(&one, 100, &total, 150);
        let mut second = Limits::new(&two, 100, &total, 150);
        assert!(first.memory_growing(0, 90, None).unwrap());
        assert!(!first.memory_growing(90, 101, None).unwrap() && first.refused());
        assert!(
            first.memory_growing(90, 95, None).unwrap() && first.refused(),
            "it still lacks what it wanted"
        );
        assert!(!second.memory_growing(0, 70, None).unwrap(), "the budget of both is 150");
        assert_eq!(two.memory(), 0, "what the budget refused is not held");
        drop(first);
        assert!(second.memory_growing(0, 70, None).unwrap() && !second.refused());
        second.memory_grow_failed(wasmtime::format_err!("no memory")).unwrap();
        assert_eq!((two.memory(), total.memory()), (0, 0));
        assert_eq!((one.instances(), total.instances()), (0, 1));
    }
}
