//! What was set and noted for an image (`rbd image-meta`), which a new one in its place is to have as well. What can't be carried over is no
//! reason to restore nothing, and becomes a warning.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Image;
use super::tool::RUN_SECONDS_MAX;
use crate::failure::{Code, Failure};
use crate::mover::command::OUTPUT_BYTES_MAX;

/// Settings and notes, at most: each takes a call.
const SETTINGS_MAX: usize = 256;
/// A cluster that takes longer to refuse one does not answer: whoever waits for the restore hears nothing meanwhile.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);

/// Settings and notes, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::mover) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// From what the program says of them. An error says why they cannot be carried over.
    fn told(answer: &[u8]) -> Result<Self, Failure> {
        let too_much = |what: String| Err(Failure::new(Code::DiskUnsupported, what));
        // Where there are none nothing is said.
        if answer.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        if answer.len() >= OUTPUT_BYTES_MAX {
            return too_much(format!("they have {OUTPUT_BYTES_MAX} bytes and more"));
        }
        let settings: BTreeMap<_, _> = serde_json::from_slice(answer)
            .map_err(|error| Failure::new(Code::ImageToolFailed, "they cannot be read").because(&error))?;
        match settings.len() <= SETTINGS_MAX {
            true => Ok(Self(settings)),
            false => too_much(format!("there are more than {SETTINGS_MAX}")),
        }
    }
}

impl Image {
    /// What was set and noted for it, or nothing and a warning.
    pub async fn settings(&self) -> (Settings, Option<String>) {
        let failed = || format!("cannot read them of `{}`", self.spec());
        let told = async {
            let answer = self.answer(&["image-meta", "list"], Code::VolumeIo, &failed).await?;
            let none = || Failure::new(Code::VolumeIo, failed()).caused_by("there is no such image");
            Settings::told(&answer.ok_or_else(none)?)
        };
        match told.await {
            Ok(settings) => (settings, None),
            Err(why) => {
                let what = "a new RBD image has none of the settings and notes (`rbd image-meta`) of the old one";
                (Settings::default(), Some(format!("{what}, `{}`: {why:#}", self.spec())))
            }
        }
    }

    /// Sets and notes the same for this one; a warning for each that it does not have then. None repeats what.
    pub async fn set(&self, settings: &Settings) -> Vec<String> {
        let mut warnings = Vec::new();
        for (number, (name, value)) in settings.0.iter().enumerate() {
            let began = Instant::now();
            let Err(why) = self.set_one(name, value).await else { continue };
            warnings.push(format!("a setting or note of the old RBD image is missing from the new one: {why:#}"));
            let untried = settings.0.len() - number - 1;
            if began.elapsed() > REFUSED_WITHIN && untried > 0 {
                warnings.push(format!("so are {untried} more, which were not tried after that"));
                break;
            }
        }
        warnings
    }

    async fn set_one(&self, name: &str, value: &str) -> Result<(), Failure> {
        let failed = || format!("cannot set `{}` for `{}`", name.escape_debug(), self.spec());
        if value.is_empty() {
            return Err(Failure::new(Code::VolumeIo, failed()).caused_by("`rbd` has no way to say one that is empty"));
        }
        // What comes after the dashes is taken for no option.
        let arguments = ["image-meta", "set", &self.spec(), "--", name];
        self.changed(&arguments, Some(value), Duration::from_secs(RUN_SECONDS_MAX), &failed).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_settings_are_carried_over_or_none_is() {
        assert_eq!(Settings::told(b"").unwrap(), Settings::default());
        assert_eq!(Settings::told(b"{}\n").unwrap(), Settings::default());
        let told = Settings::told(br#"{"conf_rbd_qos_iops_limit":"500","note":"-1 of 2"}"#).unwrap();
        assert_eq!(told.0.iter().next().unwrap(), (&"conf_rbd_qos_iops_limit".to_owned(), &"500".to_owned()));
        let many: BTreeMap<_, _> = (0..=SETTINGS_MAX).map(|number| (format!("{number}"), String::new())).collect();
        let many = Settings::told(&serde_json::to_vec(&many).unwrap()).unwrap_err();
        let long = serde_json::to_vec(&BTreeMap::from([("note", "x".repeat(OUTPUT_BYTES_MAX))])).unwrap();
        let end = long.get(long.len() - OUTPUT_BYTES_MAX..).unwrap();
        for refused in [many, Settings::told(end).unwrap_err()] {
            assert_eq!(refused.code, Code::DiskUnsupported, "{refused:#}");
        }
        assert_eq!(Settings::told(b"[]").unwrap_err().code, Code::ImageToolFailed);
    }
}
