//! How much room a pool has, as far as its cluster says it, which Ceph's `profile rbd` may ask. Only ever advice: a cluster that says nothing is
//! no reason to restore nothing.
//!
//! A pool that is full answers no write until it has room again, and holds up everybody who writes to it: that is to be seen before, and once it
//! has happened nobody else says it. What a quota leaves is known from above alone: Ceph holds it against the lengths of all objects,
//! holes and all, and tells only how much of that is stored. So whether a quota has made a pool full its flags say, and not its numbers.

use std::time::Duration;

use serde_json::Value;

use super::Image;
use super::tool::refused;
use crate::failure::{Code, Failure};

/// What is asked for room.
const PROGRAM: &str = "ceph";

/// Longest time for an answer: it is asked for each volume, and whoever waits for the restore hears nothing meanwhile.
const ANSWER_SECONDS_MAX: u64 = 10;

/// Most bytes of an answer, about 3 KB for each pool of a cluster.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Said of a pool that takes no write any more, by its devices or its quotas.
const FULL: &str = "full";

/// What a pool has room for, at most; none where its cluster does not say, or sets no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::mover) struct PoolRoom {
    /// Bytes that its devices can take.
    pub bytes: Option<u64>,
    /// Bytes that its quota leaves, were there no holes in its objects.
    pub quota_bytes: Option<u64>,
    /// Objects that its quota leaves.
    pub quota_objects: Option<u64>,
}

impl PoolRoom {
    /// By what `ceph df detail` says. Before its manager has counted, a cluster says that it has nothing at all.
    fn told(answer: &Value, pool: &str) -> Option<Self> {
        let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64);
        number(answer.get("stats")?, "total_bytes").filter(|total| *total > 0)?;
        let stats = of_pool(answer.get("pools")?, "name", pool)?.get("stats")?;
        let left = |quota: &str, taken: Option<u64>| {
            let quota = number(stats, quota).filter(|quota| *quota > 0)?;
            Some(quota.saturating_sub(taken.unwrap_or(0)))
        };
        Some(Self {
            // What will be left of data that is compressed nobody knows.
            bytes: number(stats, "max_avail").filter(|_| number(stats, "compress_under_bytes").unwrap_or(0) == 0),
            quota_bytes: left("quota_bytes", number(stats, "stored")),
            quota_objects: left("quota_objects", number(stats, "objects")),
        })
    }
}

fn of_pool<'v>(pools: &'v Value, name: &str, pool: &str) -> Option<&'v Value> {
    pools.as_array()?.iter().find(|one| one.get(name).and_then(Value::as_str) == Some(pool))
}

/// By what `ceph osd pool ls detail` says.
fn is_full(answer: &Value, pool: &str) -> bool {
    let flags = of_pool(answer, "pool_name", pool).and_then(|pool| pool.get("flags_names")?.as_str());
    flags.is_some_and(|flags| flags.split(',').any(|flag| flag == FULL))
}

impl Image {
    /// The room of those pools of the image's cluster. What is not known is in the log, with the reason.
    pub async fn rooms<const N: usize>(&self, pools: [&str; N]) -> [PoolRoom; N] {
        let (told, flags) = (self.ask_cluster(&["df", "detail"]).await, self.flags().await);
        pools.map(|pool| {
            let room = PoolRoom::told(&told, pool).unwrap_or_default();
            if is_full(&flags, pool) { PoolRoom { bytes: Some(0), ..room } } else { room }
        })
    }

