//! What a new logical volume takes over from the one whose place it takes, beside its kind: what lvm2 lets one set of a volume, and the
//! disks that it lies on. Pure.
//!
//! What its kind and size say is not here, and nor is what no second volume can have, its uuid and its age. A volume that cannot be written
//! to is not restored at all.

use std::collections::BTreeSet;

use serde::Deserialize;

/// All columns of a volume, since those that are not known to every version of lvm2 can't be asked for by name.
pub(super) const ALL_COLUMNS: &str = "lv_all";
/// The columns that say which disks a volume lies on.
pub(super) const DISK_COLUMNS: &str = "pv_name,lv_name";
/// The allocation policy of a volume that has none of its own.
const INHERITED: &str = "inherit";
/// Bytes of a sector, in which lvm2 is told a read-ahead.
const SECTOR_BYTES: u64 = 512;

/// What can be alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Likeness {
    /// Its tags, by which hosts say which volumes they activate.
    pub tags: BTreeSet<String>,
    /// The host does not activate it by itself.
    pub stays_inactive: bool,
    /// It is activated by those alone who insist on it.
    pub skips_activation: bool,
    /// How room is found where it grows.
    pub allocation: String,
    /// Bytes that are read ahead of its readers, or `auto`.
    pub read_ahead: String,
    /// The profile of lvm2's settings that belongs to it; empty where there is none.
    pub profile: String,
    /// Its persistent device number.
    pub number: Option<Number>,
    /// The disks of its group that it lies on; none where it lies in a pool.
    pub disks: BTreeSet<String>,
}

/// A device number that a volume has whenever it is active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    major: String,
    minor: String,
}

/// How a new volume is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement<'l> {
    /// The allocation policy, where it has one of its own.
    pub allocation: Option<&'l str>,
    /// The disks that may be used; all of the group's where none is named.
    pub disks: Vec<&'l str>,
}

/// What a new volume has not of the old one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What lvchange is told to give it that; none where it can't be given.
    pub arguments: Option<[String; 2]>,
    /// In a sentence.
    pub text: String,
    /// Without it the volume is none to be used.
    pub is_needed: bool,
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    lv: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    lv_tags: String,
    /// Since lvm2 2.03.12.
    lv_autoactivation: Option<String>,
    lv_skip_activation: String,
    lv_allocation_policy: String,
    lv_read_ahead: String,
    lv_profile: String,
    lv_fixed_minor: String,
    lv_major: String,
    lv_minor: String,
}

#[derive(Deserialize)]
struct DiskReport {
    report: Vec<DiskSection>,
}

#[derive(Deserialize)]
struct DiskSection {
    pv: Vec<DiskRow>,
}

#[derive(Deserialize)]
struct DiskRow {
    pv_name: String,
}

/// Of the one volume of a report with [`ALL_COLUMNS`], and one with [`DISK_COLUMNS`].
pub(super) fn parse(volumes: &[u8], disks: &[u8]) -> Result<Likeness, serde_json::Error> {
    let report: Report = serde_json::from_slice(volumes)?;
    let row = report.report.into_iter().flat_map(|section| section.lv).next();
    let row = row.ok_or_else(|| serde::de::Error::custom("no volume is in it"))?;
    let disks: DiskReport = serde_json::from_slice(disks)?;
    let disks = disks.report.into_iter().flat_map(|section| section.pv).map(|row| row.pv_name);
    Ok(Likeness {
        tags: tags(&row.lv_tags),
        stays_inactive: row.lv_autoactivation.is_some_and(|word| !is_set(&word)),
        skips_activation: is_set(&row.lv_skip_activation),
        allocation: row.lv_allocation_policy,
        read_ahead: row.lv_read_ahead,
        profile: row.lv_profile,
        number: is_set(&row.lv_fixed_minor).then_some(Number { major: row.lv_major, minor: row.lv_minor }),
        // One that is missing has no name, and is no place for a new volume.
        disks: disks.filter(|name| name.starts_with('/')).collect(),
    })
}

/// A word stands for yes, or a number, as lvm2 is configured.
fn is_set(column: &str) -> bool {
    !matches!(column, "" | "0")
}

