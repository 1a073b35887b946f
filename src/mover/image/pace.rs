//! Reading no faster than is wanted, so that others get their share of a share.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets so many bytes pass within a second.
#[derive(Debug)]
pub(in crate::mover) struct Pace {
    bytes_per_second: Option<u64>,
    free_at: Instant,
}

impl Pace {
    /// None for as fast as it goes.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Instant::now() }
    }

    /// Waits until that many bytes more may be read. Time in which nothing was read is not made up for.
    pub async fn before(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return };
        sleep_until(self.free_at).await;
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.free_at = self.free_at.max(Instant::now()) + takes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_as_fast_as_is_wanted_and_no_faster() {
        let began = Instant::now();
        let mut pace = Pace::new(Some(1 << 20));
        for _ in 0..10 {
            pace.before(1 << 20).await;
        }
        assert!(began.elapsed().abs_diff(Duration::from_secs(9)) < Duration::from_millis(50), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        for _ in 0..10 {
            pace.before(1 << 20).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(8950), "a pause is not made up for: {:?}", began.elapsed());
        let mut unbounded = Pace::new(None);
        let began = Instant::now();
        unbounded.before(u64::MAX).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
