//! What `lvs --reportformat json` says of logical volumes, and which of them a restore can exchange. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::likeness::tags;

/// The columns that are asked for.
pub(super) const COLUMNS: &str = "vg_name,vg_attr,vg_extent_size,vg_free,lv_name,lv_uuid,lv_attr,lv_size,segtype,origin,pool_lv,data_percent,chunk_size,lv_tags";

/// The columns of groups that are asked for.
pub(super) const GROUP_COLUMNS: &str = "vg_name,vg_attr";

/// The column by which it is seen that there are volumes.
pub(super) const NAME_COLUMN: &str = "lv_name";

/// A logical volume.
#[derive(Clone, Debug, PartialEq)]
pub struct LogicalVolume {
    /// Its volume group.
    pub group: String,
    /// Its name there.
    pub name: String,
    /// By which it is known under any name.
    pub uuid: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// The thin pool that it is in.
    pub pool: Option<String>,
    /// Bytes of an extent of the group.
    pub extent_bytes: u64,
    /// Free bytes of the group.
    pub group_free_bytes: u64,
    /// Bytes of the pieces in which a thin pool gives room; 0 for what is no pool.
    pub chunk_bytes: u64,
    attributes: String,
    group_attributes: String,
    kinds: BTreeSet<String>,
    origin: String,
    data_percent: Option<f64>,
    tags: BTreeSet<String>,
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
    vg_name: String,
    vg_attr: String,
    vg_extent_size: String,
    vg_free: String,
    lv_name: String,
    lv_uuid: String,
    lv_attr: String,
    lv_size: String,
    segtype: String,
    origin: String,
    pool_lv: String,
    data_percent: String,
    chunk_size: String,
    lv_tags: String,
}

#[derive(Deserialize)]
struct GroupReport {
    report: Vec<GroupSection>,
}

#[derive(Deserialize)]
struct GroupSection {
    vg: Vec<GroupRow>,
}

#[derive(Deserialize)]
struct GroupRow {
    vg_name: String,
    vg_attr: String,
}

#[derive(Deserialize)]
struct NameReport {
    report: Vec<NameSection>,
}

#[derive(Deserialize)]
struct NameSection {
    lv: Vec<NameRow>,
}

#[derive(Deserialize)]
struct NameRow {
    lv_name: String,
}

/// The names of the volumes of a report with [`NAME_COLUMN`].
pub(super) fn parse_names(report: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    let report: NameReport = serde_json::from_slice(report)?;
    Ok(report.report.into_iter().flat_map(|section| section.lv).map(|row| row.lv_name).collect())
}

/// The names of the groups of a report with [`GROUP_COLUMNS`] that can be looked into, which one that is exported can't (vgs(8), the third
/// character): lvm2 does not show what is in it.
pub(super) fn parse_groups(report: &[u8]) -> Result<BTreeSet<String>, serde_json::Error> {
    let report: GroupReport = serde_json::from_slice(report)?;
    let is_seen = |row: &GroupRow| row.vg_attr.chars().nth(2) != Some('x');
    Ok(report.report.into_iter().flat_map(|section| section.vg).filter(is_seen).map(|row| row.vg_name).collect())
}

/// The volumes of a report. One that lies in several pieces has a row for each.
pub(super) fn parse(report: &[u8]) -> Result<Vec<LogicalVolume>, serde_json::Error> {
    let report: Report = serde_json::from_slice(report)?;
    let mut volumes: Vec<LogicalVolume> = Vec::new();
    for row in report.report.into_iter().flat_map(|section| section.lv) {
        match volumes.iter_mut().find(|volume| volume.group == row.vg_name && volume.name == row.lv_name) {
            Some(known) => drop(known.kinds.insert(row.segtype)),
            None => volumes.push(row.volume()?),
        }
    }
    Ok(volumes)
}