/// The tags of a column.
pub(super) fn tags(column: &str) -> BTreeSet<String> {
    column.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

impl Likeness {
    /// How a new volume like it is made, the best way first: one that lies elsewhere, or in pieces, is better than none.
    pub fn placements(&self) -> Vec<Placement<'_>> {
        let own = Some(self.allocation.as_str()).filter(|policy| *policy != INHERITED);
        let disks: Vec<_> = self.disks.iter().map(String::as_str).collect();
        let mut placements: Vec<Placement<'_>> = Vec::new();
        for allocation in [own, None] {
            for disks in [disks.clone(), Vec::new()] {
                let placement = Placement { allocation, disks };
                if !placements.contains(&placement) {
                    placements.push(placement);
                }
            }
        }
        placements
    }

    /// What `new`, which is called `shown`, has not of it. Its tags it was made with.
    pub fn lacking(&self, new: &Likeness, shown: &str) -> Vec<Lack> {
        let yes = |set: bool| if set { "y" } else { "n" };
        let lack = |option: &str, value: String, is_needed, text: String| Lack {
            arguments: Some([option.to_owned(), value]),
            text: format!("the new logical volume `{shown}` {text}"),
            is_needed,
        };
        let mut lacks = Vec::new();
        if self.stays_inactive != new.stays_inactive {
            let text = format!("is {}activated by itself", if new.stays_inactive { "not " } else { "" });
            lacks.push(lack("--setautoactivation", yes(!self.stays_inactive).to_owned(), true, text));
        }
        if self.skips_activation != new.skips_activation {
            let text =
                format!("is {}skipped when its group is activated", if new.skips_activation { "" } else { "not " });
            lacks.push(lack("--setactivationskip", yes(self.skips_activation).to_owned(), true, text));
        }
        if self.allocation != new.allocation {
            let text = format!("has the allocation policy `{}` and not `{}`", new.allocation, self.allocation);
            lacks.push(lack("--alloc", self.allocation.clone(), false, text));
        }
        if self.read_ahead != new.read_ahead {
            let text = format!("has the read-ahead `{}` and not `{}` (bytes)", new.read_ahead, self.read_ahead);
            lacks.push(lack("--readahead", sectors(&self.read_ahead), false, text));
        }
        if self.profile != new.profile && !self.profile.is_empty() {
            let text = format!("has not the profile `{}`", self.profile);
            lacks.push(lack("--metadataprofile", self.profile.clone(), false, text));
        }
        lacks.extend(self.number.as_ref().map(|number| number.lack(shown)));
        lacks.extend(self.other_disks(new, shown));
        lacks
    }

    fn other_disks(&self, new: &Likeness, shown: &str) -> Option<Lack> {
        let named = |disks: &mut dyn Iterator<Item = &String>| {
            disks.map(|disk| format!("`{disk}`")).collect::<Vec<_>>().join(" and ")
        };
        let others = named(&mut new.disks.difference(&self.disks));
        let text = format!(
            "the new logical volume `{shown}` lies on {others}, for want of room on {}, where the old one lies",
            named(&mut self.disks.iter())
        );
        (!others.is_empty()).then_some(Lack { arguments: None, text, is_needed: false })
    }
}

impl Number {
    /// As long as the old volume has it no other can.
    fn lack(&self, shown: &str) -> Lack {
        let Self { major, minor } = self;
        let (number, option) = match major.as_str() {
            // lvm2 has none of its own for it.
            "0" | "-1" | "" => (minor.clone(), String::new()),
            major => (format!("{major}:{minor}"), format!(" --major {major}")),
        };
        let text = format!(
            "the new logical volume `{shown}` has not the persistent device number {number} of the old one, which has it as long as it is \
             there; then `lvchange --persistent y{option} --minor {minor}` gives it that"
        );
        Lack { arguments: None, text, is_needed: false }
    }
}

