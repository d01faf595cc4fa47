//! Whether, and when, a container that ended is started again. Docker's rules: see [`RestartPolicy`].

use std::time::Duration;

use crate::container::{Ended, RestartPolicy};

/// The first wait; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A life of this length begins the waits anew.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// The restarts of a container since it was started by a command.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    count: u32,
    wait: Option<Duration>,
}

impl Restarts {
    /// After a life: how long to wait before the next; `None` when there is to be none.
    pub(super) fn after(&mut self, policy: &RestartPolicy, ended: &Ended, life: Duration) -> Option<Duration> {
        let again = match policy {
            RestartPolicy::Never => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure { most } => ended.status != 0 && (*most == 0 || self.count < *most),
        };
        if !again {
            return None;
        }
        let wait = match self.wait {
            Some(wait) if life < LONG_LIFE => LONGEST.min(wait * 2),
            _ => FIRST,
        };
        self.wait = Some(wait);
        self.count += 1;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_begin_anew_after_a_long_life() {
        let mut restarts = Restarts::default();
        let failed = Ended { status: 1, oom: false };
        let mut after = |life| restarts.after(&RestartPolicy::Always, &failed, Duration::from_secs(life)).unwrap();
        let waits: Vec<u128> = [0, 1, 9, 10, 0].map(|life| after(life).as_millis()).to_vec();
        assert_eq!(waits, [100, 200, 400, 100, 200]);
        for _ in 0..20 {
            after(0);
        }
        assert_eq!(after(0), LONGEST);
    }

    #[test]
    fn policies() {
        let status = |status| Ended { status, oom: false };
        let lives = |policy: RestartPolicy, code| {
            let mut restarts = Restarts::default();
            (0..5).take_while(|_| restarts.after(&policy, &status(code), Duration::ZERO).is_some()).count()
        };
        assert_eq!(lives(RestartPolicy::Never, 1), 0);
        assert_eq!(lives(RestartPolicy::Always, 0), 5);
        assert_eq!(lives(RestartPolicy::UnlessStopped, 0), 5);
        assert_eq!(lives(RestartPolicy::OnFailure { most: 0 }, 1), 5);
        assert_eq!(lives(RestartPolicy::OnFailure { most: 3 }, 1), 3);
        assert_eq!(lives(RestartPolicy::OnFailure { most: 3 }, 0), 0);
    }
}
