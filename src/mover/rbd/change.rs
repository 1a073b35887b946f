//! What a restore does with images: one is made like another, and names are given and taken.

use std::time::Duration;

use serde_json::Value;

use super::Image;
use super::tool::{RUN_SECONDS_MAX, refused};
use crate::failure::{Code, Failure};

/// How long the removal of an image may take, all of whose objects have to be looked for.
const REMOVE_SECONDS_MAX: u64 = 2 * 3600;

/// Features that a new image is given where the old one has them. The others follow from how it is made, or are about to go.
const FEATURES: [&str; 5] = ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"];

/// What a cluster says of an image.
#[derive(Debug)]
pub(in crate::mover) struct Info(Value);

impl Image {
    /// What the cluster says of it; none where it is not there.
    pub async fn info(&self) -> Result<Option<Info>, Failure> {
        let failed = || format!("cannot look at the RBD image `{}`", self.spec());
        Ok(self.asked(&["info"], Code::VolumeIo, &failed).await?.map(Info))
    }

    /// How many snapshots it has, also those that only its clones need any more.
    pub async fn snapshots(&self) -> Result<usize, Failure> {
        let failed = || format!("cannot look for snapshots of the RBD image `{}`", self.spec());
        let snapshots = self.asked(&["snap", "ls", "--all"], Code::VolumeIo, &failed).await?;
        match snapshots {
            Some(Value::Array(snapshots)) => Ok(snapshots.len()),
            _ => Err(Failure::new(Code::ImageToolFailed, failed())),
        }
    }

    /// Makes an empty one of that size, otherwise like `old`.
    pub async fn create(&self, bytes: u64, old: &Info) -> Result<(), Failure> {
        let failed = || format!("cannot make the RBD image `{}`", self.spec());
        let options = old.options(bytes);
        let spec = self.spec();
        let options = options.iter().map(String::as_str);
        let arguments: Vec<&str> = std::iter::once("create").chain(options).chain([spec.as_str()]).collect();
        self.changed(&arguments, None, Duration::from_secs(RUN_SECONDS_MAX), &failed).await
    }

    /// Gives it another name, which must be free.
    pub async fn rename(&self, to: &Image) -> Result<(), Failure> {
        let failed = || format!("cannot rename the RBD image `{}` to `{}`", self.spec(), to.spec());
        let limit = Duration::from_secs(RUN_SECONDS_MAX);
        self.changed(&["rename", &self.spec(), &to.spec()], None, limit, &failed).await
    }

    /// The name that its pool has for it, by its id: of an image with two names, the one that `rbd ls` shows.
    pub async fn listed_name(&self, id: &str) -> Result<String, Failure> {
        let failed = || format!("cannot see which name the RBD image `{}` has in its pool", self.spec());
        let mut arguments = vec!["info", "--format=json", "--pool", &self.pool];
        arguments.extend(self.namespace.iter().flat_map(|namespace| ["--namespace", namespace.as_str()]));
        arguments.extend(["--image-id", id]);
        let limit = Duration::from_secs(RUN_SECONDS_MAX);
        let finished = self.cluster.run(&arguments, limit, Code::VolumeIo, &failed).await?;
        if !finished.status.success() {
            return Err(refused(&finished, Code::VolumeIo, failed()));
        }
        let answer: Value = serde_json::from_slice(&finished.stdout)
            .map_err(|error| Failure::new(Code::ImageToolFailed, failed()).because(&error))?;
        let name = answer.get("name").and_then(Value::as_str).map(str::to_owned);
        name.ok_or_else(|| Failure::new(Code::ImageToolFailed, failed()))
    }

    /// Removes it. One that somebody has open, or that has snapshots, stays.
    pub async fn remove(&self) -> Result<(), Failure> {
        let failed = || format!("cannot remove the RBD image `{}`", self.spec());
        let limit = Duration::from_secs(REMOVE_SECONDS_MAX);
        self.changed(&["rm", "--no-progress", &self.spec()], None, limit, &failed).await
    }
}

impl Info {
    /// What a cluster would have said.
    #[cfg(test)]
    pub fn said(value: Value) -> Self {
        Self(value)
    }

    /// By which it is known again under another name.
    pub fn id(&self) -> Option<&str> {
        self.0.get("id").and_then(Value::as_str)
    }

    /// Another cluster is kept alike.
    pub fn is_mirrored(&self) -> bool {
        self.0.get("mirroring").is_some() || self.features().any(|feature| feature == "journaling")
    }

    /// The pool that has its data, where that is another one than its own.
    pub fn data_pool(&self) -> Option<&str> {
        self.0.get("data_pool").and_then(Value::as_str)
    }

    /// Bytes that each of its objects holds.
    pub fn object_bytes(&self) -> Option<u64> {
        let by_order = || 1_u64.checked_shl(u32::try_from(self.number("order")?).ok()?);
        self.number("object_size").or_else(by_order)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    fn features(&self) -> impl Iterator<Item = &str> {
        self.0.get("features").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }

    fn options(&self, bytes: u64) -> Vec<String> {
        let mut options = vec![format!("--size={bytes}B")];
        options.extend(self.object_bytes().map(|bytes| format!("--object-size={bytes}B")));
        let features: Vec<&str> = self.features().filter(|feature| FEATURES.contains(feature)).collect();
        if !features.is_empty() {
            options.push(format!("--image-feature={}", features.join(",")));
        }
        options.extend(self.data_pool().map(|pool| format!("--data-pool={pool}")));
        if let (Some(unit), Some(count)) = (self.number("stripe_unit"), self.number("stripe_count")) {
            options.extend([format!("--stripe-unit={unit}B"), format!("--stripe-count={count}")]);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_new_image_is_made_like_the_old_one() {
        let info = Info(json!({
            "name": "a", "id": "1021dfd173e0", "size": 1, "order": 23, "object_size": 8_388_608, "data_pool": "ec",
            "features": ["layering", "exclusive-lock", "data-pool", "operations"], "stripe_unit": 65_536, "stripe_count": 4,
        }));
        assert_eq!(
            info.options(512),
            [
                "--size=512B",
                "--object-size=8388608B",
                "--image-feature=layering,exclusive-lock",
                "--data-pool=ec",
                "--stripe-unit=65536B",
                "--stripe-count=4"
            ]
        );
        assert!(info.id() == Some("1021dfd173e0") && !info.is_mirrored());
        assert_eq!(Info(json!({"order": 22})).options(1), ["--size=1B", "--object-size=4194304B"]);
        assert!(Info(json!({"features": ["journaling"]})).is_mirrored());
        assert!(Info(json!({"mirroring": {"state": "enabled"}})).is_mirrored());
    }
}
