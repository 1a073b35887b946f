//! What a restore does with images: one is made like another, and names are given and taken.

use std::time::Duration;

use serde_json::Value;

use super::Image;
use super::tool::RUN_SECONDS_MAX;
use crate::failure::{Code, Failure};

/// How long the removal of an image may take, all of whose objects have to be looked for. One that was cut off is gone on with by another.
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
        self.changed(&arguments, Duration::from_secs(RUN_SECONDS_MAX), &failed).await
    }

    /// Gives it another name, which must be free.
    pub async fn rename(&self, to: &Image) -> Result<(), Failure> {
        let failed = || format!("cannot rename the RBD image `{}` to `{}`", self.spec(), to.spec());
        let limit = Duration::from_secs(RUN_SECONDS_MAX);
        self.changed(&["rename", &self.spec(), &to.spec()], limit, &failed).await
    }

    /// Removes it. One that somebody has open, or that has snapshots, stays.
    pub async fn remove(&self) -> Result<(), Failure> {
        let failed = || format!("cannot remove the RBD image `{}`", self.spec());
        let limit = Duration::from_secs(REMOVE_SECONDS_MAX);
        self.changed(&["rm", "--no-progress", &self.spec()], limit, &failed).await
    }
}

impl Info {
    /// By which it is known again under another name.
    pub fn id(&self) -> Option<&str> {
        self.0.get("id").and_then(Value::as_str)
    }

    /// Another cluster is kept alike.
    pub fn is_mirrored(&self) -> bool {
        self.0.get("mirroring").is_some() || self.features().any(|feature| feature == "journaling")
    }

    fn features(&self) -> impl Iterator<Item = &str> {
        self.0.get("features").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }

    fn options(&self, bytes: u64) -> Vec<String> {
        let number = |name: &str| self.0.get(name).and_then(Value::as_u64);
        let mut options = vec![format!("--size={bytes}B")];
        let object_bytes = number("object_size")
            .or_else(|| number("order").and_then(|order| 1_u64.checked_shl(u32::try_from(order).ok()?)));
        options.extend(object_bytes.map(|bytes| format!("--object-size={bytes}B")));
        let features: Vec<&str> = self.features().filter(|feature| FEATURES.contains(feature)).collect();
        if !features.is_empty() {
            options.push(format!("--image-feature={}", features.join(",")));
        }
        options.extend(self.0.get("data_pool").and_then(Value::as_str).map(|pool| format!("--data-pool={pool}")));
        if let (Some(unit), Some(count)) = (number("stripe_unit"), number("stripe_count")) {
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
