//! Which task runs next: of the projects whose turn it can be, the one of which the fewest run; of its tasks, the first
//! that came.
//!
//! Not here: what tasks are. Invariant: a task is here once at most: it waits, or it runs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A task for which there was no room waits so long at first, and twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Tasks that wait, and how many run.
#[derive(Default)]
pub(crate) struct Tasks {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// By project.
    running: HashMap<Arc<str>, usize>,
}

/// A task that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) project: Arc<str>,
    pub(super) id: Arc<str>,
    retries: u32,
    not_before: Option<Instant>,
}

impl State {
    fn running_of(&self, project: &Arc<str>) -> usize {
        self.running.get(project).copied().unwrap_or(0)
    }

    fn is_full(&self, most: usize) -> bool {
        self.running.values().sum::<usize>() >= most
    }
}

impl Tasks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, project: &str, id: &str) {
        let (project, id) = (project.into(), id.into());
        self.wait(Waiting { project, id, retries: 0, not_before: None });
    }

    /// Puts a task behind those that wait.
    pub(super) fn wait(&self, waiting: Waiting) {
        self.state().waiting.push_back(waiting);
        self.changed.notify_one();
    }

    /// The same for one that found no room: it waits for so long, or for `at_least`.
    pub(super) fn wait_again(&self, mut waiting: Waiting, now: Instant, at_least: Duration) {
        let pause = FIRST_RETRY.saturating_mul(1 << waiting.retries.min(16)).min(MAX_RETRY);
        waiting.retries += 1;
        waiting.not_before = Some(now + pause.max(at_least.min(MAX_RETRY)));
        self.wait(waiting);
    }

    /// The next that may run, which is taken as running until [`Tasks::leave`]; `None` where none may, or `most` run.
    pub(super) fn begin(&self, most: usize, now: Instant) -> Option<Waiting> {
        let mut state = self.state();
        if state.is_full(most) {
            return None;
        }
        let may = |waiting: &Waiting| waiting.not_before.is_none_or(|at| at <= now);
        let those = state.waiting.iter().enumerate().filter(|(_, waiting)| may(waiting));
        let (at, _) = those.min_by_key(|(_, waiting)| state.running_of(&waiting.project))?;
        let waiting = state.waiting.remove(at)?;
        *state.running.entry(Arc::clone(&waiting.project)).or_default() += 1;
        Some(waiting)
    }

    /// One of a project's runs no more.
    pub(super) fn leave(&self, project: &Arc<str>) {
        let mut state = self.state();
        let left = state.running_of(project).saturating_sub(1);
        if left == 0 {
            state.running.remove(project);
        } else {
            state.running.insert(Arc::clone(project), left);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Takes a task out, if it waits.
    pub(super) fn withdraw(&self, project: &str, id: &str) -> Option<Waiting> {
        let mut state = self.state();
        let is = |waiting: &Waiting| &*waiting.project == project && &*waiting.id == id;
        let at = state.waiting.iter().position(is)?;
        state.waiting.remove(at)
    }

    /// Resolves when another may run: one came or left, or its pause is over while there is a place.
    pub(super) async fn changed(&self, most: usize) {
        let next = {
            let state = self.state();
            let pauses = state.waiting.iter().filter_map(|waiting| waiting.not_before);
            pauses.min().filter(|_| !state.is_full(most))
        };
        let pause = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.changed.notified() => {}
            () = pause => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_take_turns_and_pauses_are_kept() {
        let tasks = Tasks::default();
        let now = Instant::now();
        for (project, id) in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4"), ("c", "5")] {
            tasks.add(project, id);
        }
        let begin = |most: usize, now: Instant| tasks.begin(most, now).map(|w| w.id.to_string());
        let check = |most, expected: Option<&str>| {
            assert_eq!(begin(most, now).as_deref(), expected);
        };
        check(4, Some("1"));
        check(4, Some("4"));
        check(4, Some("5"));
        check(4, Some("2"));
        check(4, None);
        tasks.leave(&"b".into());
        let third = tasks.begin(4, now).unwrap();
        assert_eq!(&*third.id, "3");
        // It found no room.
        tasks.wait_again(third.clone(), now, Duration::ZERO);
        tasks.leave(&third.project);
        check(9, None);
        assert_eq!(begin(9, now + FIRST_RETRY).as_deref(), Some("3"));
        tasks.wait_again(Waiting { retries: 1, ..third.clone() }, now, Duration::ZERO);
        assert_eq!(begin(9, now + FIRST_RETRY), None);
        assert!(tasks.withdraw("b", "3").is_none(), "of another project");
        assert!(tasks.withdraw("a", "3").is_some());
        assert!(tasks.withdraw("a", "3").is_none());
        assert_eq!(begin(9, now + MAX_RETRY), None);
        // As long as is asked for, and no longer than ever.
        tasks.wait_again(third, now, Duration::from_secs(9999));
        assert_eq!(begin(9, now + MAX_RETRY / 2), None);
        assert_eq!(begin(9, now + MAX_RETRY).as_deref(), Some("3"));
    }
}