/// As lvchange is told it.
fn sectors(read_ahead: &str) -> String {
    match read_ahead.parse::<u64>() {
        Ok(0) => "none".to_owned(),
        Ok(bytes) => (bytes / SECTOR_BYTES).to_string(),
        Err(_) => read_ahead.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    /// One that nobody has set anything of, but for some columns, on those disks.
    fn of(changes: &[(&str, Value)], disks: &[&str]) -> Likeness {
        let mut row = json!({
            "lv_tags": "", "lv_autoactivation": "enabled", "lv_skip_activation": "", "lv_allocation_policy": "inherit",
            "lv_read_ahead": "auto", "lv_profile": "", "lv_fixed_minor": "", "lv_major": "-1", "lv_minor": "-1", "lv_more": "1",
        });
        for (column, value) in changes {
            match value {
                Value::Null => drop(row.as_object_mut().unwrap().remove(*column)),
                value => row[*column] = value.clone(),
            }
        }
        let disks: Vec<_> = disks.iter().map(|name| json!({ "pv_name": name, "lv_name": "web" })).collect();
        let [row, disks] = [json!({"report": [{"lv": [row]}]}), json!({"report": [{"pv": disks}]})];
        parse(row.to_string().as_bytes(), disks.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_was_set_is_read_whatever_the_version_and_its_words() {
        let plain = of(&[], &[]);
        assert!(!plain.stays_inactive && !plain.skips_activation && plain.number.is_none());
        let tagged = of(&[("lv_tags", json!("@host1,nightly"))], &["/dev/sda", "[unknown]"]);
        assert_eq!(tagged.tags.iter().collect::<Vec<_>>(), ["@host1", "nightly"]);
        assert_eq!(tagged.disks.iter().collect::<Vec<_>>(), ["/dev/sda"]);
        for no in ["", "0"] {
            assert!(of(&[("lv_autoactivation", json!(no))], &[]).stays_inactive);
            assert!(!of(&[("lv_skip_activation", json!(no))], &[]).skips_activation);
        }
        for yes in ["skip activation", "1"] {
            assert!(of(&[("lv_skip_activation", json!(yes))], &[]).skips_activation);
        }
        assert!(!of(&[("lv_autoactivation", Value::Null)], &[]).stays_inactive, "an older lvm2 has no such column");
        assert!(parse(br#"{"report": [{"lv": []}]}"#, br#"{"report": []}"#).is_err());
    }

    #[test]
    fn a_new_volume_lies_where_the_old_one_does_if_it_can() {
        let placements = |policy: &str, disks: &[&str]| -> Vec<(Option<String>, usize)> {
            let old = of(&[("lv_allocation_policy", json!(policy))], disks);
            old.placements().into_iter().map(|one| (one.allocation.map(str::to_owned), one.disks.len())).collect()
        };
        assert_eq!(placements("inherit", &["/dev/sda", "/dev/sdb"]), [(None, 2), (None, 0)]);
        assert_eq!(placements("inherit", &[]), [(None, 0)]);
        let own = Some("contiguous".to_owned());
        assert_eq!(placements("contiguous", &["/dev/sda"]), [(own.clone(), 1), (own, 0), (None, 1), (None, 0)]);
    }

    #[test]
    fn what_can_be_set_is_set_and_what_cannot_is_said() {
        let old = of(
            &[
                ("lv_autoactivation", json!("")),
                ("lv_skip_activation", json!("skip activation")),
                ("lv_allocation_policy", json!("cling")),
                ("lv_read_ahead", json!("262144")),
                ("lv_profile", json!("fast")),
                ("lv_fixed_minor", json!("fixed minor")),
                ("lv_major", json!("253")),
                ("lv_minor", json!("77")),
            ],
            &["/dev/sda"],
        );
        let lacks = old.lacking(&of(&[], &["/dev/sda", "/dev/sdb"]), "/dev/vg/web");
        let set: Vec<_> =
            lacks.iter().map(|lack| (lack.arguments.clone().unwrap_or_default().join(" "), lack.is_needed)).collect();
        let wanted = [
            ("--setautoactivation n", true),
            ("--setactivationskip y", true),
            ("--alloc cling", false),
            ("--readahead 512", false),
            ("--metadataprofile fast", false),
            (" ", false),
            (" ", false),
        ];
        assert_eq!(set, wanted.map(|(arguments, needed)| (arguments.to_owned(), needed)));
        assert!(lacks.iter().all(|lack| lack.text.starts_with("the new logical volume `/dev/vg/web` ")));
        assert!(lacks[3].text.ends_with("has the read-ahead `auto` and not `262144` (bytes)"), "{}", lacks[3].text);
        assert!(
            lacks[5].text.contains(" 253:77 ") && lacks[5].text.contains("--major 253 --minor 77"),
            "{}",
            lacks[5].text
        );
        assert!(
            lacks[6].text.contains("lies on `/dev/sdb`, ") && lacks[6].text.contains("on `/dev/sda`, "),
            "{}",
            lacks[6].text
        );
        let plain = of(&[], &[]);
        assert_eq!(plain.lacking(&plain, "a"), []);
        assert_eq!(["0", "auto", "4096"].map(sectors), ["none", "auto", "8"]);
    }
}