impl Row {
    fn volume(self) -> Result<LogicalVolume, serde_json::Error> {
        Ok(LogicalVolume {
            bytes: number(&self.lv_size)?,
            pool: Some(self.pool_lv).filter(|pool| !pool.is_empty()),
            extent_bytes: number(&self.vg_extent_size)?,
            group_free_bytes: number(&self.vg_free)?,
            chunk_bytes: number(&self.chunk_size)?,
            group: self.vg_name,
            name: self.lv_name,
            uuid: self.lv_uuid,
            attributes: self.lv_attr,
            group_attributes: self.vg_attr,
            kinds: BTreeSet::from([self.segtype]),
            origin: self.origin,
            data_percent: self.data_percent.parse().ok(),
            tags: tags(&self.lv_tags),
        })
    }
}

fn number(text: &str) -> Result<u64, serde_json::Error> {
    text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is no number of bytes")))
}

impl LogicalVolume {
    /// Somebody has it open (lvs(8), the sixth character of the attributes); none where lvm2 can't tell.
    pub fn is_open(&self) -> Option<bool> {
        match self.attributes.chars().nth(5) {
            Some('o') => Some(true),
            Some('-') => Some(false),
            _ => None,
        }
    }

    /// A new one beside it reads as zeros, and takes no room for them: it is in a thin pool that zeroes what it hands out (lvs(8), the eighth
    /// character). Any other holds what was there before.
    pub fn is_blank_when_new(&self) -> bool {
        self.pool.is_some() && self.attributes.chars().nth(7) == Some('z')
    }

