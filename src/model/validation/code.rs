//! The kinds of finding: stable codes, how bad each is, and what to do about it. They stand in events, so one is never renamed and never
//! given another meaning.

use serde::{Deserialize, Serialize};

use super::Severity;

macro_rules! codes {
    ($($name:ident = $text:literal, $severity:ident, $meaning:literal, $remedy:literal;)*) => {
        /// What a finding is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FindingCode {
            $(#[doc = $meaning] $name,)*
            /// One of a later version.
            #[serde(other)]
            Unknown,
        }

        impl FindingCode {
            /// All that there are, in the order of the README's table.
            pub const ALL: &'static [FindingCode] = &[$(FindingCode::$name,)*];

            /// The code as it stands in messages.
            pub const fn as_str(self) -> &'static str {
                match self { $(FindingCode::$name => $text,)* FindingCode::Unknown => "unknown" }
            }

            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(FindingCode::$name => Severity::$severity,)* FindingCode::Unknown => Severity::Note }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(FindingCode::$name => $meaning,)* FindingCode::Unknown => "one of a later version" }
            }

            /// What to do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(FindingCode::$name => $remedy,)* FindingCode::Unknown => "" }
            }
        }
    };
}

codes! {
    NotWritable = "not_writable", Error, "the repository cannot be written to",
        "let this host write to the share; until then nothing can be backed up there";
    LayoutMissing = "layout_missing", Error, "a directory that every repository has is missing",
        "bring the directory back from a copy of the share; make it empty if there was nothing in it";
    LittleRoom = "little_room", Warning, "less than a twentieth of the repository is free",
        "delete backups that are not needed, or enlarge the share";
    ClockDiffers = "clock_differs", Warning, "the share's clock and the host's differ by more than a minute",
        "let both follow the same time server";
    NoDirectoryFsync = "no_directory_fsync", Note, "the file system cannot bring directory entries to stable storage on demand",
        "nothing, where the server writes them at once";
    Unreadable = "unreadable", Error, "a file or directory could not be read",
        "look at the share's storage and at the log of its server";
    NotWhatItSays = "not_what_it_says", Error, "a link, a pipe or something else is in the place of a file or directory",
        "find out who put it there; bring what should be there back from a copy of the share";
    TooMany = "too_many", Error, "a directory holds more than any of Longshore's does, and not all of it was looked at",
        "find out who put it there, and remove it";
    InstanceMissing = "instance_missing", Error, "there is nothing of an instance that was asked for",
        "look whether it was ever backed up here; if it was, bring its directory back from a copy of the share";
    ManifestMissing = "manifest_missing", Error, "a directory with a backup's name has no manifest",
        "it is no backup; bring its manifest back from a copy of the share, or move the directory away";
    ManifestUnreadable = "manifest_unreadable", Error, "a manifest cannot be understood, or is not of a format that this version reads",
        "bring it back from a copy of the share, or read it with the version that wrote it";
    ManifestForeign = "manifest_foreign", Error, "a manifest belongs to another repository",
        "the backup was copied from there; move its directory back, or away";
    ManifestMisplaced = "manifest_misplaced", Error, "a manifest belongs to another backup or instance than the directory that it is in",
        "rename the directory as the manifest says, or move it away";
    NumberRepeated = "number_repeated", Warning, "two backups of an instance have the same number",
        "one of them was copied here by hand; move it away";
    FileMissing = "file_missing", Error, "a file that a manifest names is missing",
        "bring it back from a copy of the share; without it the backup cannot be restored whole";
    FileSizeDiffers = "file_size_differs", Error, "a file has another length than its manifest says",
        "bring it back from a copy of the share, or make a new full backup and delete this one";
    FilesExchanged = "files_exchanged", Error, "a file is where another one belongs",
        "rename the files to where they belong, and validate again";
    RecordChanged = "record_changed", Error, "a record's content is not what was backed up",
        "bring it back from a copy of the share; the disks can be restored without it";
    ReadmeMissing = "readme_missing", Warning, "a backup has no instructions for a restore without Longshore",
        "nothing, as long as Longshore is there";
    ParentMissing = "parent_missing", Error, "the backup that another one is based on is missing",
        "bring it back from a copy of the share; without it the other cannot be restored";
    ParentDiffers = "parent_differs", Error, "a backup that another one is based on does not hold the disk as it was then",
        "bring it back from a copy of the share; without it the other cannot be restored";
    ChainImpossible = "chain_impossible", Error, "backups are based on each other in a way that none of Longshore's are",
        "bring the manifests back from a copy of the share";
    ChainTooLong = "chain_too_long", Error, "a chain has more images than are read",
        "make a new full backup; delete backups of the chain, oldest first, so that their images are merged";
    AncestorDamaged = "ancestor_damaged", Error, "a backup that this one needs is damaged, so that it cannot be restored whole",
        "see the findings of the backup that is named";
    MergeUnfinished = "merge_unfinished", Warning, "an image holds what its backup and a deleted one held, and its manifest does not say so yet",
        "the deletion that was cut off brings it to its end when it is asked for again; the backup can be restored";
    ImageHeaderDiffers = "image_header_differs", Error, "the header of an image is not as its manifest says",
        "bring the image back from a copy of the share, or make a new full backup and delete this one";
    ImageDamaged = "image_damaged", Error, "an image does not pass qemu-img's check",
        "bring it back from a copy of the share, or make a new full backup and delete this one; do not repair it in place";
    ImageLeaks = "image_leaks", Warning, "an image takes room that belongs to nothing",
        "nothing has to be done: what it holds is not concerned";
    CheckUnfinished = "check_unfinished", Warning, "an image took longer to check than is waited for",
        "validate again while the share has less to do, or at the level `content`, which reads it all the same";
    BlocksDamaged = "blocks_damaged", Error, "a file of block hashes is damaged or is not that of its disk",
        "bring it back from a copy of the share; the image itself may be good, but nobody can tell";
    ContentDiffers = "content_differs", Error, "an image does not hold what was backed up",
        "bring it back from a copy of the share, or make a new full backup and delete this one";
    StagingLeftOver = "staging_left_over", Warning, "what a backup that was cut off had written is still there",
        "the next backup of the instance removes it, and so does a validation with `sweep`";
    StagingInUse = "staging_in_use", Note, "something is being written, by the holder of the instance's lease",
        "nothing";
    FencedLeftOver = "fenced_left_over", Warning, "what a worker wrote that lost its lease, or of a deleted backup, could not be removed yet",
        "the next backup of the instance removes it, and so does a validation with `sweep`";
    DeletingLeftOver = "deleting_left_over", Warning, "a removal was cut off",
        "the next backup of the instance removes it, and so does a validation with `sweep`";
    LeftOverRemoved = "left_over_removed", Note, "a left-over was removed by this validation",
        "nothing";
    ProbeLeftOver = "probe_left_over", Warning, "what was written to try the repository out could not be removed",
        "remove it by hand";
    ForeignFile = "foreign_file", Warning, "something is there that is none of Longshore's",
        "find out who put it there; Longshore does not touch it";
    Superseded = "superseded", Note, "a backup was deleted or replaced while it was looked at",
        "nothing; validate again if it should still be there";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_code_is_written_as_it_says_and_an_unknown_one_is_borne() {
        for code in FindingCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert_eq!(serde_json::from_value::<FindingCode>(code.as_str().into()).unwrap(), *code);
            assert!(code.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            assert!(!code.remedy().is_empty() && !code.meaning().is_empty());
        }
        assert_eq!(serde_json::from_value::<FindingCode>("of_tomorrow".into()).unwrap(), FindingCode::Unknown);
    }
}