    /// The first of those pools that takes no write any more.
    pub async fn full_pool<'p, const N: usize>(&self, pools: [&'p str; N]) -> Option<&'p str> {
        let flags = self.flags().await;
        pools.into_iter().find(|pool| is_full(&flags, pool))
    }

    async fn flags(&self) -> Value {
        self.ask_cluster(&["osd", "pool", "ls", "detail"]).await
    }

    /// Nothing where it does not answer.
    async fn ask_cluster(&self, question: &[&str]) -> Value {
        let failed = || format!("cannot see what room the pools of the RBD image `{}` have", self.spec());
        let asked = async {
            let command = self.cluster.command(PROGRAM, &failed)?.args(question).arg("--format=json");
            let run = command.keeping(ANSWER_BYTES_MAX).run(Duration::from_secs(ANSWER_SECONDS_MAX)).await;
            let finished = run.map_err(|error| error.failure(Code::VolumeIo, failed()))?;
            if !finished.status.success() {
                return Err(refused(&finished, Code::VolumeIo, failed()));
            }
            serde_json::from_slice(&finished.stdout)
                .map_err(|error| Failure::new(Code::ImageToolFailed, failed()).because(&error))
        };
        asked.await.unwrap_or_else(|failure| {
            tracing::warn!(failure = format!("{failure:#}"), "a cluster does not say what room it has");
            Value::Null
        })
    }

    /// Its pool, which has what is known of it, and its data unless that has one of its own.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// What tells its cluster from others.
    pub fn cluster_name(&self) -> String {
        let access = &self.cluster.access;
        format!("{:?} {:?}", access.hosts, access.config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As Ceph 16 says it.
    fn answer(total: u64, quota_bytes: u64, quota_objects: u64) -> Value {
        json!({"stats": {"total_bytes": total}, "pools": [
            {"name": "other", "stats": {"max_avail": 1, "stored": 0, "quota_bytes": 0, "quota_objects": 0}},
            {"name": "volumes", "stats": {"max_avail": 1000, "stored": 300, "bytes_used": 900, "objects": 7,
                "quota_bytes": quota_bytes, "quota_objects": quota_objects}},
        ]})
    }

    #[test]
    fn the_room_of_a_pool_is_what_is_there_and_what_its_quotas_leave() {
        let room = |quota_bytes, quota_objects| PoolRoom::told(&answer(5000, quota_bytes, quota_objects), "volumes");
        let of = |quota_bytes, quota_objects| Some(PoolRoom { bytes: Some(1000), quota_bytes, quota_objects });
        assert_eq!(room(0, 0), of(None, None));
        assert_eq!(room(500, 10), of(Some(200), Some(3)));
        assert_eq!(room(200, 7), of(Some(0), Some(0)), "it is over its quotas");
    }

    #[test]
    fn the_devices_of_a_pool_that_compresses_set_no_bound() {
        let stats = json!({"max_avail": 1000, "stored": 300, "compress_under_bytes": 4096, "quota_bytes": 500});
        let answer = json!({"stats": {"total_bytes": 5000}, "pools": [{"name": "volumes", "stats": stats}]});
        let room = PoolRoom { quota_bytes: Some(200), ..PoolRoom::default() };
        assert_eq!(PoolRoom::told(&answer, "volumes"), Some(room));
    }

    #[test]
    fn a_cluster_that_does_not_say_it_has_any_room() {
        assert_eq!(PoolRoom::told(&answer(5000, 0, 0), "none"), None);
        assert_eq!(PoolRoom::told(&answer(0, 0, 0), "volumes"), None, "nobody has counted yet");
        assert_eq!(PoolRoom::told(&json!({"pools": []}), "volumes"), None);
        assert_eq!(PoolRoom::told(&Value::Null, "volumes"), None);
    }

    #[test]
    fn a_pool_is_full_by_its_flags_alone() {
        let full = |flags: &str| {
            let pools = json!([{"pool_name": "other", "flags_names": "hashpspool,full"},
                {"pool_name": "volumes", "flags_names": flags}]);
            is_full(&pools, "volumes")
        };
        assert!(full("hashpspool,full,full_quota,selfmanaged_snaps") && full("full"));
        for flags in ["", "hashpspool,nearfull", "hashpspool,backfillfull,selfmanaged_snaps"] {
            assert!(!full(flags), "{flags}");
        }
        assert!(!is_full(&Value::Null, "volumes") && !is_full(&json!([]), "volumes"));
    }
}