    /// It was made by a restore.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains(tag)
    }

    /// Why a new volume can't take its place, if that is so, where `all` are the volumes of its group.
    pub fn fixed(&self, all: &[LogicalVolume]) -> Option<String> {
        let kinds: Vec<_> = self.kinds.iter().map(String::as_str).collect();
        if !matches!(kinds[..], ["linear" | "thin"]) {
            return Some(format!("it is of the type `{}`, and only `linear` and `thin` ones are", kinds.join(" and ")));
        }
        if !self.origin.is_empty() {
            return Some(format!("it is a snapshot of `{}`", self.origin));
        }
        if let Some(snapshot) = all.iter().find(|other| other.group == self.group && other.origin == self.name) {
            return Some(format!("`{}` is a snapshot of it", snapshot.name));
        }
        // vgs(8): clustered or shared.
        match self.group_attributes.chars().nth(5) {
            Some('c' | 's') => Some("its volume group is shared with other hosts".to_owned()),
            _ => None,
        }
    }

    /// Bytes that are free in a thin pool.
    pub fn free_of_pool(&self) -> u64 {
        let used = self.data_percent.unwrap_or(100.0).clamp(0.0, 100.0) / 100.0;
        // Of what is as large as a pool, the fractions of a byte do not matter.
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
        let used = (self.bytes as f64 * used) as u64;
        self.bytes.saturating_sub(used)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn row(name: &str, changes: &[(&str, &str)]) -> Value {
        let mut row = json!({
            "vg_name": "vg", "vg_attr": "wz--n-", "vg_extent_size": "4194304", "vg_free": "104857600",
            "lv_name": name, "lv_uuid": format!("uuid-of-{name}"), "lv_attr": "-wi-a-----", "lv_size": "8388608", "segtype": "linear", "origin": "",
            "pool_lv": "", "data_percent": "", "chunk_size": "0", "lv_tags": "",
        });
        for (column, value) in changes {
            row[*column] = json!(value);
        }
        row
    }

    fn parsed(rows: &[Value]) -> Vec<LogicalVolume> {
        parse(json!({"report": [{"lv": rows}]}).to_string().as_bytes()).unwrap()
    }

    fn fixed(rows: &[Value]) -> Option<String> {
        let all = parsed(rows);
        all[0].fixed(&all)
    }

    #[test]
    fn plain_and_thin_volumes_can_be_exchanged_and_nothing_else() {
        assert_eq!(fixed(&[row("a", &[]), row("a", &[]), row("b", &[])]), None);
        let thin = row("a", &[("segtype", "thin"), ("lv_attr", "Vwi-a-tz--"), ("pool_lv", "pool")]);
        assert_eq!(fixed(std::slice::from_ref(&thin)), None);
        let unzeroed = row("a", &[("segtype", "thin"), ("lv_attr", "Vwi-a-t---"), ("pool_lv", "pool")]);
        let volumes = [parsed(&[thin]), parsed(&[unzeroed]), parsed(&[row("a", &[])])].concat();
        assert_eq!(volumes[0].pool.as_deref(), Some("pool"));
        let blank: Vec<_> = volumes.iter().map(LogicalVolume::is_blank_when_new).collect();
        assert_eq!(blank, [true, false, false]);
        for kind in ["raid1", "striped", "cache", "thin-pool", "mirror", "writecache"] {
            assert!(fixed(&[row("a", &[("segtype", kind)])]).unwrap().contains(kind));
        }
        let mixed = fixed(&[row("a", &[]), row("a", &[("segtype", "striped")])]).unwrap();
        assert!(mixed.contains("`linear and striped`"), "{mixed}");
        let of = |origin| ("origin", origin);
        assert_eq!(fixed(&[row("a", &[of("b")])]).unwrap(), "it is a snapshot of `b`");
        assert_eq!(fixed(&[row("a", &[]), row("s", &[of("a")])]).unwrap(), "`s` is a snapshot of it");
        let elsewhere = [row("a", &[]), row("s", &[of("a"), ("vg_name", "other")])];
        assert_eq!(fixed(&elsewhere), None, "of another group");
        assert!(fixed(&[row("a", &[("vg_attr", "wz--ns")])]).unwrap().contains("other hosts"));
    }

    #[test]
    fn a_group_that_is_exported_cannot_be_looked_into() {
        let groups = json!([{"vg_name": "a", "vg_attr": "wz--n-"}, {"vg_name": "b", "vg_attr": "wzx-n-"}]);
        let report = json!({"report": [{"vg": groups}]}).to_string();
        assert_eq!(parse_groups(report.as_bytes()).unwrap(), BTreeSet::from(["a".to_owned()]));
        assert!(parse_groups(b"").is_err());
        let names = json!({"report": [{"lv": [{"lv_name": "web.new"}]}]}).to_string();
        assert_eq!(parse_names(names.as_bytes()).unwrap(), ["web.new"]);
    }

    #[test]
    fn what_is_open_and_ours_and_free_is_read() {
        let volumes = parsed(&[
            row("a", &[("lv_attr", "-wi-ao----"), ("lv_tags", "backup,longshore")]),
            row("b", &[]),
            row("pool", &[("segtype", "thin-pool"), ("data_percent", "25.00"), ("chunk_size", "65536")]),
        ]);
        assert_eq!((volumes[0].is_open(), volumes[1].is_open()), (Some(true), Some(false)));
        assert_eq!(parsed(&[row("a", &[("lv_attr", "-wi-XX----")])])[0].is_open(), None);
        assert!(volumes[0].has_tag("longshore") && !volumes[1].has_tag("longshore"));
        assert_eq!(
            (volumes[0].bytes, volumes[0].extent_bytes, volumes[0].group_free_bytes),
            (8 << 20, 4 << 20, 100 << 20)
        );
        assert_eq!((volumes[2].free_of_pool(), volumes[1].free_of_pool()), (6 << 20, 0));
        assert_eq!((volumes[2].chunk_bytes, volumes[1].chunk_bytes), (64 << 10, 0));
        assert!(parse(b"{}").is_err());
        assert!(parse(json!({"report": [{"lv": [row("a", &[("lv_size", "8m")])]}]}).to_string().as_bytes()).is_err());
        assert_eq!(parsed(&[]), []);
    }
}
